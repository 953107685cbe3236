"""Pictures of what the model gets: frames in a row over the spectrogram."""
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import Dataset

__all__ = ["draw_clip", "draw_sample"]

FRAMES = 8  # a row holds no more than these, evenly spaced
CELL, STRIP, HEAD = 1.8, 1.6, 0.35  # inches: side of a frame, height of a spectrogram, the line above them

FILL = dict(left=0.01, right=0.99, bottom=0.16, top=0.86, wspace=0.05)


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
    head, *parts = figure.subfigures(1 + len(rows), 1, height_ratios=[HEAD, *heights], squeeze=False)[:, 0]
    head.text(0.01, 0.5, title, fontsize=9, va="center")
    for part, (m, values, there) in zip(parts, rows):
        _draw_row(part, m, values, there)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return out


def draw_sample(dataset: Dataset, preprocessor: nn.Module, data: Mapping, out: str | Path) -> Path:
    """What the model gets of one sample, its label and its file, as ``OUT_<clip>.png``.

    Args:
        data: the preprocessor's output for a batch of one.
        out: path without an ending.
    """
    sample = data["data_samples"][0]
    label, classes = int(sample.gt_label), dataset.metainfo.get("classes")
    name = str(sample.metainfo["filename"])
    title = f"{label} {classes[label]}" if classes else f"class {label}"
    inputs = {m: x[0] for m, x in data["inputs"].items()}
    path = f"{out}_{re.sub('[^A-Za-z0-9]+', '-', Path(name).stem).strip('-')}.png"
    return draw_clip(preprocessor, inputs, f"{title}   {name}", path, sample.metainfo["available"])


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
        axis = part.subplots(gridspec_kw=FILL)
        axis.imshow(np.atleast_2d(pictures), aspect="auto", cmap="viridis")
        axis.set_yticks([])
        return
    if not _is_frames(values):
        pictures = pictures.reshape(-1, *pictures.shape[-2:])
    chosen = np.linspace(0, len(pictures) - 1, min(FRAMES, len(pictures))).round().astype(int)
    grid = part.subplots(1, len(chosen), squeeze=False, gridspec_kw=FILL)[0]
    for axis, index in zip(grid, chosen):
        if _is_frames(values):
            axis.imshow(pictures[index], interpolation="nearest")
        else:
            axis.imshow(pictures[index], origin="lower", aspect="auto", cmap="viridis")
        axis.set_xticks([])
        axis.set_yticks([])
