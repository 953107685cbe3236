"""How noisy an input was, read off its features' variance and its own texture. Plain torch. Source: UDML, CVPR 2026."""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .contract import channel_axis
from .running_normal import RunningNormal

__all__ = ["NoiseEstimator", "noise_loss"]

SMALLEST = 1e-3
LARGEST = 8.0  # standard deviations of a statistic: what was never seen must not leave the network's range


class NoiseEstimator(nn.Module):
    """s = softplus(MLP(log of the mean over positions of sigma)) > 0, in the units of the injected level.

    With a ``unit`` the output is linear, s = unit x MLP(...), and may fall below 0; read no less than a clean
    sample's level of it. A softplus that one large step drives to 0 has no gradient left to come back by.

    Args:
        channels: width of each level's sigma; several levels of a pyramid are read together. An empty list: sigma
            is not read.
        hidden: width of the MLP's hidden layer.
        detach: stop gradients at sigma, as released: the estimate then does not shape the features.
        reads_mean: read the size of mu, too (mean over positions of |mu|).
        unit: levels for one unit of the network's output, which is then linear. None, a softplus in levels, as
            released: it leaves an optimiser with steps of a set size (Adam) thousands of them away from level 11;
            with the largest level for a unit they are hundreds.
        statistics: number of the input's statistics that are read besides, standardised by their running mean and
            deviation over training samples of known noise. Ours: what encoders pass on of noise decides otherwise.
        start: level about which an untrained network estimates, through the last bias; None leaves torch's
            initial value.

    Shapes: log sigma^2 (and mu) of each level, any rank of the contract, statistics (B, S) -> (B,) float32.
    Raises: ValueError for a unit or start that is not positive, for nothing to read, and if another number of levels
        or of statistics comes than was told.
    """

    def __init__(
        self, channels: int | Sequence[int], hidden: int = 64, detach: bool = True, reads_mean: bool = False,
        unit: float | None = None, start: float | None = None, statistics: int = 0,
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
        width = sum(widths) * (2 if reads_mean else 1) + statistics
        if not width:
            raise ValueError("the noise estimator has nothing to read: give channels, or a number of statistics")
        self.scale = RunningNormal(statistics, momentum=1e-3) if statistics else None
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 1))
        if start is not None:
            nn.init.constant_(self.mlp[-1].bias, _softplus_inverse(start) if unit is None else start / unit)

    def learn(self, statistics: Tensor, here_B: Tensor) -> None:
        """Take the statistics of training samples into their running mean and deviation; on every rank."""
        self.scale.update(statistics, here_B)

    def forward(
        self, log_variances: Sequence[Tensor], mus: Sequence[Tensor] = (), statistics: Tensor | None = None
    ) -> Tensor:
        if len(log_variances) != self.levels or self.reads_mean and len(mus) != self.levels:
            raise ValueError(
                f"the estimator reads {self.levels} levels, got {len(log_variances)} of sigma and {len(mus)} of mu"
            )
        if self.detach:  # first of all: no graph is kept of maps that nobody goes back through
            log_variances, mus = ([x.detach() for x in maps] for maps in (log_variances, mus))
        parts = [_pooled((0.5 * x.float()).exp()) for x in log_variances]
        if self.reads_mean:
            parts += [_pooled(mu.float().abs()) for mu in mus]
        # the logarithm evens out the scale; a LayerNorm would take away the level common to all channels
        parts = [x.clamp(min=SMALLEST).log() for x in parts]
        if self.scale is not None:
            S = self.scale.mean_NC.shape[1]
            if statistics is None or statistics.shape[1] != S:
                raise ValueError(f"the estimator reads {S} statistics of the input, got "
                                 f"{None if statistics is None else tuple(statistics.shape)}")
            parts.append(self.scale.standardised(statistics).clamp(-LARGEST, LARGEST))
        read = torch.cat(parts, 1).to(self.mlp[0].weight.dtype)
        found = self.mlp(read).float().squeeze(1)
        return F.softplus(found) if self.unit is None else self.unit * found


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
