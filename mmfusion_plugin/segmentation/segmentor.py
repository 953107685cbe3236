"""Stock EncoderDecoder with a fusion neck: fusion losses, per-modality heads, availability."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmengine.model import ModuleDict
from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.utils import add_prefix
from torch import Tensor, nn

from mmfusion_plugin.fusion import FusionOutput
from mmfusion_plugin.fusion.modes import fused_only, in_evaluation_mode
from mmfusion_plugin.models.availability import availability, check_neck, fuse, noise_levels, statistics_of
from mmfusion_plugin.models.schedule import check_progress
from mmfusion_plugin.models.unimodal import Heads, check_own_heads, evaluating, update_dependency, update_gain

__all__ = ["FusionEncoderDecoder"]

NO_CASCADE = "FusionEncoderDecoder runs one head after the neck; take one such as SegformerHead, UPerHead or FCNHead"


def _check_stacking(preprocessor: nn.Module, backbone: nn.Module) -> None:
    """The stacked tensor carries no names: another order on the two sides would go unnoticed."""
    if not hasattr(preprocessor, "channels"):  # another preprocessor: the sum is all that can be compared
        mean, asked = getattr(preprocessor, "mean", None), sum(backbone.in_channels.values())
        if isinstance(mean, Tensor) and len(mean) != asked:
            raise ValueError(
                f"model.data_preprocessor {type(preprocessor).__name__} lists {len(mean)} channels, "
                f"model.backbone.in_channels asks for {backbone.in_channels} = {asked}; use "
                "MultimodalSegDataPreProcessor"
            )
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


def _nothing_of(levels: Sequence[Tensor]) -> Tensor:
    """0 in the graph of all, whatever they hold."""
    return sum((level.float().nan_to_num(posinf=0.0, neginf=0.0) * 0).sum() for level in levels)


def _check_test_cfg(test_cfg: Mapping | None) -> None:
    if test_cfg is None:
        raise ValueError("model.test_cfg is missing; set it to dict(mode='whole')")
    lacking = [key for key in ("crop_size", "stride") if test_cfg.get("mode") == "slide" and key not in test_cfg]
    if lacking:
        raise ValueError(
            f"model.test_cfg has mode='slide' and no {' and no '.join(lacking)}; set "
            "dict(mode='slide', crop_size=(H, W), stride=(h, w)), or mode='whole'"
        )


def _check_head(key: str, head: nn.Module, widths: Sequence[int] | None, source: str) -> None:
    """Whether a head's losses are trained, and whether it reads levels that there are, of their ``widths``."""
    if isinstance(head, BaseCascadeDecodeHead):
        raise ValueError(f"{key} is a {type(head).__name__}, a stage of a cascade; {NO_CASCADE}")
    losses = getattr(head, "loss_decode", None)
    for loss in losses if isinstance(losses, nn.ModuleList) else [losses]:
        name = getattr(loss, "loss_name", "loss")
        if "loss" not in name:
            raise ValueError(
                f"{key}.loss_decode.loss_name is {name!r}: mmengine trains on nothing whose name lacks 'loss'; call it "
                f"'loss_{name}'"
            )
    if widths is None or not isinstance(head, BaseDecodeHead):
        return
    read = [head.in_index] if isinstance(head.in_index, int) else list(head.in_index)
    if not all(-len(widths) <= i < len(widths) for i in read):
        raise ValueError(f"{key}.in_index is {head.in_index}, {source} gives {len(widths)} levels {list(widths)}")
    given = [widths[i] for i in read]
    wanted = list(head.in_channels) if isinstance(head.in_channels, Sequence) else [head.in_channels]
    if wanted != ([sum(given)] if head.input_transform == "resize_concat" else given):
        raise ValueError(
            f"{key}.in_channels is {head.in_channels}, {source} gives {given} at {key}.in_index={head.in_index}; make "
            "them agree"
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
        ``modality_heads`` names an unknown modality, or not every one where the neck reads them, a head does not fit
        the neck or has a loss that is not trained, for heads of a cascade, for ``pretrained``, or without a complete
        ``test_cfg``; in training if a part waits for a stage that no hook announces, a head has another number of
        classes than the data set, or an own head cannot learn from the one sample that has its modality.
    """

    def __init__(self, backbone: dict, neck: dict, decode_head: dict, modality_heads: dict | None = None,
                 **kwargs) -> None:
        if kwargs.get("pretrained") is not None:
            raise ValueError(
                f"model.pretrained is {kwargs['pretrained']!r}, which no encoder of several would get; set "
                "model.pretrained=None and "
                "model.backbone.backbones.<modality>.init_cfg=dict(type='Pretrained', checkpoint=...)"
            )
        if isinstance(decode_head, (list, tuple)):
            raise ValueError(f"model.decode_head is a cascade of {len(decode_head)} heads; {NO_CASCADE}")
        super().__init__(backbone=backbone, decode_head=decode_head, neck=neck, **kwargs)
        _check_test_cfg(self.test_cfg)
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
        self._check_heads()

    def _check_heads(self) -> None:
        if not getattr(self.neck, "pyramid", True):
            raise ValueError("model.neck.in_channels must list a width per level, such as dict(rgb=[64], depth=[64])")
        fused, levels = getattr(self.neck, "out_channels", None), getattr(self.neck, "levels", None)
        own = {f"model.modality_heads.{m}": m for m in self.modality_heads}
        for key, head in self._named_heads().items():
            if key not in own:
                _check_head(key, head, fused, "model.neck")
                continue
            m = own[key]
            widths = levels and [level.in_channels[m] for level in levels]
            _check_head(key, head, widths, f"the {m!r} encoder")

    def _named_heads(self) -> dict[str, nn.Module]:
        """Heads by their place in the config."""
        heads = {"model.decode_head": self.decode_head}
        if self.with_auxiliary_head:
            several = isinstance(self.auxiliary_head, nn.ModuleList)
            heads |= {f"model.auxiliary_head[{i}]": head for i, head in enumerate(self.auxiliary_head)} if several \
                else {"model.auxiliary_head": self.auxiliary_head}
        return heads | {f"model.modality_heads.{m}": head for m, head in self.modality_heads.items()}

    def _check_classes(self, metas: Sequence[Mapping]) -> None:
        told = {meta["dataset_classes"] for meta in metas if "dataset_classes" in meta}
        for key, head in self._named_heads().items():
            classes = getattr(head, "num_classes", None)
            if classes is not None and told - {classes}:
                raise ValueError(
                    f"{key}.num_classes is {classes}, the data set's metainfo.classes names {sorted(told)}; make them "
                    "agree"
                )

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
        self._check_classes(metas)
        feats = self.backbone(inputs)
        output = self._fuse(inputs, feats, metas)
        losses = {**self._decode_head_forward_train(output.fused, data_samples), **output.losses}
        if self.with_auxiliary_head:
            losses.update(self._auxiliary_head_forward_train(output.fused, data_samples))
        if unread := self._unread(output.fused):  # distributed training waits for the gradient of what made them
            trained = next(name for name in losses if "loss" in name)
            losses[trained] = losses[trained] + _nothing_of(unread)
        available = availability(self.modalities, metas)
        for m in self.modality_heads:
            losses.update(add_prefix(self._modality_loss(m, feats[m], data_samples, available[m]), f"aux_{m}"))
        levels = noise_levels(self.modalities, metas, inputs.device)
        update_dependency(self.neck, feats, available, self._heads)
        labels = torch.stack([sample.gt_sem_seg.data for sample in data_samples]).squeeze(1)
        update_gain(self.neck, feats, available, levels, output, self._heads, labels)
        # not summed into the loss (no name holds "loss"), but logged beside it
        losses.update({name: value for name, value in output.diagnostics.items() if value.ndim == 0})
        return losses

    def _unread(self, fused: tuple[Tensor, ...]) -> list[Tensor]:
        """The levels that no head reads."""
        read: set[int] = set()
        for key, head in self._named_heads().items():
            if not key.startswith("model.modality_heads."):
                asked = getattr(head, "in_index", range(len(fused)))
                read |= {i % len(fused) for i in ([asked] if isinstance(asked, int) else asked)}
        return [level for i, level in enumerate(fused) if i not in read]

    def _modality_loss(self, m: str, levels: tuple[Tensor, ...], data_samples: list,
                       available_B: Tensor) -> dict[str, Tensor]:
        head, rows = self.modality_heads[m], available_B.nonzero().flatten()
        if len(rows) == 0:  # the head's parameters still need a gradient on this rank
            with in_evaluation_mode(head):  # what stands in for a missing sensor is none of BatchNorm's statistics
                losses = head.loss(levels, data_samples, self.train_cfg)
            return {name: value * 0 for name, value in losses.items()}
        if len(rows) == len(data_samples):
            return head.loss(levels, data_samples, self.train_cfg)
        try:
            return head.loss(
                tuple(level[rows] for level in levels), [data_samples[i] for i in rows.tolist()], self.train_cfg
            )
        except ValueError as error:
            if len(rows) > 1 or "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"only one of the batch's {len(data_samples)} samples has {m!r}, and model.modality_heads.{m} "
                f"{type(head).__name__} normalises a pooled map over the samples ({error}); set "
                f"model.modality_heads.{m}.norm_cfg=dict(type='GN', num_groups=...), take a head that pools nothing "
                "such as FCNHead, or raise train_dataloader.batch_size"
            ) from error

    def _forward(self, inputs: Tensor, data_samples: list | None = None) -> Tensor:
        metas = None if data_samples is None else [sample.metainfo for sample in data_samples]
        return self.decode_head.forward(self.extract_feat(inputs, metas))
