"""Concatenation, raw or with one linear readout."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .block import FusionBlock
from .contract import FusionOutput, channel_axis
from .layers import ChannelLinear, InputNorm, channels_last

__all__ = ["ConcatFusion"]


class ConcatFusion(FusionBlock):
    """z = W [x_1; ...; x_M] + b, in list order.

    Args:
        out_channels: D; None leaves the plain concatenation, without any parameter.
        norm: ``layer`` normalises each modality first; None does not.

    Shapes: feats {m: (B, C_m)} or any other rank of the contract -> fused (B, D) or (B, sum C_m).
    Source: baseline, no paper.
    """

    pointwise = True

    def __init__(
        self,
        modalities: Sequence[str],
        in_channels: Mapping[str, int],
        *,
        out_channels: int | None = None,
        norm: str | None = None,
        **masking,
    ) -> None:
        super().__init__(modalities, in_channels, **masking)
        total = sum(self.in_channels.values())
        self.norm = InputNorm(self.in_channels, norm)
        self.project = nn.Identity() if out_channels is None else ChannelLinear(total, out_channels)
        self._out_channels = total if out_channels is None else out_channels

    @property
    def out_channels(self) -> int:
        return self._out_channels

    def fuse(
        self, feats: Mapping[str, Tensor], available: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None
    ) -> FusionOutput:
        return FusionOutput(self.project(self.concat(feats, available, weights)))

    def concat(
        self, feats: Mapping[str, Tensor], available: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None
    ) -> Tensor:
        feats = self.norm(feats, available, weights)
        first = feats[self.modalities[0]]
        return torch.cat([channels_last(feats[m]) for m in self.modalities], channel_axis(first))
