"""Attention between modalities: a pre-norm transformer over modality tokens."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block import FusionBlock
from .contract import FusionOutput, channel_axis, positions
from .layers import ChannelLinear, InputNorm

__all__ = ["CrossAttentionFusion"]


class AttentionLayer(nn.Module):
    """Pre-norm self-attention and MLP. Shapes: tokens (N, L, D), keys (N, L) bool -> (N, L, D)."""

    def __init__(self, channels: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.norm_mlp = nn.LayerNorm(channels)
        hidden = int(mlp_ratio * channels)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))

    def forward(self, tokens: Tensor, keys: Tensor) -> Tensor:
        N, L, D = tokens.shape
        qkv = self.qkv(self.norm_attention(tokens)).view(N, L, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=keys[:, None, None, :])
        tokens = tokens + self.out(attended.transpose(1, 2).reshape(N, L, D))
        return tokens + self.mlp(self.norm_mlp(tokens))


class CrossAttentionFusion(FusionBlock):
    """Tokens of all modalities attend to each other; the mean of the available ones is read.

    Args:
        out_channels: output width; None takes the widest modality's.
        embed_channels: token width D; None takes the widest modality's.
        num_layers, num_heads, mlp_ratio: of the transformer.
        scope: ``position``: the M tokens at one position attend to each other, which is what dense
            maps can afford; ``global``: all tokens of all positions, with a sinusoidal code of the
            flattened position.
        norm: ``layer`` normalises each modality first; None does not.

    Shapes: feats {m: (B, C_m)} or any other rank of the contract -> fused (B, out_channels), same
        positions. Missing modalities are no keys and are left out of the mean.
    Raises: ValueError for an unknown ``scope``, or a D that the heads do not divide.
    Source: baseline; the SCFAE paper compares with a 4-layer one (Table 6, row 1).
    """

    def __init__(
        self,
        modalities: Sequence[str],
        in_channels: Mapping[str, int],
        *,
        out_channels: int | None = None,
        embed_channels: int | None = None,
        num_layers: int = 1,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        scope: str = "position",
        norm: str | None = None,
        **masking,
    ) -> None:
        super().__init__(modalities, in_channels, **masking)
        D = embed_channels or max(self.in_channels.values())
        if scope not in ("position", "global"):
            raise ValueError(f"scope must be 'position' or 'global', got {scope!r}")
        if D % num_heads:
            raise ValueError(f"embed_channels={D} is not divisible by num_heads={num_heads}")
        self.scope = scope
        self.pointwise = scope == "position"
        self._out_channels = out_channels or max(self.in_channels.values())
        self.norm = InputNorm(self.in_channels, norm)
        self.embed = nn.ModuleDict({m: ChannelLinear(C, D) for m, C in self.in_channels.items()})
        self.modality_code = nn.Parameter(torch.randn(len(self.modalities), D) * 0.02)
        self.layers = nn.ModuleList(AttentionLayer(D, num_heads, mlp_ratio) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(D)
        self.project = nn.Linear(D, self._out_channels)

    @property
    def out_channels(self) -> int:
        return self._out_channels

    def fuse(
        self, feats: Mapping[str, Tensor], available: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None
    ) -> FusionOutput:
        feats = self.norm(feats, available, weights)
        first = feats[self.modalities[0]]
        axis, grid, B, M = channel_axis(first), positions(first), first.shape[0], len(self.modalities)
        embedded = [self.embed[m](feats[m]).movedim(axis, -1) for m in self.modalities]
        tokens = [x.reshape(B, grid.numel(), x.shape[-1]) for x in embedded]
        token_BPMD = torch.stack(tokens, 2) + self.modality_code
        P, D = token_BPMD.shape[1], token_BPMD.shape[3]
        key_BPM = torch.stack([available[m] for m in self.modalities], 1)[:, None].expand(B, P, M)

        if self.scope == "global":
            token_BPMD = token_BPMD + _sinusoid(P, D, token_BPMD)[:, None]
            rows, keys = token_BPMD.reshape(B, P * M, D), key_BPM.reshape(B, P * M)
        else:
            rows, keys = token_BPMD.reshape(B * P, M, D), key_BPM.reshape(B * P, M)
        for layer in self.layers:
            rows = layer(rows, keys)

        weight_BPM1 = (key_BPM / key_BPM.sum(-1, keepdim=True))[..., None].to(rows.dtype)
        mean_BPD = (rows.reshape(B, P, M, D) * weight_BPM1).sum(2)
        fused = self.project(self.norm_out(mean_BPD))
        return FusionOutput(fused.reshape(B, *grid, fused.shape[-1]).movedim(-1, axis))


def _sinusoid(P: int, D: int, like: Tensor) -> Tensor:
    """(P, D) position code of Vaswani et al., 2017."""
    place = torch.arange(P, device=like.device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, D, 2, device=like.device) * (-math.log(10_000.0) / D))
    code = torch.zeros(P, D, device=like.device)
    code[:, 0::2] = torch.sin(place * rate)
    code[:, 1::2] = torch.cos(place * rate)[:, : D // 2]
    return code.to(like.dtype)
