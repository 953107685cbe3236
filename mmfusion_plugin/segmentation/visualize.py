"""Pictures of what the model gets and what it makes of it."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch
from torch import Tensor, nn

__all__ = ["Panel", "draw_grid", "error_panel", "label_panel", "sensor_panels"]

IGNORE = 255
UNKNOWN = (0.55, 0.55, 0.55)
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
    for m in preprocessor.modalities:
        mean, std = (getattr(preprocessor, f"{k}_{m}").cpu() for k in ("mean", "std"))
        part = stacked[start : start + len(mean)].cpu()
        start += len(mean)
        known = (part != 0).any(0).numpy()
        value = (part * std + mean).numpy().transpose(1, 2, 0)
        if available is not None and not available.get(m, True):
            panels.append(Panel(_hatch(np.zeros((*known.shape, 3), np.uint8), ~known), f"{m}: missing"))
        elif m in preprocessor.invalid and value.shape[2] == 1:
            panels.append(_metric_panel(m, value[..., 0], known))
        else:
            image = value if value.shape[2] == 3 else value[..., :1].repeat(3, 2)
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
    """Write rows of panels with a legend of the classes that are ``present`` to a PNG."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    columns = max(len(row) for row in rows)
    height, width = rows[0][0].image.shape[:2]
    cell = 3.0
    shown = range(len(classes)) if present is None else [c for c in present if c < len(classes)]
    legend = 0.3 * -(-len(list(shown)) // (2 * columns)) + 0.2 if classes else 0.0
    figure_height = len(rows) * (cell * height / width + 0.45) + legend + (0.4 if title else 0)
    figure, axes = plt.subplots(len(rows), columns, figsize=(cell * columns, figure_height), squeeze=False)
    for row, name, line in zip(rows, names, axes):
        for axis in line:
            axis.axis("off")
        for panel, axis in zip(row, line):
            axis.imshow(panel.image, interpolation="nearest")
            axis.set_title(panel.caption, fontsize=8)
        line[0].text(0, 1.16, name, transform=line[0].transAxes, fontsize=8, fontweight="bold")
    if classes:
        patches = [Patch(color=np.array(palette[c]) / 255, label=classes[c]) for c in shown]
        patches.append(Patch(facecolor=UNKNOWN, hatch="////", label="ignored / unknown"))
        figure.legend(handles=patches, loc="lower center", ncol=2 * columns, fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, legend / figure_height, 1, 1))
    figure.savefig(out, dpi=100)
    plt.close(figure)
    return out


def _metric_panel(m: str, metres: np.ndarray, known: np.ndarray) -> Panel:
    low, high = np.percentile(metres[known], (1, 99)) if known.any() else (0.0, 1.0)
    scaled = np.clip((metres - low) / max(high - low, 1e-6), 0, 1)
    image = (plt.get_cmap("viridis")(scaled)[..., :3] * 255).astype(np.uint8)
    return Panel(_hatch(image, ~known), f"{m} {low:.2f} to {high:.2f} m, {1 - known.mean():.0%} invalid")


def _hatch(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Grey with darker diagonal stripes: no sensor and no palette looks like that."""
    y, x = np.indices(where.shape)
    stripes = np.where(((x + y) // 3 % 2)[..., None], 0.55, 0.7) * 255
    return np.where(where[..., None], stripes, image).astype(np.uint8)


def _span(value: np.ndarray, known: np.ndarray) -> str:
    if not known.any():
        return "(nothing known)"
    return f"{value[known].min():.0f} to {value[known].max():.0f}"
