"""Gated multimodal unit (Arevalo et al., 2017)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .block import FusionBlock
from .contract import FusionOutput, channel_axis, expand_mask
from .layers import ChannelLinear, InputNorm, channels_last

__all__ = ["GatedFusion"]


class GatedFusion(FusionBlock):
    """z = sum_m g_m * tanh(W_m x_m), the gates g_m computed per channel from all modalities.

    Args:
        out_channels: D; None takes the widest modality's.
        gate: ``softmax`` over the available modalities, or an independent ``sigmoid`` for each. A
            missing modality's gate is 0 in both.
        norm: ``layer`` normalises each modality first; None does not.

    Shapes: feats {m: (B, C_m)} or any other rank of the contract -> fused (B, D).
    Diagnostics: ``fusion.gate.<m>``, mean gate of each modality.
    Raises: ValueError for an unknown ``gate`` or ``norm``.
    Source: Arevalo et al., Gated Multimodal Units for Information Fusion, 2017 (for two modalities
        softmax equals its single gate z and 1 - z).
    """

    pointwise = True

    def __init__(
        self,
        modalities: Sequence[str],
        in_channels: Mapping[str, int],
        *,
        out_channels: int | None = None,
        gate: str = "softmax",
        norm: str | None = None,
        **masking,
    ) -> None:
        super().__init__(modalities, in_channels, **masking)
        if gate not in ("softmax", "sigmoid"):
            raise ValueError(f"gate must be 'softmax' or 'sigmoid', got {gate!r}")
        self.gate = gate
        self._out_channels = D = out_channels or max(self.in_channels.values())
        self.norm = InputNorm(self.in_channels, norm)
        self.value = nn.ModuleDict({m: ChannelLinear(C, D) for m, C in self.in_channels.items()})
        self.score = ChannelLinear(sum(self.in_channels.values()), D * len(self.modalities))

    @property
    def out_channels(self) -> int:
        return self._out_channels

    def fuse(
        self, feats: Mapping[str, Tensor], available: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None
    ) -> FusionOutput:
        feats = {m: channels_last(x) for m, x in self.norm(feats, available, weights).items()}
        first = feats[self.modalities[0]]
        axis = channel_axis(first)
        scores = self.score(torch.cat([feats[m] for m in self.modalities], axis)).chunk(
            len(self.modalities), axis
        )
        score_M = torch.stack(scores)
        mask_M = torch.stack([expand_mask(available[m], first) for m in self.modalities])
        if self.gate == "softmax":
            gate_M = score_M.masked_fill(~mask_M, -torch.inf).softmax(0)
        else:
            gate_M = score_M.sigmoid() * mask_M
        value_M = torch.stack([torch.tanh(self.value[m](feats[m])) for m in self.modalities])
        gates = {f"fusion.gate.{m}": gate_M[i].mean() for i, m in enumerate(self.modalities)}
        return FusionOutput((gate_M * value_M).sum(0), diagnostics=gates)
