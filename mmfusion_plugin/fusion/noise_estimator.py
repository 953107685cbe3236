"""How noisy an input was, read off its features' variance. Plain torch. Source: UDML, CVPR 2026."""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .contract import channel_axis

__all__ = ["NoiseEstimator", "noise_loss"]

SMALLEST = 1e-3


class NoiseEstimator(nn.Module):
    """s = unit x softplus(MLP(log of the mean over positions of sigma)) > 0, in the units of the injected level.

    Args:
        channels: width of each level's sigma; several levels of a pyramid are read together.
        hidden: width of the MLP's hidden layer.
        detach: stop gradients at sigma, as released: the estimate then does not shape the features.
        reads_mean: read the size of mu, too (mean over positions of |mu|).
        unit: levels for one unit of the network's output. 1, as released, leaves an optimiser with steps of a set
            size (Adam) thousands of them away from level 11; the largest level brings it there in hundreds.
        start: level about which an untrained network estimates, through the last bias; None leaves torch's
            initial value (about 0.7 units).

    Shapes: log sigma^2 (and mu) of each level, any rank of the contract -> (B,) float32.
    Raises: ValueError for a unit or start that is not positive, and if another number of levels comes than
        ``channels`` lists.
    """

    def __init__(
        self, channels: int | Sequence[int], hidden: int = 64, detach: bool = True, reads_mean: bool = False,
        unit: float = 1.0, start: float | None = None,
    ) -> None:
        super().__init__()
        for key, value in (("unit", unit), ("start", start)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{key} of the noise estimator must be a positive level, got {value!r}")
        widths = [channels] if isinstance(channels, int) else list(channels)
        self.levels = len(widths)
        self.detach = detach
        self.reads_mean = reads_mean
        self.unit = unit
        width = sum(widths) * (2 if reads_mean else 1)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 1))
        if start is not None:
            nn.init.constant_(self.mlp[-1].bias, _softplus_inverse(start / unit))

    def forward(self, log_variances: Sequence[Tensor], mus: Sequence[Tensor] = ()) -> Tensor:
        if len(log_variances) != self.levels or self.reads_mean and len(mus) != self.levels:
            raise ValueError(
                f"the estimator reads {self.levels} levels, got {len(log_variances)} of sigma and {len(mus)} of mu"
            )
        parts = [_pooled((0.5 * x.float()).exp()) for x in log_variances]
        if self.reads_mean:
            parts += [_pooled(mu.float().abs()) for mu in mus]
        # the logarithm evens out the scale; a LayerNorm would take away the level common to all channels
        read = torch.cat(parts, 1).clamp(min=SMALLEST).log()
        read = (read.detach() if self.detach else read).to(self.mlp[0].weight.dtype)
        return self.unit * F.softplus(self.mlp(read).float()).squeeze(1)


def noise_loss(estimated_B: Tensor, level_B: Tensor, available_B: Tensor) -> Tensor:
    """Mean squared error over the samples that have the modality; 0, in the graph, if none has.

    Shapes: (B,), (B,), (B,) bool -> scalar.
    """
    error = torch.where(available_B, estimated_B - level_B, 0.0)
    return error.square().sum() / available_B.sum().clamp(min=1)


def _softplus_inverse(y: float) -> float:
    """x of log(1 + exp(x)) = y > 0."""
    return y + math.log(-math.expm1(-y))


def _pooled(x: Tensor) -> Tensor:
    """(B, C), (B, T, C), (B, C, H, W) or (B, C, T, H, W) -> (B, C)."""
    if x.ndim == 2:
        return x
    return x.mean([axis for axis in range(1, x.ndim) if axis != channel_axis(x)])
