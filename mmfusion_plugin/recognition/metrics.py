"""mmaction2's metrics over a head that scores several things."""
from __future__ import annotations

from collections.abc import Sequence

from mmaction.evaluation import ConfusionMatrix
from mmaction.registry import METRICS

from .heads import FUSED

__all__ = ["FusionConfusionMatrix"]


@METRICS.register_module()
class FusionConfusionMatrix(ConfusionMatrix):
    """mmaction2's ConfusionMatrix, which reads one score, over one of :class:`FusionHead`'s.

    Args:
        score: ``fused`` or a modality of ``cls_head.modality_in_channels``.
        kwargs: as in ConfusionMatrix.

    Gives: ``confusion_matrix/result`` (K, K), rows are the true classes.
    Raises: ValueError for a score that the head does not give.
    """

    def __init__(self, score: str = FUSED, **kwargs) -> None:
        super().__init__(**kwargs)
        self.score = score

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        chosen = []
        for sample in data_samples:
            scores = sample["pred_score"]
            if self.score not in scores:
                raise ValueError(
                    f"FusionConfusionMatrix.score is {self.score!r}, model.cls_head scores {sorted(scores)}"
                )
            chosen.append({**sample, "pred_score": scores[self.score]})
        super().process(data_batch, chosen)
