"""Counts over predictions: confusion matrix, expected calibration error, per-class IoU."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["BINS", "Counts", "class_iou", "labels_and_probabilities"]

BINS = 15
IGNORE = 255
FUSED = "fused"


# N samples or pixels, K classes
class Counts:
    """Running counts of (label, prediction) and of confidence against correctness.

    The expected calibration error is Guo et al.'s (ICML 2017): 15 bins of equal width over the confidence of the
    predicted class, sum over bins of (share of the predictions in the bin) x |accuracy - mean confidence|. A
    confidence on a bin's upper edge counts in that bin.

    Args:
        classes: K.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.confusion_KK = torch.zeros(classes, classes, dtype=torch.int64)  # [label, prediction]
        self.bins_3 = torch.zeros(3, BINS, dtype=torch.float64)  # number, sum of confidence, number correct

    def update(self, labels_N: Tensor, probabilities_NK: Tensor, predicted_N: Tensor | None = None) -> None:
        """Count some. ``predicted_N``: the classes predicted, None: the most probable ones.

        Raises: ValueError for a label outside 0..K-1 or shapes that do not agree.
        """
        labels_N, probabilities_NK = labels_N.cpu().long(), probabilities_NK.cpu().double()
        if probabilities_NK.shape != (len(labels_N), self.classes):
            raise ValueError(
                f"probabilities of shape {tuple(probabilities_NK.shape)} for {len(labels_N)} labels and "
                f"{self.classes} classes")
        if len(labels_N) == 0:
            return
        if labels_N.min() < 0 or labels_N.max() >= self.classes:
            raise ValueError(f"labels {labels_N.min()}..{labels_N.max()}, expected 0..{self.classes - 1}")
        predicted_N = probabilities_NK.argmax(1) if predicted_N is None else predicted_N.cpu().long()
        confidence_N = probabilities_NK.gather(1, predicted_N[:, None])[:, 0]
        pairs = labels_N * self.classes + predicted_N
        self.confusion_KK += pairs.bincount(minlength=self.classes**2).reshape(self.classes, self.classes)
        place = (confidence_N * BINS).ceil().long().clamp(1, BINS) - 1
        correct = (labels_N == predicted_N).double()
        for i, values in enumerate((torch.ones_like(correct), confidence_N, correct)):
            self.bins_3[i] += place.bincount(values, BINS)

    @property
    def calibration_error(self) -> float:
        """In [0, 1]; NaN where nothing was counted."""
        number, confidence, correct = self.bins_3
        return float((correct - confidence).abs().sum() / number.sum()) if number.sum() > 0 else float("nan")

    def state(self) -> dict[str, Tensor]:
        return dict(confusion=self.confusion_KK, bins=self.bins_3)

    def load(self, state: dict[str, Tensor]) -> None:
        self.confusion_KK, self.bins_3 = state["confusion"].clone(), state["bins"].clone()


def labels_and_probabilities(sample, average_clips: str | None = "prob") -> tuple[Tensor, Tensor, Tensor] | None:
    """(N,) labels, (N, K) probabilities, (N,) predicted classes of one predicted data sample of either task.

    N is 1 for a clip (its fused score) and the number of labelled pixels for a picture. None for several labels.

    Args:
        average_clips: what a clip's score is: ``prob``, or logits otherwise.
    Raises: ValueError for a sample that holds neither.
    """
    if "gt_sem_seg" in sample and "seg_logits" in sample:
        label, logits = sample.gt_sem_seg.data[0], sample.seg_logits.data.float()
        # of one channel mmsegmentation gives the second class's probability, and decides by the head's threshold
        shares = torch.stack([1 - logits[0], logits[0]]) if len(logits) == 1 else logits.softmax(0)
        counts = label != IGNORE
        return label[counts], shares[:, counts].T, sample.pred_sem_seg.data[0][counts]
    if "gt_label" in sample and "pred_score" in sample:
        if len(sample.gt_label) != 1:
            return None
        score = sample.pred_score
        score = (score[FUSED] if isinstance(score, dict) else score).float()
        shares = (score if average_clips == "prob" else score.softmax(0))[None]
        return sample.gt_label, shares, shares.argmax(1)
    raise ValueError(f"the model predicts {sorted(sample.keys())}, expected seg_logits or pred_score beside a label")


def class_iou(confusion: Sequence[Sequence[int]] | Tensor) -> list[float]:
    """IoU of each class, in [0, 1]; NaN for a class that is neither labelled nor predicted."""
    matrix = torch.as_tensor(confusion).double()
    hit = matrix.diagonal()
    return (hit / (matrix.sum(0) + matrix.sum(1) - hit)).tolist()
