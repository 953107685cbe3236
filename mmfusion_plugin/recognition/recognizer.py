"""Several encoders, a fusion neck and a head behind mmaction2's BaseRecognizer."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from mmaction.models.backbones.resnet_tin import TemporalInterlace
from mmaction.models.backbones.resnet_tsm import NL3DWrapper, TemporalShift
from mmaction.models.backbones.tanet import TABlock
from mmaction.models.recognizers.base import BaseRecognizer
from mmaction.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmfusion_plugin.fusion import FusionOutput
from mmfusion_plugin.fusion.contract import channel_axis, expand_mask
from mmfusion_plugin.fusion.modes import fused_only
from mmfusion_plugin.models import SingleModality
from mmfusion_plugin.models.availability import availability, check_neck, fuse, noise_levels, statistics_of
from mmfusion_plugin.models.schedule import check_progress
from mmfusion_plugin.models.unimodal import Heads, check_own_heads, evaluating, update_dependency, update_gain

from .heads import FUSED

__all__ = ["FeatureEncoder", "FusionRecognizer"]

POOLS = (True, False, "time")
INPUT_NDIM = {nn.Conv2d: 4, nn.Conv3d: 5}
ACROSS_FRAMES = (TemporalShift, NL3DWrapper, TemporalInterlace, TABlock)  # num_segments rows of a batch are a clip


@MODELS.register_module()
class FeatureEncoder(BaseModule):
    """Encoder of ready-made features: nothing at all, a linear layer, or an MLP.

    Args:
        in_channels: C.
        out_channels: D; None hands the features on as they are.
        hidden_channels: width of the MLP's hidden layer (GELU); None: no hidden layer.
        norm: ``layer`` normalises the input first; None does not.
        dropout: probability, before the last linear layer.

    Shapes: (B, C) or (B, T, C) -> the same with D channels.
    Raises: ValueError for impossible options and features of another width.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        hidden_channels: int | None = None,
        norm: str | None = None,
        dropout: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if norm not in ("layer", None):
            raise ValueError(f"FeatureEncoder.norm must be 'layer' or None, got {norm!r}")
        if out_channels is None and (hidden_channels is not None or dropout):
            raise ValueError(
                f"FeatureEncoder.out_channels is None, so hidden_channels={hidden_channels} and dropout={dropout} "
                "have no layer to act on; set out_channels"
            )
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        layers: list[nn.Module] = [] if norm is None else [nn.LayerNorm(in_channels)]
        width = in_channels
        if hidden_channels is not None:
            layers += [nn.Linear(width, hidden_channels), nn.GELU()]
            width = hidden_channels
        if out_channels is not None:
            layers += [nn.Dropout(dropout), nn.Linear(width, out_channels)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim not in (2, 3) or x.shape[-1] != self.in_channels:
            raise ValueError(
                f"FeatureEncoder.in_channels is {self.in_channels}, the features have shape {tuple(x.shape)}; "
                "expected (B, C) or (B, T, C)"
            )
        return self.layers(x)


# B batch, V views of a sample (crops x clips), N images in a view, K classes
@MODELS.register_module()
class FusionRecognizer(BaseRecognizer):
    """Recognise a clip from any number of modalities.

    A sample's input may hold several views in its second axis. ``frames_per_clip`` consecutive ones of
    a modality belong to one clip and meet before fusion; what remains are V views per sample, each
    fused and classified on its own and averaged by the head. In evaluation the modality with the most
    views sets V, crops outside and clips inside, as mmaction2's pipelines pack them: a modality with
    fewer views (one sound for three crops) is used again for every crop.

    Args:
        backbone: a :class:`MultimodalBackbone`.
        neck: a fusion neck, for as many levels as every encoder returns (its ``out_indices``); its
            losses join the task's.
        cls_head: a :class:`FusionHead`.
        pool: what the neck fuses. True: one vector per view (mean over positions and frames). ``time``:
            a sequence (B V, T, C): the frames where ``frames_per_clip`` names the modality, else the
            time axis of a 3D map or the last axis of a spectrogram's map. False: the encoder's own maps
            or sequences (mean over frames). What comes out is averaged over positions for the head; several
            levels are concatenated.
        frames_per_clip: N by modality (2D encoders on sampled frames: ``LoadClip.num_frames``);
            1 where not named. What mixes frames itself (TSM, TIN, TANet) has the same ``num_segments``.
        input_ndim: axes of the input of an encoder, batch included, by modality, where its first
            convolution does not tell (2D convolutions: 4, 3D: 5; encoders without one take the input as it is).
            One more axis than this means views.
        concat_levels: modalities whose encoder returns several maps that are no pyramid (SlowFast's
            pathways): their pooled vectors are concatenated into one level. Needs ``pool=True``.
        train_cfg, test_cfg: must be empty; the head averages the views.
        data_preprocessor: a :class:`MultimodalActionDataPreProcessor`.

    Shapes: inputs {m: (B, C), (B, T, C), (B, [N V,] C, H, W) or (B, [V,] C, T, H, W)}; availability from
        the samples' metainfo. ``loss`` gives scalars; ``predict`` fills the samples' ``pred_score``.
    Raises: ValueError for names, widths, ranks or numbers of views that do not agree.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        cls_head: dict,
        pool: bool | str = True,
        frames_per_clip: Mapping[str, int] | None = None,
        input_ndim: Mapping[str, int] | None = None,
        concat_levels: Sequence[str] = (),
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
    ) -> None:
        for key, cfg in (("train_cfg", train_cfg), ("test_cfg", test_cfg)):
            if cfg:
                raise ValueError(
                    f"model.{key} is {dict(cfg)}, FusionRecognizer reads none of it; views are averaged by "
                    "model.cls_head.average_clips"
                )
        super().__init__(backbone=backbone, cls_head=cls_head, neck=neck, data_preprocessor=data_preprocessor)
        if not hasattr(self.backbone, "encoders"):
            raise ValueError(
                f"model.backbone {type(self.backbone).__name__} reads one input; use MultimodalBackbone"
            )
        self.modalities = tuple(self.backbone.modalities)
        if FUSED in self.modalities:
            raise ValueError(f"backbone.modalities names {FUSED!r}, the fused score's own name; rename it")
        if not any(pool is choice or isinstance(choice, str) and pool == choice for choice in POOLS):
            raise ValueError(f"model.pool must be one of {list(POOLS)}, got {pool!r}")
        if isinstance(concat_levels, str):
            raise ValueError(f"model.concat_levels must be a list such as [{concat_levels!r}], got {concat_levels!r}")
        for key, named in (("frames_per_clip", frames_per_clip), ("input_ndim", input_ndim),
                           ("concat_levels", concat_levels)):
            unknown = sorted(set(named or ()) - set(self.modalities))
            if unknown:
                raise ValueError(f"model.{key} names {unknown}, backbone.modalities names {list(self.modalities)}")
        for key, numbers in (("frames_per_clip", frames_per_clip), ("input_ndim", input_ndim)):
            for m, number in (numbers or {}).items():
                if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                    raise ValueError(f"model.{key}.{m} must be a positive integer, got {number!r}")
        if concat_levels and pool is not True:
            raise ValueError(f"model.concat_levels names {list(concat_levels)}, which needs model.pool=True")
        self.pool = pool
        self.frames_per_clip = dict(frames_per_clip or {})
        self.concat_levels = tuple(concat_levels)
        self.input_ndim = {m: _input_ndim(encoder) for m, encoder in self.backbone.encoders.items()}
        self.input_ndim.update(input_ndim or {})
        for m in self.frames_per_clip:
            if self.input_ndim[m] is None:
                raise ValueError(
                    f"model.frames_per_clip names {m!r}, whose encoder {type(self.backbone.encoders[m]).__name__} "
                    f"takes its input as it is; set model.input_ndim.{m}"
                )
        for m, encoder in self.backbone.encoders.items():
            frames = self.frames_per_clip.get(m, 1)
            segments = max((part.num_segments for part in encoder.modules() if isinstance(part, ACROSS_FRAMES)),
                           default=frames)
            if segments != frames:
                raise ValueError(
                    f"model.backbone.backbones.{m}.num_segments is {segments}, model.frames_per_clip.{m} is {frames}: "
                    f"{type(encoder).__name__} would mix frames of different clips; make both LoadClip.num_frames"
                )
        self._check_parts()

    def _check_parts(self) -> None:
        neck, head, preprocessor = getattr(self, "neck", None), self.cls_head, self.data_preprocessor
        check_neck(neck)
        if not hasattr(head, "score_fused"):
            raise ValueError(f"model.cls_head {type(head).__name__} reads one feature map; use FusionHead")
        named = getattr(preprocessor, "modalities", None)
        if named is None or set(named) != set(self.modalities):
            raise ValueError(
                f"model.data_preprocessor ({type(preprocessor).__name__}) names the modalities "
                f"{None if named is None else list(named)}, model.backbone.modalities is {list(self.modalities)}; "
                "use a MultimodalActionDataPreProcessor with the same names"
            )
        fused = getattr(neck, "out_channels", None)
        if fused is not None and sum(fused) != head.in_channels:
            raise ValueError(
                f"model.neck gives {sum(fused)} channels, model.cls_head.in_channels is {head.in_channels}"
            )
        unknown = sorted(set(getattr(head, "modality_in_channels", ())) - set(self.modalities))
        if unknown:
            raise ValueError(
                f"model.cls_head.modality_in_channels names {unknown}, backbone.modalities names "
                f"{list(self.modalities)}"
            )
        check_own_heads(neck, list(getattr(head, "modality_in_channels", ())), "model.cls_head.modality_in_channels")

    @property
    def _heads(self) -> Heads:
        own = {m: partial(self._score_modality, m) for m in getattr(self.cls_head, "modality_in_channels", ())}
        return Heads(lambda fused: self.cls_head.score_fused(_pooled(fused)), own, (self.cls_head,))

    def _score_modality(self, m: str, levels: tuple[Tensor, ...]) -> Tensor:
        return self.cls_head.score_modality(m, _mean_over_positions(levels[-1]))

    def extract_feat(
        self,
        inputs: Mapping[str, Tensor],
        stage: str = "neck",
        data_samples: list | None = None,
        test_mode: bool = False,
    ) -> tuple[dict, dict]:
        """Features at one stage, and what mmaction2's ``loss`` merges (``loss_aux``).

        Args:
            stage: ``backbone`` ({m: tuple of the encoder's levels}), ``neck`` ({'fused': (B V, C), m: (B V, C_m)})
                or ``head`` (logits {'fused': (B V, K), m: (B V, K)}).
            data_samples: None: every modality is there.
            test_mode: crops are allowed: modalities may differ in their numbers of views.
        """
        if stage not in ("backbone", "neck", "head"):
            raise ValueError(f"stage must be 'backbone', 'neck' or 'head', got {stage!r}")
        streams, views = self._flatten(inputs)
        feats = self.backbone(streams)
        if stage == "backbone":
            return feats, {}
        levels, available, noise = self._known(inputs, feats, views, data_samples, test_mode)
        statistics = self._statistics(streams, views, levels)
        vectors, kwargs = self._read(self._fuse(levels, available, noise, statistics), levels, available)
        return (vectors if stage == "neck" else self.cls_head(vectors)), kwargs

    def _known(
        self, inputs: Mapping[str, Tensor], feats: Mapping, views: Mapping[str, int], data_samples: list | None,
        test_mode: bool
    ) -> tuple[dict, dict, dict | None]:
        """What the neck is told, by view: ({m: levels}, {m: available}, {m: noise level} or None)."""
        V = self._number_of_views(views, test_mode)
        B = len(inputs[self.modalities[0]])
        levels = {m: self._levels(m, feats[m], B, views[m], V) for m in self.modalities}
        metas = [{}] * B if data_samples is None else [sample.metainfo for sample in data_samples]
        device = levels[self.modalities[0]][0].device
        available = _repeated(availability(self.modalities, metas), V)
        return levels, available, _repeated(noise_levels(self.modalities, metas, device), V)

    def _read(self, output: FusionOutput, levels: Mapping, available: Mapping) -> tuple[dict, dict]:
        """(vectors for the head, what mmaction2's ``loss`` merges)."""
        vectors = {m: _masked_mean(levels[m][-1], available[m]) for m in self.modalities}
        vectors[FUSED] = _pooled(output.fused)
        # a diagnostic's name holds no "loss": it is logged beside the losses, not summed into them
        scalars = {name: value for name, value in output.diagnostics.items() if value.ndim == 0}
        return vectors, {"loss_aux": {**output.losses, **scalars}}

    def loss(self, inputs: Mapping[str, Tensor], data_samples: list, **kwargs) -> dict[str, Tensor]:
        """As in BaseRecognizer, and the neck's dependency and gains are kept up with the same features."""
        check_progress(self.neck, self.data_preprocessor)
        streams, views = self._flatten(inputs)
        known = self._known(inputs, self.backbone(streams), views, data_samples, test_mode=False)
        output = self._fuse(*known, self._statistics(streams, views, known[0]))
        vectors, more = self._read(output, *known[:2])
        losses = {**self.cls_head.loss(vectors, data_samples, **more), **more["loss_aux"]}
        update_dependency(self.neck, *known[:2], self._heads)
        update_gain(self.neck, *known, output, self._heads, _labels(data_samples, len(vectors[FUSED])))
        return losses

    def fusion_output(self, inputs: Mapping[str, Tensor], data_samples: list | None = None) -> FusionOutput:
        """What the neck makes of a preprocessed batch in evaluation, ``per_sample`` (by view) included."""
        with evaluating(self):
            streams, views = self._flatten(inputs)
            known = self._known(inputs, self.backbone(streams), views, data_samples, test_mode=True)
            return self._fuse(*known, self._statistics(streams, views, known[0]))

    def predict(self, inputs: Mapping[str, Tensor], data_samples: list, **kwargs) -> list:
        with fused_only(self.neck):
            feats, _ = self.extract_feat(inputs, data_samples=data_samples, test_mode=True)
        return self.cls_head.predict(feats, data_samples)

    def forward(self, inputs: Mapping[str, Tensor], data_samples: list | None = None, mode: str = "tensor", **kwargs):
        """As in BaseRecognizer; ``tensor`` gives logits by name and respects the availability."""
        if mode == "tensor":
            return self._forward(inputs, data_samples=data_samples, **kwargs)
        return super().forward(inputs, data_samples, mode, **kwargs)

    def _forward(self, inputs: Mapping[str, Tensor], stage: str = "head", data_samples: list | None = None) -> dict:
        with fused_only(self.neck):
            return self.extract_feat(inputs, stage=stage, data_samples=data_samples, test_mode=not self.training)[0]

    def _flatten(self, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Views into the batch: ({m: what the encoder takes}, {m: views per sample, frames included})."""
        if not isinstance(inputs, Mapping) or set(inputs) != set(self.modalities):
            found = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(f"backbone.modalities is {list(self.modalities)}, the batch holds {found}")
        streams, views = {}, {}
        for m in self.modalities:
            x, ndim, encoder = inputs[m], self.input_ndim[m], self.backbone.encoders[m]
            if isinstance(encoder, FeatureEncoder) and x.shape[-1] != encoder.in_channels:
                raise ValueError(
                    f"{m!r} has shape {tuple(x.shape)}, model.backbone.in_channels.{m} is {encoder.in_channels}"
                )
            if ndim is not None and x.ndim not in (ndim, ndim + 1):
                raise ValueError(
                    f"{m!r} has shape {tuple(x.shape)}, its encoder {type(encoder).__name__} takes "
                    f"{ndim} axes, or {ndim + 1} with views in the second; set FormatShape.input_format (2D encoders: "
                    f"'NCHW', 3D: 'NCTHW') or model.input_ndim.{m}"
                )
            has_views = ndim is not None and x.ndim == ndim + 1
            views[m] = x.shape[1] if has_views else 1
            streams[m] = x.flatten(0, 1) if has_views else x
        return streams, views

    def _number_of_views(self, views: Mapping[str, int], test_mode: bool) -> int:
        clips = {}
        for m, number in views.items():
            frames = self.frames_per_clip.get(m, 1)
            if number % frames:
                raise ValueError(
                    f"{m!r} holds {number} images per sample, no multiple of model.frames_per_clip.{m}={frames}; "
                    "make it LoadClip.num_frames"
                )
            clips[m] = number // frames
        V = max(clips.values())
        if any(V % number for number in clips.values()) or not test_mode and len(set(clips.values())) > 1:
            raise ValueError(
                f"the modalities hold {clips} views per sample, expected "
                + ("numbers that divide the largest" if test_mode else "the same number in training")
                + f"; model.frames_per_clip={self.frames_per_clip} says how many images make one clip"
            )
        return V

    def _levels(self, m: str, levels: tuple[Tensor, ...], B: int, views: int, V: int) -> tuple[Tensor, ...]:
        """(B views, ...) of the encoder -> (B V, ...) for the neck, level by level."""
        for x in levels:
            if not isinstance(x, Tensor) or len(x) != B * views:
                found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(
                    f"the {m!r} encoder {type(self.backbone.encoders[m]).__name__} gives {found}, expected one "
                    f"feature for each of {B * views} inputs; set its options so that it returns tensors, and "
                    f"model.input_ndim.{m} where it reads whole clips"
                )
        per_view = [self._per_view(m, x, B, V) for x in levels]
        return (torch.cat(per_view, 1),) if m in self.concat_levels else tuple(per_view)

    def _per_view(self, m: str, x: Tensor, B: int, V: int) -> Tensor:
        """The frames of a clip meet; crops share what there is once per clip."""
        N = self.frames_per_clip.get(m, 1)
        if self.pool == "time":
            x = self._over_time(m, x, N)
        else:
            x = _mean_over_positions(x) if self.pool else x
            x = x.unflatten(0, (-1, N)).mean(1) if N > 1 else x
        return _shared_by_crops(x, B, V)

    def _statistics(
        self, streams: Mapping[str, Tensor], views: Mapping[str, int], levels: Mapping[str, tuple[Tensor, ...]]
    ) -> dict | None:
        """{m: (B V, S)} of the inputs, a mean over the frames of a clip; None for a neck that does not read them."""
        found, number = statistics_of(self.neck, streams, levels), len(levels[self.modalities[0]][0])
        if found is None:
            return None
        for m, x in found.items():
            B = len(x) // views[m]
            found[m] = _shared_by_crops(x.unflatten(0, (-1, self.frames_per_clip.get(m, 1))).mean(1), B, number // B)
        return found

    def _over_time(self, m: str, x: Tensor, N: int) -> Tensor:
        """(B V N, C, ...) -> (B V, T, C)."""
        if m in self.frames_per_clip:
            return _mean_over_positions(x).unflatten(0, (-1, N))
        if x.ndim == 3:
            return x
        if x.ndim == 2:
            return x[:, None]
        return (x.mean(2) if x.ndim == 4 else x.mean((3, 4))).mT  # (C, F, T) or (C, T, H, W)

    def _fuse(
        self,
        levels: Mapping[str, tuple[Tensor, ...]],
        available: Mapping[str, Tensor],
        noise: Mapping[str, Tensor] | None,
        statistics: Mapping[str, Tensor] | None,
    ) -> FusionOutput:
        ranks = {level.ndim for m in self.modalities for level in levels[m]}
        if len(ranks) > 1 and not isinstance(self.neck, SingleModality):
            shapes = {m: [tuple(level.shape) for level in levels[m]] for m in self.modalities}
            raise ValueError(
                f"the features to fuse have shapes {shapes}, which have no axes in common; set model.pool to True "
                "(vectors) or 'time' (sequences)"
            )
        return fuse(self.neck, levels, available, noise, self._heads, statistics)


def _labels(data_samples: Sequence, views: int) -> Tensor:
    """(B V,) classes; of soft labels the likeliest."""
    labels = torch.stack([sample.gt_label for sample in data_samples])
    labels = labels[:, 0] if labels.shape[1] == 1 else labels.argmax(1)
    return labels.repeat_interleave(views // len(data_samples))


def _repeated(values: Mapping[str, Tensor] | None, V: int) -> dict[str, Tensor] | None:
    """{m: (B,)} -> {m: (B V,)}."""
    return None if values is None else {m: x.repeat_interleave(V) for m, x in values.items()}


def _shared_by_crops(x: Tensor, B: int, V: int) -> Tensor:
    """(B clips, ...) -> (B V, ...): the crops of a sample share what there is once per clip."""
    clips = len(x) // B
    if clips == V:
        return x
    return x.unflatten(0, (B, 1, clips)).expand(B, V // clips, clips, *x.shape[1:]).flatten(0, 2)


def _input_ndim(encoder: nn.Module) -> int | None:
    """Axes of what an encoder takes, from its first convolution; None without one."""
    parts = encoder.modules()
    return next((ndim for part in parts for conv, ndim in INPUT_NDIM.items() if isinstance(part, conv)), None)


def _mean_over_positions(x: Tensor) -> Tensor:
    """(B, C), (B, T, C), (B, C, H, W) or (B, C, T, H, W) -> (B, C)."""
    if x.ndim == 2:
        return x
    return x.mean([axis for axis in range(1, x.ndim) if axis != channel_axis(x)])


def _pooled(fused: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Fused levels -> (B, sum C)."""
    return torch.cat([_mean_over_positions(x) for x in (fused if isinstance(fused, tuple) else (fused,))], 1)


def _masked_mean(x: Tensor, available_B: Tensor) -> Tensor:
    """:func:`_mean_over_positions`, 0 where the modality is missing, whatever its features hold."""
    vector = _mean_over_positions(x)
    return torch.where(expand_mask(available_B.to(vector.device, non_blocking=True), vector), vector, 0.0)
