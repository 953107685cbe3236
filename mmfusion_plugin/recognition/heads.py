"""Fused and per-modality classification."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmaction.models.heads import BaseHead
from mmaction.registry import MODELS
from mmengine.model import ModuleDict
from mmengine.model.weight_init import normal_init
from torch import Tensor, nn

from mmfusion_plugin.models.availability import availability

__all__ = ["FUSED", "FusionHead"]

FUSED = "fused"
AVERAGES = ("prob", "score")


# B batch, V views (clips x crops) of one sample, C channels, K classes
@MODELS.register_module()
class FusionHead(BaseHead):
    """A linear classifier on the fused vector and one on each modality's own.

    The losses are mmaction2's (``loss_cls``, label smoothing, soft labels). A modality's classifier is
    trained on the samples in which the modality is available: its loss ``aux_<m>.loss_cls`` is weighted
    by ``aux_weight`` and trains the encoder too. With ``aux_weight=0`` the classifier is a probe: it
    reads detached features (``probe_<m>.loss_cls``), so it reports what the encoder knows and changes
    nothing else (but counts in a gradient norm that is clipped over all parameters).

    ``pred_score`` is a dict ``{'fused': (K,), <m>: (K,)}``, from which AccMetric reports
    ``acc/fused_top1``, ``acc/<m>_top1``, ...; ``pred_label`` is the fused one's. A modality that is
    missing in a sample scores every class alike.

    Args:
        num_classes: K.
        in_channels: width of the fused vector.
        modality_in_channels: width of each modality's vector; the modalities not named get no
            classifier, None leaves all out.
        dropout: probability, before every classifier.
        aux_weight: of each modality's loss, relative to the fused one.
        average_clips: how views are averaged: ``prob`` (softmax scores) or ``score`` (logits).
        init_std: of the classifiers' weights.
        topk: k of the accuracies that training logs; None: 1, and 5 where there are more than 5 classes.
        loss_cls, label_smooth_eps: as in mmaction2's BaseHead.

    Shapes: feats {'fused': (B V, C), m: (B V, C_m)}, the views of a sample in a row ->
        logits {'fused': (B V, K), m: (B V, K)}.
    Raises: ValueError for impossible options, for features of another width than the config says, and for samples
        of another number of classes.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        modality_in_channels: Mapping[str, int] | None = None,
        dropout: float = 0.0,
        aux_weight: float = 0.0,
        average_clips: str = "prob",
        init_std: float = 0.01,
        topk: int | Sequence[int] | None = None,
        **kwargs,
    ) -> None:
        modality_in_channels = modality_in_channels or {}
        if FUSED in modality_in_channels:
            raise ValueError(f"cls_head.modality_in_channels names {FUSED!r}, the fused score's own name; rename it")
        by_modality = {f"modality_in_channels.{m}": C for m, C in modality_in_channels.items()}
        for key, value in {"num_classes": num_classes, "in_channels": in_channels, **by_modality}.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"cls_head.{key} must be a positive integer, got {value!r}")
        if average_clips not in AVERAGES:
            raise ValueError(f"cls_head.average_clips must be one of {list(AVERAGES)}, got {average_clips!r}")
        if aux_weight < 0:
            raise ValueError(f"cls_head.aux_weight must not be negative, got {aux_weight}")
        if aux_weight > 0 and not modality_in_channels:
            raise ValueError(
                f"cls_head.aux_weight is {aux_weight}, but cls_head.modality_in_channels names no modality; "
                "give the encoders' widths"
            )
        if kwargs.get("multi_class"):
            raise ValueError("cls_head.multi_class is not supported: FusionHead scores one class per clip")
        if topk is None:
            topk = (1, 5) if num_classes > 5 else 1
        super().__init__(
            num_classes, in_channels, topk=topk if isinstance(topk, int) else tuple(topk),
            average_clips=average_clips, **kwargs
        )
        self.modality_in_channels = dict(sorted(modality_in_channels.items()))  # a config's copy comes sorted
        self.aux_weight = aux_weight
        self.init_std = init_std
        self.dropout = nn.Dropout(dropout)
        self.fc_cls = nn.Linear(in_channels, num_classes)
        self.modality_fc = ModuleDict({m: nn.Linear(C, num_classes) for m, C in self.modality_in_channels.items()})

    def init_weights(self) -> None:
        super().init_weights()
        for fc in (self.fc_cls, *self.modality_fc.values()):
            normal_init(fc, std=self.init_std)

    def forward(self, feats: Mapping[str, Tensor], **kwargs) -> dict[str, Tensor]:
        logits = {FUSED: self.score_fused(feats[FUSED])}
        for m in self.modality_fc:
            if m not in feats:
                raise ValueError(
                    f"cls_head.modality_in_channels names {m!r}, the batch holds {sorted(set(feats) - {FUSED})}"
                )
            logits[m] = self.score_modality(m, feats[m] if self.aux_weight > 0 else feats[m].detach())
        return logits

    def score_fused(self, x: Tensor) -> Tensor:
        """(B V, C) -> logits (B V, K)."""
        return self._classify(self.fc_cls, x, "in_channels", "the neck")

    def score_modality(self, m: str, x: Tensor) -> Tensor:
        """(B V, C_m) -> logits (B V, K) of ``m``'s own classifier."""
        return self._classify(self.modality_fc[m], x, f"modality_in_channels.{m}", f"the {m!r} encoder")

    def _classify(self, fc: nn.Linear, x: Tensor, key: str, source: str) -> Tensor:
        if x.ndim != 2 or x.shape[1] != fc.in_features:
            raise ValueError(f"{source} gives features of shape {tuple(x.shape)}, cls_head.{key} is {fc.in_features}")
        return fc(self.dropout(x)).float()  # mmaction2 counts the accuracy in numpy, which has no bfloat16

    def loss_by_feat(self, cls_scores: Mapping[str, Tensor], data_samples: list) -> dict[str, Tensor]:
        self._check_classes(data_samples)
        views = self._views(cls_scores, data_samples)
        samples = [sample for sample in data_samples for _ in range(views)]
        losses = super().loss_by_feat(cls_scores[FUSED], samples)
        available = availability(tuple(self.modality_fc), [s.metainfo for s in samples])
        for m in self.modality_fc:
            found = self._modality_loss(cls_scores[m], samples, available[m])
            name, weight = (f"aux_{m}", self.aux_weight) if self.aux_weight > 0 else (f"probe_{m}", 1.0)
            losses.update({f"{name}.{key}": v * weight if "loss" in key else v for key, v in found.items()})
        return losses

    def _modality_loss(self, logits: Tensor, samples: list, available_B: Tensor) -> dict[str, Tensor]:
        rows = available_B.nonzero().flatten()
        if len(rows) == 0:  # the classifier's parameters still need a gradient on this rank
            return {"loss_cls": (logits * 0).sum()}
        if len(rows) == len(samples):
            return super().loss_by_feat(logits, samples)
        return super().loss_by_feat(logits[rows], [samples[i] for i in rows.tolist()])

    def predict_by_feat(self, cls_scores: Mapping[str, Tensor], data_samples: list) -> list:
        self._check_classes(data_samples)
        views = self._views(cls_scores, data_samples)
        scores = {name: self.average_clip(logits, views) for name, logits in cls_scores.items()}
        available = availability(tuple(self.modality_fc), [s.metainfo for s in data_samples])
        indifferent = 1 / self.num_classes if self.average_clips == "prob" else 0.0
        for i, sample in enumerate(data_samples):
            score = {name: score[i] for name, score in scores.items()}
            for m in self.modality_fc:
                if not available[m][i]:
                    score[m] = torch.full_like(score[m], indifferent)
            # set_pred_score would record the number of scores, not of classes, as num_classes
            sample.set_field(score, "pred_score")
            sample.set_metainfo({"num_classes": self.num_classes})
            sample.set_pred_label(score[FUSED].argmax(keepdim=True))
        return data_samples

    def average_clip(self, cls_scores: Tensor, num_segs: int = 1) -> Tensor:
        """(B V, K) logits -> (B, K) scores."""
        views = cls_scores.unflatten(0, (-1, num_segs))
        return (F.softmax(views, -1) if self.average_clips == "prob" else views).mean(1)

    def _check_classes(self, data_samples: list) -> None:
        for sample in data_samples:
            number = sample.metainfo.get("num_classes", self.num_classes)
            if number != self.num_classes:
                raise ValueError(
                    f"model.cls_head.num_classes is {self.num_classes}, the data set has {number} classes; see "
                    "dataset.metainfo.classes, num_classes or class_list"
                )

    @staticmethod
    def _views(cls_scores: Mapping[str, Tensor], data_samples: list) -> int:
        return len(cls_scores[FUSED]) // len(data_samples)
