"""Layers that act on channels at each position, for vectors, sequences, maps and clips alike."""
from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .contract import channel_axis, expand_mask

__all__ = ["ChannelBatchNorm", "ChannelLinear", "ChannelNorm", "InputNorm", "SwiGLU", "channels_last", "make_norm"]


def channels_last(x: Tensor) -> Tensor:
    """The same tensor with channels contiguous in memory: every layer here is fastest so."""
    if x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if x.ndim == 5:
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x


class ChannelLinear(nn.Linear):
    """``nn.Linear`` over the channel axis, wherever that axis is; a 1x1 convolution on maps.

    Shapes: (B, C), (B, T, C), (B, C, H, W) or (B, C, T, H, W) -> the same with ``out_features``
    channels. The weight is (out, in) for every rank: one state dict serves them all.
    """

    # A convolution, not F.linear on the channels-last view (free, too). One thread of an Intel Xeon,
    # torch 2.13: equal forward, 0-15 % slower in training for a whole SCFAE block. On AMD F.linear
    # goes to MKL, at half of oneDNN's speed there. NCHW memory costs 3-40 % against channels-last.
    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return F.conv2d(x, self.weight[:, :, None, None], self.bias)
        if x.ndim == 5:
            return F.conv3d(x, self.weight[:, :, None, None, None], self.bias)
        return F.linear(x, self.weight, self.bias)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position. Shapes: any rank of the contract, unchanged."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        axis = channel_axis(x)
        # on channels-last memory both movedims are views
        return super().forward(x.movedim(axis, -1)).movedim(-1, axis)


class ChannelBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation of each channel over batch and positions. Shapes: any rank of the contract, unchanged."""

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim not in (2, 3, 4, 5):
            raise ValueError(f"expected 2 to 5 axes, got {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mT).mT if x.ndim == 3 else super().forward(x)


def make_norm(norm: str | None, channels: int) -> nn.Module:
    """``layer`` or None (identity). Raises ValueError otherwise."""
    if norm is None:
        return nn.Identity()
    if norm == "layer":
        return ChannelNorm(channels)
    raise ValueError(f"norm must be 'layer' or None, got {norm!r}")


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), hidden width floor(8 d / 3), three linears with bias.

    Shapes: any rank with ``channels`` channels, unchanged.
    Source: SCFAE, Table 12 (8 d^2 + 19/3 d parameters).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 8 * channels // 3
        self.gate = ChannelLinear(channels, hidden)
        self.up = ChannelLinear(channels, hidden)
        self.down = ChannelLinear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class InputNorm(nn.Module):
    """Normalise each modality's channels; what stands in for a missing one stays as it is.

    A norm would turn the zeros of a missing modality into its bias, which is a signal.

    Args:
        channels: width by modality.
        norm: ``layer``, or None, which changes nothing.

    Shapes: feats {m: any rank of the contract}, available {m: (B,)} bool -> feats, same shapes.
    """

    def __init__(self, channels: Mapping[str, int], norm: str | None) -> None:
        super().__init__()
        self.norm = nn.ModuleDict({m: make_norm(norm, C) for m, C in channels.items()})
        self.active = norm is not None

    def forward(self, feats: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.active:
            return dict(feats)
        return {
            m: torch.where(expand_mask(available[m], x), self.norm[m](channels_last(x)), x)
            for m, x in feats.items()
        }
