"""Predictions as files, numbered as the data set's labels are stored."""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS
from PIL import Image

__all__ = ["SavedLabelMaps"]

IGNORE = 255


@METRICS.register_module()
class SavedLabelMaps(BaseMetric):
    """Writes each prediction to ``folder``/<frame>.png; no score.

    The numbers are those of the stored labels: what ``metainfo.classes`` chose or reordered is turned back, and with
    labels from 1 on the first class is 1. Needs no labels.

    Raises: ValueError where several stored numbers are one class, which no number of the prediction can tell apart.
    """

    default_prefix = "maps"

    def __init__(self, folder: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.folder = Path(folder)

    def process(self, data_batch: Mapping, data_samples: Sequence[Mapping]) -> None:
        stored = _stored_numbers((self.dataset_meta or {}).get("label_map"))
        for sample in data_samples:
            numbers = stored[sample["pred_sem_seg"]["data"].squeeze(0).long().cpu().numpy()]
            path = self.folder / f"{sample.get('frame') or Path(sample['img_path']).stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((numbers + bool(sample.get("reduce_zero_label"))).astype(np.uint8)).save(path)
            self.results.append(str(path))

    def compute_metrics(self, results: list) -> dict:
        return {}


def _stored_numbers(label_map: Mapping[int, int] | None) -> np.ndarray:
    """(256,): the class's number as stored, less the data set's ``label_offset``."""
    numbers = np.arange(256)
    if label_map:
        wanted = {old: new for old, new in label_map.items() if new != IGNORE}
        several = [new for new, times in Counter(wanted.values()).items() if times > 1]
        if several:
            raise ValueError(
                f"dataset.metainfo.classes makes one class ({several[0]}) of the stored numbers "
                f"{[old for old, new in wanted.items() if new == several[0]]}: predictions cannot be saved numbered as "
                "the labels; name each class once, or leave out --out"
            )
        numbers[list(wanted.values())] = list(wanted)
    return numbers
