"""Pictures of what the model gets: frames in a row over the spectrogram."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

__all__ = ["draw_clip"]

FRAMES = 8  # a row holds no more than these, evenly spaced
CELL, STRIP, HEAD = 1.8, 1.6, 0.9  # inches: side of a frame, height of a spectrogram, caption above the picture


def draw_clip(
    preprocessor: nn.Module,
    inputs: Mapping[str, Tensor],
    title: str,
    out: str | Path,
    available: Mapping[str, bool] | None = None,
) -> Path:
    """One sample after the preprocessor, brought back to the sensors' units; a row for each modality.

    Shapes: inputs {m: (C,), (T, C), (N, C, H, W) or (N, C, T, H, W)}, one sample. Three channels are drawn as
        frames, one channel as a spectrogram (frequency upwards), vectors and sequences as a strip of values.
    Returns: the file written.
    """
    available = available or {}
    rows = []
    for m in preprocessor.modalities:
        values = _in_units(preprocessor, m, inputs[m].cpu())
        rows.append((m, values, available.get(m, True)))
    width = max(_columns(values) for _, values, _ in rows) * CELL
    heights = [CELL if _is_frames(values) else STRIP for _, values, _ in rows]
    figure = Figure(figsize=(max(width, 5.0), sum(heights) + HEAD), dpi=100)
    parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (m, values, there) in zip(parts, rows):
        _draw_row(part, m, values, there)
    figure.suptitle(title, fontsize=9)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return out


def _in_units(preprocessor: nn.Module, m: str, x: Tensor) -> np.ndarray:
    """Undo the normalisation."""
    mean, std = (getattr(preprocessor, f"{key}_{m}").cpu() for key in ("mean", "std"))
    if mean.ndim:
        shape = [1] * x.ndim
        shape[{1: 0, 2: 1}.get(x.ndim, 1)] = -1
        mean, std = mean.view(shape), std.view(shape)
    return (x * std + mean).numpy()


def _is_frames(values: np.ndarray) -> bool:
    return values.ndim >= 4 and values.shape[1] == 3


def _columns(values: np.ndarray) -> int:
    if _is_frames(values):
        return min(FRAMES, len(_frames(values)))
    return min(FRAMES, len(values)) if values.ndim >= 4 else 1


def _frames(values: np.ndarray) -> np.ndarray:
    """(N, 3, H, W) or (N, 3, T, H, W) -> (all, H, W, 3) uint8."""
    if values.ndim == 5:
        values = values.transpose(0, 2, 1, 3, 4).reshape(-1, *values.shape[1:2], *values.shape[3:])
    return np.clip(np.rint(values), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _draw_row(part, m: str, values: np.ndarray, there: bool) -> None:
    caption = f"{m}  {' x '.join(map(str, values.shape))}  {values.min():.3g} to {values.max():.3g}"
    part.suptitle(caption if there else f"{m}: missing", fontsize=8, x=0.01, ha="left")
    if not there:
        return
    pictures = _frames(values) if _is_frames(values) else values
    if pictures.ndim <= 2:
        axis = part.subplots()
        axis.imshow(np.atleast_2d(pictures), aspect="auto", cmap="viridis")
        axis.set_yticks([])
        return
    if not _is_frames(values):
        pictures = pictures.reshape(-1, *pictures.shape[-2:])
    chosen = np.linspace(0, len(pictures) - 1, min(FRAMES, len(pictures))).round().astype(int)
    for axis, index in zip(part.subplots(1, len(chosen), squeeze=False)[0], chosen):
        if _is_frames(values):
            axis.imshow(pictures[index], interpolation="nearest")
        else:
            axis.imshow(pictures[index], origin="lower", aspect="auto", cmap="viridis")
        axis.set_xticks([])
        axis.set_yticks([])


def describe(label: int | Sequence[float], classes: Sequence[str] | None) -> str:
    """A label by its class's name."""
    if not isinstance(label, int):
        return "mixed label"
    return f"{label} {classes[label]}" if classes else str(label)
