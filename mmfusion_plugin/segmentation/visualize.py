"""Pictures of what the model gets and what it makes of it."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn
from torch.utils.data import Dataset

__all__ = ["Panel", "draw_grid", "draw_sample", "error_panel", "label_panel", "sensor_panels"]

IGNORE = 255
CELL, GAP, HEAD = 3, 0.12, 0.5  # inches: width of a picture, between pictures, for name and caption
RIGHT, WRONG = (225, 225, 225), (213, 94, 0)


@dataclass
class Panel:
    """One picture: (H, W, 3) uint8, and its caption."""

    image: np.ndarray
    caption: str


def sensor_panels(preprocessor: nn.Module, stacked: Tensor, available: Mapping[str, bool] | None = None) -> list[Panel]:
    """The preprocessor's output (sum C_m, H, W), taken apart and brought back to the sensors' units.

    Hatched grey is what the model is told nothing about: padding, invalid readings, missing sensors.
    """
    panels, start = [], 0
    padded = (stacked == 0).all(0).cpu().numpy()
    for m in preprocessor.modalities:
        mean, std = (getattr(preprocessor, f"{k}_{m}").cpu() for k in ("mean", "std"))
        part = stacked[start : start + len(mean)].cpu()
        start += len(mean)
        # zero is also the mean of a sensor: it means "unknown" where that sensor can have no reading
        known = (part != 0).any(0).numpy() if m in preprocessor.invalid else ~padded
        value = (part * std + mean).numpy().transpose(1, 2, 0)
        if available is not None and not available.get(m, True):
            panels.append(Panel(_hatch(np.zeros((*known.shape, 3), np.uint8), np.ones_like(known)), f"{m}: missing"))
        elif m in preprocessor.invalid and value.shape[2] == 1:
            panels.append(_metric_panel(m, value[..., 0], known))
        else:
            image = value if value.shape[2] == 3 else value[..., :1].repeat(3, 2)
            if m not in preprocessor.reverse:  # as LoadModalities read it: BGR
                image = image[..., ::-1]
            top = 255 if image.max() <= 256 else image.max()
            image = np.clip(image * (255 / top), 0, 255).astype(np.uint8)
            panels.append(Panel(_hatch(image, ~known), f"{m} {_span(value, known)}"))
    return panels


def label_panel(label: np.ndarray, palette: Sequence[Sequence[int]], caption: str) -> Panel:
    """(H, W) class numbers in the data set's colours; ignored pixels hatched."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    return Panel(_hatch(colours[np.clip(label, 0, IGNORE)], label == IGNORE), caption)


def error_panel(label: np.ndarray, prediction: np.ndarray) -> Panel:
    """Wrong pixels orange, right ones light, ignored ones hatched."""
    counts = label != IGNORE
    wrong = counts & (label != prediction)
    image = np.where(wrong[..., None], np.uint8(WRONG), np.uint8(RIGHT))
    share = wrong.sum() / max(1, counts.sum())
    return Panel(_hatch(image, ~counts), f"errors ({share:.0%} of labelled)")


def draw_grid(rows: Sequence[Sequence[Panel]], names: Sequence[str], out: str | Path,
              classes: Sequence[str] = (), palette: Sequence[Sequence[int]] = (),
              present: Sequence[int] | None = None, title: str = "") -> Path:
    """Write rows of panels, each under its name, and a legend of the classes ``present`` to a PNG."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    columns = max(len(row) for row in rows)
    shown = range(len(classes)) if present is None else [c for c in present if c < len(classes)]
    per_line = max(2, (columns * CELL * 2) // 3)  # a class name needs an inch and a half
    # inches, from the top: title, rows (name, caption, picture), legend
    top = 0.4 if title else 0.1
    heights = [CELL * max(p.image.shape[0] / p.image.shape[1] for p in row) for row in rows]
    legend = 0.25 * -(-(len(shown) + 1) // per_line) + 0.25 if classes else 0.1
    width, height = columns * (CELL + GAP) + GAP, top + sum(heights) + HEAD * len(rows) + legend
    figure = Figure(figsize=(width, height))  # pyplot would choose a window for the whole process
    y = height - top
    for row, name, tall in zip(rows, names, heights):
        figure.text(GAP / width, (y - 0.16) / height, name, fontsize=8, fontweight="bold", va="center")
        y -= HEAD + tall
        for i, panel in enumerate(row):
            x = GAP + i * (CELL + GAP)
            axis = figure.add_axes((x / width, y / height, CELL / width, tall / height))
            axis.axis("off")
            axis.imshow(panel.image, interpolation="nearest")
            axis.set_title(panel.caption, fontsize=8, pad=3)
    if classes:
        patches = [Patch(facecolor=np.array(palette[c]) / 255, edgecolor="black", linewidth=0.5, label=classes[c])
                   for c in shown]
        patches.append(Patch(facecolor="0.7", edgecolor="0.5", hatch="/////", linewidth=0, label="ignored / unknown"))
        figure.legend(handles=patches, loc="lower center", ncol=per_line, fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=10, y=1 - 0.12 / height, va="top")
    figure.savefig(out, dpi=100)
    return out


def draw_sample(dataset: Dataset, preprocessor: nn.Module, data: Mapping, out: str | Path) -> Path:
    """What the model gets of one sample beside its label, if it has one, as ``OUT_<frame>.png``.

    Args:
        data: the preprocessor's output for a batch of one.
        out: path without an ending.
    """
    sample, classes, palette = data["data_samples"][0], dataset.metainfo["classes"], dataset.metainfo["palette"]
    row, present = sensor_panels(preprocessor, data["inputs"][0], sample.metainfo["available"]), []
    if "gt_sem_seg" in sample:
        label = sample.gt_sem_seg.data[0].cpu().numpy()
        row.append(label_panel(label, palette, "label"))
        present = sorted(set(label.ravel().tolist()))
    name = sample.metainfo["img_path"]
    path = Path(f"{out}_{Path(sample.metainfo.get('seg_map_path') or name).stem}.png")
    return draw_grid([row], [name], path, classes, palette, present)


def _metric_panel(m: str, metres: np.ndarray, known: np.ndarray) -> Panel:
    low, high = np.percentile(metres[known], (1, 99)) if known.any() else (0.0, 1.0)
    scaled = np.clip((metres - low) / max(high - low, 1e-6), 0, 1)
    image = (colormaps["viridis"](scaled)[..., :3] * 255).astype(np.uint8)
    caption = f"{m} {low:.2f} m (dark) to {high:.2f} m (bright), {1 - known.mean():.0%} unknown"
    return Panel(_hatch(image, ~known), caption)


def _hatch(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Grey with darker diagonal stripes: no sensor and no palette looks like that."""
    y, x = np.indices(where.shape)
    stripes = np.where(((x + y) // 3 % 2)[..., None], 0.55, 0.7) * 255
    return np.where(where[..., None], stripes, image).astype(np.uint8)


def _span(value: np.ndarray, known: np.ndarray) -> str:
    if not known.any():
        return "(nothing known)"
    return f"{value[known].min().round():.0f} to {value[known].max().round():.0f}".replace("-0 ", "0 ")
