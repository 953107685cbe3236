"""Encoder damage: what a linear probe reads from encoders that were trained together, beside encoders trained alone.

Source: SCFAE, Table 6 (fusion removed, linear probe, difference to standalone training). Maps get a 1x1 convolution,
which is the same linear probe at every position.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from .calibration import IGNORE, class_iou
from .evidence import COLOURS, figure_panels, markdown_table, save_figure
from .features import neck_inputs, pick_positions, pooled, stacked_levels

__all__ = ["Probe", "damage_markdown", "damage_rows", "fit_probe", "plot_damage", "probe_encoders"]

Report = Callable[[int, int], None]
PROBE = ("multinomial logistic regression on features standardised by the training samples, L-BFGS to convergence or "
         "{steps} steps, mean cross entropy + {decay:g}/2 |W|^2; no augmentation")
DECAY, STEPS = 1e-3, 200


# N samples or positions, C channels, K classes
class Probe(nn.Module):
    """Standardise, then one linear layer. Shapes: (N, C) -> logits (N, K)."""

    def __init__(self, mean_C: Tensor, std_C: Tensor, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean_C", mean_C)
        self.register_buffer("std_C", std_C)
        self.linear = nn.Linear(len(mean_C), classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_NC: Tensor) -> Tensor:
        return self.linear((x_NC - self.mean_C) / self.std_C)


def fit_probe(x_NC: Tensor, labels_N: Tensor, classes: int, decay: float = DECAY, steps: int = STEPS) -> Probe:
    """The probe that ``PROBE`` describes; it draws nothing, so the same features give the same probe.

    Raises: ValueError for no sample, non-finite features or labels outside 0..K-1.
    """
    if len(x_NC) == 0 or len(x_NC) != len(labels_N):
        raise ValueError(f"{len(x_NC)} features for {len(labels_N)} labels: nothing to fit a probe on")
    if not torch.isfinite(x_NC).all():
        raise ValueError("the features hold non-finite values")
    if labels_N.min() < 0 or labels_N.max() >= classes:
        raise ValueError(f"labels {int(labels_N.min())}..{int(labels_N.max())}, expected 0..{classes - 1}")
    x_NC = x_NC.float().clone()  # out of no_grad and inference mode
    std_C = x_NC.std(0, unbiased=False)
    probe = Probe(x_NC.mean(0), torch.where(std_C > 1e-6, std_C, 1.0), classes).to(x_NC.device)
    labels_N = labels_N.to(x_NC.device)
    optimizer = torch.optim.LBFGS(
        probe.parameters(), max_iter=steps, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(probe(x_NC), labels_N) + decay / 2 * probe.linear.weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return probe.eval()


def probe_encoders(
    model: nn.Module, train: Mapping[str, Any], train_set: Dataset, test: Mapping[str, Any], test_set: Dataset,
    classes: int, modalities: Sequence[str] | None = None, *, positions: int = 50, seed: int = 0,
    decay: float = DECAY, steps: int = STEPS, report: Report | None = None
) -> dict[str, dict[str, Any]]:
    """Fit one probe for each frozen encoder on ``train_set`` and score it on ``test_set``.

    Args:
        train, test: dataloaders' configs; ``train`` without augmentation.
        modalities: None: all of the model's.
        positions: of a picture's labelled places, how many the probe is fitted on.

    Returns: {m: dict(accuracy=, mIoU= (maps) or None, train_samples=, test_samples=, correct=[0/1] (vectors) or
        None)}, shares of 1. Samples that lack m are left out of its numbers.
    """
    wanted = list(model.backbone.encoders) if modalities is None else list(modalities)
    features: dict[str, list[Tensor]] = {m: [] for m in wanted}
    labels: dict[str, list[Tensor]] = {m: [] for m in wanted}
    for sample in neck_inputs(model, train, train_set, report):
        for m in wanted:
            if m not in sample.levels:
                continue
            if sample.dense:
                maps = stacked_levels(sample.levels[m])
                places, found = pick_positions(sample.label, maps.shape[1:], positions, sample.index, seed)
                features[m].append(maps.flatten(1)[:, places.to(maps.device)].T.cpu())
                labels[m].append(found)
            else:
                features[m].append(pooled(sample.levels[m])[None].cpu())
                labels[m].append(sample.label)
    probes = {}
    for m in wanted:
        if not features[m]:
            raise ValueError(f"no training sample has {m!r}: nothing to fit a probe on")
        probes[m] = fit_probe(torch.cat(features[m]), torch.cat(labels[m]).long(), classes, decay, steps)
    confusion = {m: torch.zeros(classes, classes, dtype=torch.int64) for m in wanted}
    correct: dict[str, list[int]] = {m: [] for m in wanted}
    dense = False
    for sample in neck_inputs(model, test, test_set, report):
        dense = sample.dense
        for m in wanted:
            if m in sample.levels:
                label, predicted = _predict(probes[m], sample, m)
                pairs = label * classes + predicted
                confusion[m] += pairs.bincount(minlength=classes**2).reshape(classes, classes)
                if not dense:
                    correct[m].append(int(label[0] == predicted[0]))
    return {m: dict(
        accuracy=float(confusion[m].diagonal().sum() / confusion[m].sum()),
        mIoU=float(torch.tensor(class_iou(confusion[m])).nanmean()) if dense else None,
        train_samples=len(features[m]), test_samples=len(test_set), correct=None if dense else correct[m])
        for m in wanted}


@torch.no_grad()
def _predict(probe: Probe, sample: Any, m: str) -> tuple[Tensor, Tensor]:
    """(labels, predictions) of all labelled pixels, or of the sample."""
    if not sample.dense:
        return sample.label.long(), probe(pooled(sample.levels[m])[None].cpu()).argmax(1)
    maps = stacked_levels(sample.levels[m]).cpu()
    logits = probe(maps.flatten(1).T).T.unflatten(1, maps.shape[1:])[None]
    logits = F.interpolate(logits, sample.label.shape, mode="bilinear", align_corners=False)[0]
    known = sample.label != IGNORE
    return sample.label[known].long(), logits.argmax(0)[known]


def damage_rows(joint: Mapping[str, Mapping], alone: Mapping[str, Mapping]) -> list[dict[str, Any]]:
    """One row per modality: the joint encoder's probe, the reference's, the difference and its standard error.

    The standard error is that of paired differences over test samples (None for maps, whose pixels are dependent, and
    where the two were not tested on the same number of samples); it says nothing of the spread between trainings.
    """
    rows = []
    for m, found in joint.items():
        metric = "mIoU" if found["mIoU"] is not None else "accuracy"
        row = dict(modality=m, metric=metric, joint=found[metric], alone=None, difference=None, standard_error=None)
        if m in alone:
            other = alone[m]
            row.update(alone=other[metric], difference=found[metric] - other[metric])
            a, b = found["correct"], other["correct"]
            if a is not None and b is not None and len(a) == len(b) > 1:
                pairs = torch.tensor(a).double() - torch.tensor(b).double()
                row["standard_error"] = float(pairs.std() / math.sqrt(len(pairs)))
        rows.append(row)
    return rows


def damage_markdown(record: Mapping[str, Any]) -> str:
    """The table and what made it."""

    def percent(value: float | None, sign: str = "") -> str:
        return "-" if value is None else f"{100 * value:{sign}.1f}"

    rows = []
    for row in record["rows"]:
        difference = percent(row["difference"], "+")
        if row["standard_error"] is not None:
            difference += f" ± {100 * row['standard_error']:.1f}"
        reference = record["references"].get(row["modality"], {})
        rows.append([row["modality"], row["metric"], percent(row["joint"]), percent(row["alone"]), difference,
                     reference.get("checkpoint", "not given: --reference")])
    head = ["encoder", "metric (%)", "trained jointly", "trained alone", "difference", "reference"]
    return (
        f"Linear probes on frozen encoders: {record['probe']}.\n\n{markdown_table(head, rows)}\n\n"
        "Negative: joint training left the encoder with less that a linear probe can read. ± is the standard error "
        f"over test samples, not over trainings.\n\n`{record['command']}`\n")


def plot_damage(record: Mapping[str, Any], out: str | Path) -> Path:
    """Two bars per encoder: trained jointly and alone."""
    rows = record["rows"]
    figure, (axis,) = figure_panels(1, width=1.5 * len(rows) + 2.5)
    for i, (key, label) in enumerate((("joint", "trained jointly"), ("alone", "trained alone"))):
        values = [100 * row[key] if row[key] is not None else 0 for row in rows]
        places = [k + 0.4 * i - 0.2 for k in range(len(rows))]
        axis.bar(places, values, 0.38, color=COLOURS[i], label=label)
        for x, value, row in zip(places, values, rows):
            axis.text(x, value, "n/a" if row[key] is None else f"{value:.1f}", ha="center", va="bottom", fontsize=8)
    axis.set_xticks(range(len(rows)), [row["modality"] for row in rows])
    axis.set(ylabel=f"linear probe, {rows[0]['metric']} (%)", ylim=(0, 108))
    axis.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2)
    return save_figure(figure, out)
