"""What UDML makes of noise: over training, and over the strength injected at test. Tables, correlations, plots."""
from __future__ import annotations

import copy
import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .training_logs import Series, find_logs, read_logs

__all__ = [
    "Curves", "is_rising", "plot_response", "plot_training", "respond", "roc_area", "spearman", "summarise",
    "training_curves", "write_csv",
]

LOGGED = ("weight", "noise", "novelty", "dependency")
QUANTITIES = ("weight", "noise", "level", "novelty", "dependency")
LABELS = dict(weight="weight", noise="predicted noise, levels", level="level that the weights read",
              novelty="novelty, standard deviations", dependency="dependency, sum of |logits|")

Row = dict[str, Any]
Curves = dict[str, Series]


# --- over training -------------------------------------------------------------------------------


def training_curves(work_dir: str | Path) -> Curves:
    """{quantity: {modality: [(step, value)]}} from the ``scalars.json`` of a run and of what it resumed from.

    Raises: FileNotFoundError if the folder holds no such log; ValueError if UDML logged nothing in it, or a log is
        damaged.
    """
    logs = find_logs(work_dir)
    if not logs:
        raise FileNotFoundError(f"no */vis_data/scalars.json below {work_dir}: is it the work dir of a training?")
    found: Curves = {}
    for name, points in read_logs(work_dir).items():
        match = re.fullmatch(rf"(?:train/)?fusion\.({'|'.join(LOGGED)})\.([^.]+)", name)
        if match:
            found.setdefault(match[1], {})[match[2]] = points
    if not found:
        raise ValueError(f"{logs[-1]} holds no fusion.weight.*: the neck of this training is not UDML")
    return {what: found[what] for what in LOGGED if what in found}


def plot_training(curves: Curves, out: str | Path) -> Path:
    """One panel each for weight, predicted noise, novelty and dependency, one line for each modality."""
    figure, axes = _panels(len(curves))
    for axis, (what, lines) in zip(axes, curves.items()):
        for m, points in lines.items():
            axis.plot(*zip(*points), label=m)
        axis.set(xlabel="step", ylabel=LABELS[what])
        axis.legend()
    return _saved(figure, out)


# --- over injected noise -------------------------------------------------------------------------


def respond(
    model: torch.nn.Module, batches: Iterable[Mapping], modality: str, type: str, levels: Sequence[float], seed: int = 0
) -> list[Row]:
    """What the neck says of every sample with ``type`` noise of each level on ``modality``; level 0 is clean.

    Each batch is read once; a sample that lacks the modality is left out. Views of a sample are averaged.
    ``data_preprocessor.test_noise`` is what it was afterwards.

    Args:
        model: of either task, with a UDML neck; what a level means stands in its ``train_noise``.
        batches: of the test loader.

    Returns: rows with ``sample`` (its place in the loader), ``type``, ``level`` and ``<quantity>.<modality>`` of
        weight, noise (predicted), level (read by the weights, novelty included), novelty and dependency where there.
    Raises: ValueError if the model or its neck gives no such values, or for noise that the config does not describe.
    """
    if not hasattr(model, "fusion_output") or not hasattr(model.data_preprocessor, "noise"):
        raise ValueError(f"{model.__class__.__name__} is no FusionEncoderDecoder or FusionRecognizer")
    noise, rows, first = model.data_preprocessor.noise, [], 0
    before = noise.test_noise
    try:
        for batch in batches:
            for level in levels:
                noise.set_test_noise({modality: dict(type=type, level=level, seed=seed)})
                data = model.data_preprocessor(copy.deepcopy(batch), training=False)  # samples are changed in place
                output = model.fusion_output(data["inputs"], data["data_samples"])
                there = [sample.metainfo.get("available", {}).get(modality, True) for sample in data["data_samples"]]
                found = _rows(output.per_sample, len(there), dict(type=type, level=level), first)
                rows += [row for row, here in zip(found, there) if here]
            first += len(data["data_samples"])
    finally:
        noise.test_noise = before
    if first and not rows:
        raise ValueError(f"no sample of the test set has {modality!r}")
    if not rows or f"noise.{modality}" not in rows[0]:
        raise ValueError(
            f"the neck {model.neck.__class__.__name__} predicts no noise of {modality!r}; it takes type='UDML' with a "
            "quality, and a test set that is not empty"
        )
    return rows


def _rows(per_sample: Mapping[str, torch.Tensor], number: int, known: Mapping, first: int) -> list[Row]:
    columns = {}
    for name, values in per_sample.items():
        match = re.fullmatch(rf"fusion\.(({'|'.join(QUANTITIES)})\.[^.]+)", name)
        if match:
            columns[match[1]] = values.float().reshape(number, -1).mean(1).tolist()
    return [dict(sample=first + b, **known, **{name: x[b] for name, x in columns.items()}) for b in range(number)]


def write_csv(rows: Sequence[Row], out: str | Path) -> Path:
    """One line for each sample and level."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return out


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation, ties at their mean rank; NaN where either is constant.

    Raises: ValueError for different lengths or less than two values.
    """
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"need two or more pairs, got {len(x)} and {len(y)} values")
    ranks = []
    for values in (x, y):
        _, place, count = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
        ranks.append((count.cumsum() - (count - 1) / 2)[place])
    a, b = (r - r.mean() for r in ranks)
    size = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / size) if size > 0 else float("nan")


def roc_area(clean: Sequence[float], other: Sequence[float]) -> float:
    """Probability that a value of ``other`` is larger than one of ``clean``, ties counting half.

    Raises: ValueError if either is empty.
    """
    if not len(clean) or not len(other):
        raise ValueError(f"need values of both, got {len(clean)} and {len(other)}")
    values = np.concatenate([np.asarray(clean, float), np.asarray(other, float)])
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (count.cumsum() - (count - 1) / 2)[place][len(clean):]
    return float((ranks.mean() - (len(other) + 1) / 2) / len(clean))


def is_rising(values: Sequence[float]) -> bool:
    """Whether each is larger than the one before."""
    return all(a < b for a, b in zip(values, values[1:]))


def summarise(rows: Sequence[Row], modality: str, low: float = 4.0, quantity: str = "noise") -> dict[str, Any]:
    """How faithfully ``quantity`` of ``modality`` follows the injected level.

    Returns: ``spearman`` per sample over all levels, ``spearman_low`` over levels up to ``low``, ``means``
        {level: mean over samples} and ``rising``, whether they rise strictly; ``weights`` {level: mean weight}.
    """
    name = f"{quantity}.{modality}"
    levels = sorted({row["level"] for row in rows})

    def correlation(chosen: list[Row]) -> float:
        pairs = [(row["level"], row[name]) for row in chosen]
        return spearman(*zip(*pairs)) if len(pairs) > 1 else float("nan")

    means, weights = (
        {level: float(np.mean([row[key] for row in rows if row["level"] == level])) for level in levels}
        for key in (name, f"weight.{modality}"))
    return dict(
        spearman=correlation(list(rows)), spearman_low=correlation([row for row in rows if row["level"] <= low]),
        means=means, rising=is_rising([means[level] for level in levels]), weights=weights)


def plot_response(rows: Sequence[Row], modality: str, out: str | Path) -> Path:
    """Predicted noise and weight of every modality over the level injected into ``modality``: mean and 10-90 %."""
    shown = [what for what in ("noise", "weight", "novelty") if f"{what}.{modality}" in rows[0]]
    levels = sorted({row["level"] for row in rows})
    figure, axes = _panels(len(shown))
    for axis, what in zip(axes, shown):
        for m in [name.split(".")[1] for name in rows[0] if name.startswith(f"{what}.")]:
            values = [[row[f"{what}.{m}"] for row in rows if row["level"] == level] for level in levels]
            axis.plot(levels, [np.mean(v) for v in values], marker="o", markersize=3, label=m)
            axis.fill_between(levels, *zip(*[np.percentile(v, [10, 90]) for v in values]), alpha=0.2)
        if what == "noise":
            axis.plot(levels, levels, color="grey", linestyle=":", label="injected")
        axis.set(xlabel=f"{rows[0]['type']} on {modality}, level", ylabel=LABELS[what])
        axis.legend()
    return _saved(figure, out)


def _panels(number: int):
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    figure = Figure(figsize=(4.2 * number, 3.4), layout="constrained")
    return figure, figure.subplots(1, number, squeeze=False)[0]


def _saved(figure, out: str | Path) -> Path:
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    return out
