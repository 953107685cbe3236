"""Stock EncoderDecoder with a fusion neck: fusion losses, per-modality heads, availability."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmengine.model import ModuleDict
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.utils import add_prefix
from torch import Tensor, nn

from mmfusion_plugin.fusion import FusionOutput
from mmfusion_plugin.fusion.modes import fused_only
from mmfusion_plugin.models.availability import availability, check_neck, fuse, noise_levels, statistics_of
from mmfusion_plugin.models.schedule import check_progress
from mmfusion_plugin.models.unimodal import Heads, check_own_heads, evaluating, update_dependency, update_gain

__all__ = ["FusionEncoderDecoder"]


def _check_stacking(preprocessor: nn.Module, backbone: nn.Module) -> None:
    """The stacked tensor carries no names: another order on the two sides would go unnoticed."""
    if not hasattr(preprocessor, "channels"):  # another preprocessor; the backbone checks the sum
        return
    if tuple(preprocessor.modalities) != tuple(backbone.modalities):
        raise ValueError(
            f"model.data_preprocessor.modalities is {list(preprocessor.modalities)}, model.backbone.modalities is "
            f"{list(backbone.modalities)}; they must be the same list in the same order"
        )
    for m, stacked in preprocessor.channels.items():
        if stacked != backbone.in_channels[m]:
            raise ValueError(
                f"model.data_preprocessor.mean.{m} lists {stacked} channels, model.backbone.in_channels.{m} is "
                f"{backbone.in_channels[m]}"
            )


@MODELS.register_module()
class FusionEncoderDecoder(EncoderDecoder):
    """EncoderDecoder whose neck fuses modalities.

    Whole and sliding-window inference, test-time augmentation and post-processing are stock: the
    input is one stacked tensor, and the availability travels in the samples' metainfo.

    Args:
        backbone: a :class:`MultimodalBackbone`.
        neck: a fusion neck; its losses join the task's.
        modality_heads: auxiliary decode heads by modality, each reading that modality's own encoder
            (losses ``aux_<m>.*``), on the samples in which the modality is available.
        others: as in EncoderDecoder.

    Shapes: inputs (B, sum C_m, H, W) -> logits (B, classes, h, w).
    Raises: ValueError if the backbone has no modalities, the neck does not fuse, the preprocessor
        stacks in another order or with other numbers of channels than the backbone splits,
        ``modality_heads`` names an unknown modality, or not every one where the neck reads them; in training
        if a part waits for a stage that no hook announces.
    """

    def __init__(self, backbone: dict, neck: dict, decode_head: dict, modality_heads: dict | None = None,
                 **kwargs) -> None:
        super().__init__(backbone=backbone, decode_head=decode_head, neck=neck, **kwargs)
        if not hasattr(self.backbone, "modalities"):
            raise ValueError(
                f"model.backbone {type(self.backbone).__name__} reads one input; use MultimodalBackbone"
            )
        self.modalities = tuple(self.backbone.modalities)
        check_neck(getattr(self, "neck", None))
        _check_stacking(self.data_preprocessor, self.backbone)
        unknown = sorted(set(modality_heads or {}) - set(self.modalities))
        if unknown:
            raise ValueError(
                f"model.modality_heads names {unknown}, backbone.modalities names {list(self.modalities)}"
            )
        self.modality_heads = ModuleDict(  # torch's own hides its members from mmengine's init_weights
            {m: MODELS.build(modality_heads[m]) for m in self.modalities if m in (modality_heads or {})}
        )
        check_own_heads(self.neck, list(self.modality_heads), "model.modality_heads")

    @property
    def _heads(self) -> Heads:
        own = dict(self.modality_heads.items())
        return Heads(self.decode_head.forward, {m: head.forward for m, head in own.items()},
                     (self.decode_head, *own.values()))

    def extract_feat(self, inputs: Tensor, metas: Sequence[Mapping] | None = None) -> tuple[Tensor, ...]:
        """Fused pyramid that the decode head reads. ``metas`` None: every modality is there."""
        with fused_only(self.neck):
            return self._fuse(inputs, self.backbone(inputs), metas).fused

    def _fuse(
        self, inputs: Tensor, feats: Mapping[str, tuple[Tensor, ...]], metas: Sequence[Mapping] | None
    ) -> FusionOutput:
        statistics = statistics_of(self.neck, self.backbone.split(inputs), feats)
        if metas is None:
            return fuse(self.neck, feats, None, None, self._heads, statistics)
        available, levels = availability(self.modalities, metas), noise_levels(self.modalities, metas, inputs.device)
        return fuse(self.neck, feats, available, levels, self._heads, statistics)

    def fusion_output(self, inputs: Tensor, data_samples: list | None = None) -> FusionOutput:
        """What the neck makes of a preprocessed batch in evaluation, ``per_sample`` included."""
        metas = None if data_samples is None else [sample.metainfo for sample in data_samples]
        with evaluating(self):
            return self._fuse(inputs, self.backbone(inputs), metas)

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        fused = self.extract_feat(inputs, batch_img_metas)
        return self.decode_head.predict(fused, batch_img_metas, self.test_cfg)

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        check_progress(self.neck, self.data_preprocessor)
        metas = [sample.metainfo for sample in data_samples]
        feats = self.backbone(inputs)
        output = self._fuse(inputs, feats, metas)
        losses = {**self._decode_head_forward_train(output.fused, data_samples), **output.losses}
        if self.with_auxiliary_head:
            losses.update(self._auxiliary_head_forward_train(output.fused, data_samples))
        available = availability(self.modalities, metas)
        for m, head in self.modality_heads.items():
            losses.update(add_prefix(self._modality_loss(head, feats[m], data_samples, available[m]), f"aux_{m}"))
        levels = noise_levels(self.modalities, metas, inputs.device)
        update_dependency(self.neck, feats, available, levels, self._heads)
        labels = torch.stack([sample.gt_sem_seg.data for sample in data_samples]).squeeze(1)
        update_gain(self.neck, feats, available, levels, output, self._heads, labels)
        # not summed into the loss (no name holds "loss"), but logged beside it
        losses.update({name: value for name, value in output.diagnostics.items() if value.ndim == 0})
        return losses

    def _modality_loss(self, head: nn.Module, levels: tuple[Tensor, ...], data_samples: list,
                       available_B: Tensor) -> dict[str, Tensor]:
        rows = available_B.nonzero().flatten()
        if len(rows) == 0:  # the head's parameters still need a gradient on this rank
            losses = head.loss(levels, data_samples, self.train_cfg)
            return {name: value * 0 for name, value in losses.items()}
        if len(rows) == len(data_samples):
            return head.loss(levels, data_samples, self.train_cfg)
        return head.loss(
            tuple(level[rows] for level in levels), [data_samples[i] for i in rows.tolist()], self.train_cfg
        )

    def _forward(self, inputs: Tensor, data_samples: list | None = None) -> Tensor:
        metas = None if data_samples is None else [sample.metainfo for sample in data_samples]
        return self.decode_head.forward(self.extract_feat(inputs, metas))
