"""Fusion blocks as necks: one block per level of the encoders' pyramids."""
from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmfusion_plugin.fusion import FUSIONS, FusionBlock, FusionOutput
from mmfusion_plugin.fusion.contract import as_levels, check_batch, check_modalities, check_names, positions
from mmfusion_plugin.fusion.cuda_graphs import GraphedFusion
from mmfusion_plugin.fusion.dependency import Dependency
from mmfusion_plugin.fusion.layers import ChannelLinear
from mmfusion_plugin.fusion.masking import ModalityDropout
from mmfusion_plugin.fusion.udml import UDML

__all__ = ["FusionNeck", "SingleModality", "UDMLNeck"]

Features = Mapping[str, Tensor | Sequence[Tensor]]
OF_THE_NECK = {"modalities", "in_channels", "out_channels", "align", "modality_dropout", "cuda_graphs"}
RESIZE = {3: "linear", 4: "bilinear", 5: "trilinear"}


class FusionNeck(BaseModule):
    """A pyramid of one fusion method's blocks, registered under the method's own name.

    Args:
        modalities: names, in fusion order; a list, because no dict's order carries meaning.
        in_channels: width of each modality: a number for one level, a list for a pyramid.
        out_channels: width of each fused level (a list), of all (a number), or None: the method's.
        align: where positions differ between modalities, whose grid the others are resized to
            (linear interpolation): a modality's name, ``first`` for the first of ``modalities``, or
            ``none`` to raise instead.
        level_options: one dict per level, laid over ``options``.
        modality_dropout: drawn once for all levels.
        cuda_graphs: on a GPU, record the fusion of each kind of batch as CUDA graphs when it comes for the second time:
            the same results, for small batches without the time that a processor takes to start the kernels, at the
            cost of the activations' memory for each kind. See :class:`GraphedFusion`; elsewhere nothing changes.
        options: of the fusion block.

    Shapes: feats {m: tuple of (B, C_m, H, W), or one tensor}, available {m: (B,)} bool, weights as feats with one
        channel, and their positions or 1 for each, or None ->
        FusionOutput; ``fused`` is a tuple if ``in_channels`` holds lists, else one tensor. Losses are
        means over levels (a level without one counts as 0); where there are several levels, the
        diagnostics, and what is known per sample, of level i are named ``<name>.<i>``.
    Raises: ValueError for names, numbers of levels or widths that do not agree.
    """

    block: type[FusionBlock]

    def __init__(
        self,
        modalities: Sequence[str],
        in_channels: Mapping[str, int | Sequence[int]],
        out_channels: int | Sequence[int] | None = None,
        *,
        align: str = "first",
        level_options: Sequence[Mapping] | None = None,
        modality_dropout: float = 0.0,
        cuda_graphs: bool = False,
        init_cfg: dict | None = None,
        **options,
    ) -> None:
        super().__init__(init_cfg)
        self.modalities = check_modalities(modalities)
        if not isinstance(cuda_graphs, bool):
            raise ValueError(f"neck.cuda_graphs must be True or False, got {cuda_graphs!r}")
        if cuda_graphs and any(given.get("missing_fill") == "mean" for given in (options, *(level_options or ()))):
            raise ValueError(
                "neck.missing_fill='mean' adds up over all processes in each step, which neck.cuda_graphs cannot "
                "record; choose 'zeros' or 'token', or leave cuda_graphs out")
        self.graphs = GraphedFusion() if cuda_graphs else None
        if align not in ("first", "none", *self.modalities):
            raise ValueError(f"neck.align must be 'first', 'none' or one of {list(modalities)}, got {align!r}")
        self.align = self.modalities[0] if align == "first" else align
        self.pyramid, levels = _levels(self.modalities, in_channels)
        outs = _per_level("out_channels", out_channels, len(levels))
        extra = [{}] * len(levels) if level_options is None else list(level_options)
        if len(extra) != len(levels):
            raise ValueError(f"neck.level_options has {len(extra)} entries for {len(levels)} levels")
        whole = sorted(OF_THE_NECK & {key for more in extra for key in more})
        if whole:
            raise ValueError(f"neck.level_options sets {whole}, which hold for all levels at once; set neck.{whole[0]}")
        known = _options(self.block)
        unknown = sorted({key for given in (options, *extra) for key in given} - known)
        if unknown:
            takes = sorted(known | OF_THE_NECK | {"level_options"})
            raise TypeError(f"a neck of type {type(self).__name__} has no options {unknown}; it takes {takes}")
        self.modality_dropout = ModalityDropout(self.modalities, modality_dropout)
        self.levels = nn.ModuleList(
            self.block(self.modalities, widths, out_channels=out, **{**options, **more})
            for widths, out, more in zip(levels, outs, extra)
        )

    @property
    def out_channels(self) -> list[int]:
        return [level.out_channels for level in self.levels]

    def forward(
        self, feats: Features, available: Mapping[str, Tensor] | None = None, weights: Features | None = None
    ) -> FusionOutput:
        pyramid = self._by_level(feats)
        available = check_batch(self.modalities, self.levels[0].in_channels, pyramid[0], available)
        available = self.modality_dropout(available)
        if weights is not None:
            weights = [_on_grid_of(level, x) for level, x in zip(pyramid, self._levels_of(weights, "weights"))]
        if self.graphs is None:
            return self._fuse(pyramid, available, weights)
        return self.graphs(self.levels, self._fuse, pyramid, available, weights)

    def _fuse(
        self, pyramid: Sequence[Mapping[str, Tensor]], available: Mapping[str, Tensor],
        weights: Sequence[Mapping[str, Tensor]] | None,
    ) -> FusionOutput:
        more = [()] * len(pyramid) if weights is None else [(level,) for level in weights]
        outs = [block(level, available, *extra) for block, level, extra in zip(self.levels, pyramid, more)]
        if not self.pyramid:
            return outs[0]
        return FusionOutput(
            fused=tuple(out.fused for out in outs),
            losses=_means([out.losses for out in outs]),
            diagnostics=_numbered([out.diagnostics for out in outs]),
            per_sample=_numbered([out.per_sample for out in outs]),
        )

    def train(self, mode: bool = True) -> FusionNeck:
        super().train(mode)
        if self.graphs is not None:
            self.graphs.forget_if_rebuilt(self.levels)
        return self

    def _by_level(self, feats: Features) -> list[dict[str, Tensor]]:
        return [self._to_one_grid(level) for level in self._levels_of(feats, "the batch")]

    def _levels_of(self, feats: Features, what: str) -> list[dict[str, Tensor]]:
        check_names(self.modalities, feats, what)
        tuples = {m: as_levels(m, feats[m], len(self.levels)) for m in self.modalities}
        return [{m: tuples[m][i] for m in self.modalities} for i in range(len(self.levels))]

    def _to_one_grid(self, level: dict[str, Tensor]) -> dict[str, Tensor]:
        ranks = {m: x.ndim for m, x in level.items()}
        if len(set(ranks.values())) > 1:
            raise ValueError(
                f"the encoders' features have different numbers of axes, {ranks}: neck.align brings no vectors, "
                "sequences, maps and clips to one grid; pool them before the neck")
        if self.align == "none" or level[self.align].ndim < 3:
            return level
        grid = positions(level[self.align])
        return {m: x if positions(x) == grid else _resize(x, grid) for m, x in level.items()}


def _options(block: type[nn.Module]) -> set[str]:
    """Names of what a block's ``__init__`` and its parents' take."""
    own = [cls.__init__ for cls in block.__mro__ if "__init__" in vars(cls) and issubclass(cls, FusionBlock)]
    return {name for init in own for name, parameter in inspect.signature(init).parameters.items()
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)} - {"self"}


def _on_grid_of(level: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of positions where the features were resized; one weight for all positions stays one."""
    return {m: x if positions(x) in (positions(level[m]), (1,) * len(positions(x))) else _resize(x, positions(level[m]))
            for m, x in weights.items()}


def _resize(x: Tensor, grid: torch.Size) -> Tensor:
    if x.ndim == 3:
        return F.interpolate(x.mT, grid, mode=RESIZE[3], align_corners=False).mT
    return F.interpolate(x, grid, mode=RESIZE[x.ndim], align_corners=False)


def _levels(
    modalities: Sequence[str], in_channels: Mapping[str, int | Sequence[int]]
) -> tuple[bool, list[dict[str, int]]]:
    """(whether it is a pyramid, widths by modality for each level)."""
    if not isinstance(in_channels, Mapping) or set(in_channels) != set(modalities):
        given = sorted(in_channels) if isinstance(in_channels, Mapping) else in_channels
        raise ValueError(f"neck.in_channels names {given}, neck.modalities names {list(modalities)}")
    for m in modalities:
        if not isinstance(in_channels[m], int) and (isinstance(in_channels[m], str)
                                                    or not isinstance(in_channels[m], Sequence)):
            raise ValueError(f"neck.in_channels.{m} must be a number or a list of numbers, got {in_channels[m]!r}")
    single = {m: isinstance(in_channels[m], int) for m in modalities}
    if all(single.values()):
        return False, [{m: in_channels[m] for m in modalities}]
    if any(single.values()):
        raise ValueError(f"neck.in_channels mixes numbers and lists: {dict(in_channels)}")
    numbers = {m: len(in_channels[m]) for m in modalities}
    if len(set(numbers.values())) > 1:
        raise ValueError(f"neck.in_channels lists different numbers of levels: {numbers}")
    if not numbers[modalities[0]]:
        raise ValueError("neck.in_channels lists no level; give the encoders' widths")
    return True, [{m: in_channels[m][i] for m in modalities} for i in range(numbers[modalities[0]])]


def _per_level(key: str, value: int | Sequence[int] | None, levels: int) -> list[int | None]:
    if value is None or isinstance(value, int):
        return [value] * levels
    if len(value) != levels:
        raise ValueError(f"neck.{key} has {len(value)} entries for {levels} levels")
    return list(value)


def _means(dicts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    names = dict.fromkeys(name for d in dicts for name in d)
    zero = next((value.new_zeros(()) for d in dicts for value in d.values()), None)
    return {name: torch.stack([d.get(name, zero) for d in dicts]).mean(0) for name in names}


def _numbered(dicts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    if len(dicts) == 1:
        return dict(dicts[0])
    return {f"{name}.{i}": value for i, d in enumerate(dicts) for name, value in d.items()}


def _register(name: str, block: type[FusionBlock]) -> type[FusionNeck]:
    neck = type(name, (FusionNeck,), {
        "block": block, "__module__": __name__, "__doc__": f"Neck of :class:`{block.__name__}` blocks."})
    return MODELS.register_module(name=name, module=neck)


NECKS = {name: _register(name, block) for name, block in FUSIONS.items()}
globals().update(NECKS)  # where pickle looks for them


@MODELS.register_module(name="UDML")
class UDMLNeck(BaseModule):
    """:class:`~mmfusion_plugin.fusion.udml.UDML` round any fusion neck.

    Args:
        modalities, in_channels: as in :class:`FusionNeck`; handed on to ``inner``.
        inner: config of the fusion that reads the weighted features: ``dict(type='SCFAE', out_channels=...)``.
            Its modalities must share one grid; bring them there with ``inner.align``. Its ``modality_dropout`` becomes
            UDML's, whose weights are shares of what is left.
        options: of UDML.

    Shapes: as :class:`FusionNeck`; levels {m: (B,)}: injected noise, None where it is not known; alpha, energies,
        disagreements and statistics as in UDML, which :func:`~mmfusion_plugin.models.availability.fuse` supplies.
    Raises: ValueError if ``inner`` is no config of a fusion neck, or for options outside their range.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        in_channels: Mapping[str, int | Sequence[int]],
        inner: Mapping,
        init_cfg: dict | None = None,
        **options,
    ) -> None:
        super().__init__(init_cfg)
        if not isinstance(inner, Mapping) or "type" not in inner:
            raise ValueError(f"neck.inner must be a fusion neck's config such as dict(type='SCFAE'), got {inner!r}")
        modalities = check_modalities(modalities)
        self.pyramid, _ = _levels(modalities, in_channels)
        inner = dict(inner)
        if "modality_dropout" in inner and "modality_dropout" in options:
            raise ValueError("neck.modality_dropout and neck.inner.modality_dropout are one thing; set one of them")
        if "modality_dropout" in inner:
            options["modality_dropout"] = inner.pop("modality_dropout")
        fusion = MODELS.build({**inner, "modalities": list(modalities), "in_channels": in_channels})
        self.udml = UDML(modalities, in_channels, fusion, **options)
        self.modalities = modalities

    @property
    def levels(self) -> nn.ModuleList:
        return self.udml.inner.levels

    @property
    def out_channels(self) -> list[int]:
        return self.udml.inner.out_channels

    @property
    def dependency(self) -> Dependency | None:
        return self.udml.dependency

    @property
    def reads_alone(self) -> bool:
        return self.udml.reads_alone

    @property
    def reads_energies(self) -> bool:
        return self.udml.reads_energies

    @property
    def reads_disagreement(self) -> bool:
        return self.udml.reads_disagreement

    @property
    def reads_statistics(self) -> bool:
        return self.udml.reads_statistics

    def grid(self, feats: Features) -> tuple[int, int] | None:
        return self.udml.grid(feats)

    @property
    def reads_gain(self) -> bool:
        return self.udml.reads_gain

    @property
    def reads_own_heads(self) -> list[str]:
        return self.udml.reads_own_heads

    def dependency_due(self) -> bool:
        return self.udml.dependency_due()

    def update_gain(
        self, correct: Mapping[str, Tensor], output: FusionOutput, available: Mapping[str, Tensor], classes: int
    ) -> None:
        self.udml.update_gain(correct, output, available, classes)

    def forward(
        self,
        feats: Features,
        available: Mapping[str, Tensor] | None = None,
        levels: Mapping[str, Tensor] | None = None,
        alpha: Mapping[str, Tensor] | None = None,
        energies: Mapping[str, Tensor] | None = None,
        disagreements: Mapping[str, Tensor] | None = None,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> FusionOutput:
        return self.udml(feats, available, levels, alpha, energies, disagreements, statistics)


@MODELS.register_module()
class SingleModality(BaseModule):
    """One modality alone, projected like the baselines: the unimodal rows of a table.

    Shapes: feats {m: tuple of maps, or one tensor} -> FusionOutput of ``modality``'s levels.
    Raises: ValueError if the modality is not in the batch or is missing in a sample.
    """

    def __init__(
        self,
        modality: str,
        in_channels: int | Sequence[int],
        out_channels: int | Sequence[int] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.modality = modality
        self.pyramid = not isinstance(in_channels, int)
        widths = list(in_channels) if self.pyramid else [in_channels]
        outs = _per_level("out_channels", out_channels, len(widths))
        self.project = nn.ModuleList(
            nn.Identity() if out is None else ChannelLinear(width, out) for width, out in zip(widths, outs)
        )

    def forward(self, feats: Features, available: Mapping[str, Tensor] | None = None) -> FusionOutput:
        if self.modality not in feats:
            raise ValueError(f"neck.modality is {self.modality!r}, the batch holds {sorted(feats)}")
        if available is not None and not available[self.modality].all():
            raise ValueError(f"neck.modality {self.modality!r} is the only one and is missing in a sample")
        x = feats[self.modality]
        levels = (x,) if isinstance(x, Tensor) else tuple(x)
        if len(levels) != len(self.project):
            raise ValueError(
                f"the {self.modality!r} encoder gives {len(levels)} levels, neck.in_channels lists "
                f"{len(self.project)}"
            )
        fused = tuple(project(level) for project, level in zip(self.project, levels))
        return FusionOutput(fused if self.pyramid else fused[0])
