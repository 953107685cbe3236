"""What has a noise level and weights of its own: a whole sample, or each cell of a grid over maps. Plain torch."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .contract import expand_mask
from .input_statistics import NUM_STATISTICS

__all__ = ["Cells"]


@dataclass(frozen=True)
class Cells:
    """Samples, or the cells of ``grid`` (h, w) as samples: (B h w,), each of its picture's availability and level."""

    grid: tuple[int, int] | None = None

    def of(self, known: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
        """{m: (B,)} -> {m: (B h w,)}."""
        if known is None or self.grid is None:
            return known
        return {m: x.repeat_interleave(self.grid[0] * self.grid[1]) for m, x in known.items()}

    def statistics(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{m: (B, S, h, w)} -> {m: (B h w, S)}; {m: (B, S)} of samples as they are."""
        for m, x in found.items():
            if tuple(x.shape[2:]) != (self.grid or ()):
                expected = ", ".join(["B", str(NUM_STATISTICS), *map(str, self.grid or ())])
                raise ValueError(
                    f"statistics of {m!r} have shape {tuple(x.shape)}, expected ({expected}): "
                    "input_statistics(x, model.grid(feats))")
        return dict(found) if self.grid is None else {m: x.movedim(1, -1).flatten(0, 2) for m, x in found.items()}

    def pooled(self, log_variances: Mapping[str, Sequence[Tensor]]) -> Mapping[str, Sequence[Tensor]]:
        """{m: log sigma^2 of each level} -> the same as (B h w, C), sigma a mean over each cell."""
        if self.grid is None:
            return log_variances
        return {
            m: tuple(2 * F.adaptive_avg_pool2d((0.5 * x.float()).exp(), self.grid).log().movedim(1, -1).flatten(0, 2)
                     for x in levels)
            for m, levels in log_variances.items()}

    def over_positions(self, value: Tensor, like: Tensor) -> Tensor:
        """(B,) -> one channel that multiplies ``like``; (B h w,) -> the same at each position, between cells
        interpolated."""
        if self.grid is None:
            return expand_mask(value, like).to(like.dtype)
        cells = value.reshape(-1, 1, *self.grid)
        return F.interpolate(cells, like.shape[2:], mode="bilinear", align_corners=False).to(like.dtype)

    def means(self, values: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
        """{m: (B h w,)} -> {m: (B,)}, means over each sample's cells; one number for all stays as it is."""
        if values is None or self.grid is None:
            return values
        return {m: x if x.ndim == 0 else x.unflatten(0, (-1, self.grid[0] * self.grid[1])).mean(1)
                for m, x in values.items()}
