"""Texture of an input in 29 numbers, from which noise, and what is no known noise, are read. Plain torch.

Encoders are trained to ignore noise, so their features show it badly. In the energies of a signal's wavelet bands it
is plain to see: white noise fills all of them, blur empties the finest, an occlusion is flat where nothing else is.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["NUM_STATISTICS", "input_statistics"]

NUM_STATISTICS = 29  # mean, deviation, and three numbers for each of nine bands
SCALES = {1: 9, 2: 3}  # axes: halvings; on two axes each gives three bands
SMALLEST = 1e-3  # of a normalised input: below it a coefficient is 0, and logarithms end


@torch.no_grad()
def input_statistics(x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """Mean and log deviation, then for each Haar band log mean |c|, log root mean c^2 and the share of c = 0.

    A grid of two axes (picture, depth, spectrogram) is halved three times into three bands each, a sequence (waveform,
    vector) nine times into one each. Bands of a scale that the grid is too small for read 0. Means over channels.

    Args:
        x: normalised input: (B, C), (B, C, T), (B, C, H, W) or (B, C, T, H, W), where the last two axes count.
        grid: (h, w), for (B, C, H, W): of each cell instead of the whole.

    Shapes: -> (B, 29), with a grid (B, 29, h, w), float32; values that are not finite count as 0.
    Raises: ValueError for another rank.
    Source: Haar wavelet energies, as in Mallat, IEEE PAMI 1989; ours as a reading of noise.
    """
    if not 2 <= x.ndim <= 5:
        raise ValueError(
            f"input statistics take (B, C), (B, C, T), (B, C, H, W) or (B, C, T, H, W), got {tuple(x.shape)}")
    if grid is not None and x.ndim != 4:
        raise ValueError(f"input statistics of a grid's cells take (B, C, H, W), got {tuple(x.shape)}")
    axes = 1 if x.ndim < 4 else 2
    x = x.float().nan_to_num(posinf=0.0, neginf=0.0)
    x = x[:, None] if x.ndim == 2 else x.flatten(1, -1 - axes)
    mean = _mean(axes, grid)
    centred = x - x.mean(tuple(range(2, x.ndim)), keepdim=True)
    variance = mean(centred.square()) - mean(centred).square()
    found = [mean(x), variance.clamp(min=SMALLEST**2).sqrt().log()]
    for _ in range(SCALES[axes]):
        x, bands = _haar(x, axes)
        for band in bands:
            if band.numel() == 0:
                found += [torch.zeros_like(found[0])] * 3
                continue
            size = band.abs()
            found += [mean(size).clamp(min=SMALLEST).log(), mean(size.square()).sqrt().clamp(min=SMALLEST).log(),
                      mean((size < SMALLEST).float())]
    return torch.stack([value.mean(1) for value in found], 1)


def _mean(axes: int, grid: tuple[int, int] | None) -> Callable[[Tensor], Tensor]:
    """Over all positions, or over those of each cell."""
    if grid is not None:
        return lambda x: F.adaptive_avg_pool2d(x, grid)
    return lambda x: x.mean(tuple(range(-axes, 0)))


def _haar(x: Tensor, axes: int) -> tuple[Tensor, list[Tensor]]:
    """(mean of neighbours, differences); an odd last row or column is left out."""
    if axes == 1:
        x = x[..., : x.shape[-1] // 2 * 2]
        a, b = x[..., ::2], x[..., 1::2]
        return (a + b) / 2, [(a - b) / 2**0.5]
    x = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return (a + b + c + d) / 4, [(a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2]
