"""Sum of projected modalities."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from .block import FusionBlock
from .contract import FusionOutput, expand_mask, where_there
from .layers import ChannelLinear, InputNorm, channels_last

__all__ = ["SumFusion"]


class SumFusion(FusionBlock):
    """z = sum_m W_m x_m + b_m, over the available modalities.

    Args:
        out_channels: D; None takes the widest modality's.
        norm: ``layer`` normalises each modality first; None does not.
        reduce: ``sum``, or ``mean`` over the available modalities.

    Shapes: feats {m: (B, C_m)} or any other rank of the contract -> fused (B, D).
    Raises: ValueError for an unknown ``reduce`` or ``norm``.
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
        reduce: str = "sum",
        **masking,
    ) -> None:
        super().__init__(modalities, in_channels, **masking)
        if reduce not in ("sum", "mean"):
            raise ValueError(f"reduce must be 'sum' or 'mean', got {reduce!r}")
        self.reduce = reduce
        self._out_channels = out_channels or max(self.in_channels.values())
        self.norm = InputNorm(self.in_channels, norm)
        self.project = nn.ModuleDict(
            {m: ChannelLinear(C, self._out_channels) for m, C in self.in_channels.items()}
        )

    @property
    def out_channels(self) -> int:
        return self._out_channels

    def fuse(
        self, feats: Mapping[str, Tensor], available: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None
    ) -> FusionOutput:
        feats = self.norm(feats, available, weights)
        total, count = 0.0, 0.0
        for m in self.modalities:
            mask = expand_mask(available[m], feats[m])
            total = total + where_there(mask, self.project[m](channels_last(feats[m])), 0.0)
            count = count + mask.to(feats[m].dtype)
        return FusionOutput(total / count if self.reduce == "mean" else total)
