"""Predictions of a whole data set, scored frame by frame, and drawn."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmseg.datasets import BaseSegDataset
from torch import nn

from .visualize import Panel, draw_grid, error_panel, label_panel, sensor_panels

__all__ = ["LabelError", "Prediction", "draw", "mean_iou", "pick", "predict"]

IGNORE = 255


class LabelError(ValueError):
    """A frame has no label, or one of another size than its prediction."""


@dataclass
class Prediction:
    """One frame: label and prediction (H, W), mIoU over the classes in either, what the model got."""

    name: str
    label: np.ndarray
    prediction: np.ndarray
    score: float
    inputs: list[Panel]


def predict(model: nn.Module, item: dict, classes: int) -> Prediction:
    """Predict one item of a data set.

    Raises: LabelError if its label cannot be compared.
    """
    data = model.data_preprocessor(pseudo_collate([item]), training=False)
    with torch.no_grad():
        sample = model(data["inputs"], data["data_samples"], mode="predict")[0]
    name = Path(sample.metainfo["img_path"]).name
    if "gt_sem_seg" not in sample:
        raise LabelError(
            f"{name} has no label to score it by; name dataset.data_prefix.seg_map_path and put LoadSegLabel into the "
            "pipeline, or predict with inference_model"
        )
    label = sample.gt_sem_seg.data[0].cpu().numpy()
    prediction = sample.pred_sem_seg.data[0].long().cpu().numpy()  # floats from a head of one logit
    if label.shape != prediction.shape:
        raise LabelError(
            f"the label of {name} is {label.shape[0]}x{label.shape[1]}, its prediction has the file's size "
            f"{prediction.shape[0]}x{prediction.shape[1]}; put LoadSegLabel after Resize in the test pipeline"
        )
    inputs = sensor_panels(model.data_preprocessor, data["inputs"][0], sample.metainfo["available"])
    return Prediction(name, label, prediction, mean_iou(label, prediction, classes), inputs)


def pick(
    model: nn.Module,
    dataset: BaseSegDataset,
    number: int,
    spread: bool = False,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda frames: frames,
) -> list[Prediction]:
    """The ``number`` frames with the lowest mIoU, or with ``spread`` evenly from the lowest to the highest.

    Frames are scored first and the chosen ones predicted again: no more than these are held in memory.
    """
    classes = len(dataset.metainfo["classes"])
    scores = [predict(model, dataset[i], classes).score for i in progress(range(len(dataset)))]
    ranked = sorted(range(len(scores)), key=scores.__getitem__)
    number = min(number, len(ranked))
    chosen = [ranked[i] for i in np.linspace(0, len(ranked) - 1, number).round().astype(int)] if spread \
        else ranked[:number]
    return [predict(model, dataset[i], classes) for i in chosen]


def mean_iou(label: np.ndarray, prediction: np.ndarray, classes: int) -> float:
    """Mean IoU over the classes in the label or the prediction; 1 where nothing is labelled."""
    counts = label != IGNORE
    pair = label[counts].astype(np.int64) * classes + prediction[counts]
    matrix = np.bincount(pair, minlength=classes**2).reshape(classes, classes)
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return float((np.diag(matrix)[union > 0] / union[union > 0]).mean()) if counts.any() else 1.0


def draw(dataset: BaseSegDataset, predictions: Sequence[Prediction], out: Path, title: str) -> Path:
    """One PNG with a row per frame: inputs, label, prediction, errors."""
    palette, classes = dataset.metainfo["palette"], dataset.metainfo["classes"]
    rows = [
        [
            *p.inputs,
            label_panel(p.label, palette, "label"),
            label_panel(p.prediction, palette, f"prediction (mIoU {100 * p.score:.1f})"),
            error_panel(p.label, p.prediction),
        ]
        for p in predictions
    ]
    present = set().union(*(set(np.unique([p.label, p.prediction]).tolist()) for p in predictions))
    return draw_grid(rows, [p.name for p in predictions], out, classes, palette, sorted(present), title)
