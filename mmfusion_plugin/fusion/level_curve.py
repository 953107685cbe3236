"""What is usual at each noise level: a running mean by level that rises or falls. Plain torch."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .ranks import all_reduced

__all__ = ["LevelMeans", "isotonic"]


def isotonic(value_MN: Tensor, weight_MN: Tensor) -> Tensor:
    """The rising sequences nearest to ``value`` in weighted squared error, by the min-max formula.

    An entry of weight 0 takes what its neighbours allow; a row without any weight is all NaN.

    Shapes: (M, N), (M, N) >= 0 -> (M, N).
    Source: Robertson, Wright and Dykstra, Order Restricted Statistical Inference, 1988.
    """
    M, N = value_MN.shape
    zero = value_MN.new_zeros(M, 1)
    value_MN = torch.where(weight_MN > 0, value_MN, 0.0)
    sums = torch.cat([zero, (value_MN * weight_MN).cumsum(1)], 1)
    weights = torch.cat([zero, weight_MN.cumsum(1)], 1)
    # mean of j..k at [m, j, k]
    total, weight = (x[:, None, 1:] - x[:, :-1, None] for x in (sums, weights))
    inside = torch.ones(N, N, dtype=torch.bool, device=value_MN.device).triu() & (weight > 0)
    mean = torch.where(inside, total / weight.clamp(min=1e-30), torch.inf)
    least = mean.flip(2).cummin(2).values.flip(2)  # over k >= i, at [m, j, i]
    above = torch.ones(N, N, dtype=torch.bool, device=value_MN.device).triu()
    found = torch.where(above, least, -torch.inf).amax(1)
    # behind the last weighted entry no mean begins: there the sequence stays level
    last = torch.where(found.isfinite(), found, -torch.inf).amax(1, keepdim=True)
    found = torch.where(found.isinf(), last, found)
    return torch.where(weight_MN.sum(1, keepdim=True) > 0, found, torch.nan)


# M modalities, N bins, B batch
class LevelMeans(nn.Module):
    """Running mean of a quantity about each of N noise levels, for each modality, made monotone.

    Sums and counts are buffers: saved, resumed and, through one all-reduce, equal on all ranks.

    Args:
        modalities: names.
        span: the bins' centres are spread over [0, span]; levels beyond count for the last bin.
        bins: N.
        falling: the mean falls with the level; else it rises.
        momentum: share by which a bin forgets in each update that brings it something.

    Shapes: quantity {m: (B,)}, level {m: (B,)}, here {m: (B,) bool}; only finite values count.
    Raises: ValueError for a span that is not positive, less than two bins or a momentum outside (0, 1].
    """

    def __init__(
        self, modalities: Sequence[str], span: float, bins: int = 12, falling: bool = False, momentum: float = 0.02
    ) -> None:
        super().__init__()
        if not span > 0 or bins < 2:
            raise ValueError(f"need span > 0 and at least two bins, got span={span}, bins={bins}")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be in (0, 1], got {momentum}")
        self.modalities = tuple(modalities)
        self.falling, self.momentum = falling, momentum
        self.register_buffer("centre_N", torch.linspace(0, span, bins), persistent=False)
        self.register_buffer("sum_MN", torch.zeros(len(self.modalities), bins))
        self.register_buffer("count_MN", torch.zeros(len(self.modalities), bins))

    @torch.no_grad()
    def update(
        self, quantity: Mapping[str, Tensor], level: Mapping[str, Tensor], here: Mapping[str, Tensor]
    ) -> None:
        """Take in one batch; on every rank, or the ranks wait for each other."""
        sum_MN, count_MN = torch.zeros_like(self.sum_MN), torch.zeros_like(self.count_MN)
        step = self.centre_N[1] - self.centre_N[0]
        for i, m in enumerate(self.modalities):
            x_B, level_B = quantity[m].to(self.sum_MN), level[m].to(self.sum_MN)
            counts_B = here[m] & x_B.isfinite() & level_B.isfinite()
            bin_B = torch.where(counts_B, level_B / step, 0.0).round().long().clamp(0, len(self.centre_N) - 1)
            sum_MN[i].index_add_(0, bin_B, torch.where(counts_B, x_B, 0.0))
            count_MN[i].index_add_(0, bin_B, counts_B.to(x_B))
        all_reduced(sum_MN, count_MN)
        keep_MN = torch.where(count_MN > 0, 1 - self.momentum, 1.0)
        self.sum_MN.mul_(keep_MN).add_(sum_MN)
        self.count_MN.mul_(keep_MN).add_(count_MN)

    def curve(self) -> Tensor:
        """(M, N): the monotone mean at each bin's centre; NaN for a modality of which nothing is known."""
        mean_MN = self.sum_MN / self.count_MN.clamp(min=1e-30)
        sign = -1 if self.falling else 1
        return sign * isotonic(sign * mean_MN, self.count_MN)

    def forward(self, level: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{m: (B,)}: the monotone mean at ``level``, linear between centres, level beyond them; NaN if unknown."""
        curve_MN = self.curve()
        step = self.centre_N[1] - self.centre_N[0]
        found = {}
        for i, m in enumerate(self.modalities):
            place_B = (level[m].to(step) / step).nan_to_num().clamp(0, len(self.centre_N) - 1)
            below_B = place_B.floor().long().clamp(max=len(self.centre_N) - 2)
            low_B, high_B = curve_MN[i][below_B], curve_MN[i][below_B + 1]
            found[m] = torch.lerp(low_B, high_B, place_B - below_B)
        return found
