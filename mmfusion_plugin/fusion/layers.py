"""Layers that act on channels at each position, for vectors, sequences, maps and clips alike."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .contract import channel_axis

__all__ = ["ChannelLinear", "ChannelNorm", "SwiGLU", "channels_last", "make_norm"]


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
