"""One encoder per modality behind mmsegmentation's and mmaction2's single ``backbone`` slot."""
from __future__ import annotations

import inspect
import logging
import tempfile
from collections.abc import Mapping, Sequence

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule, ModuleDict
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from mmfusion_plugin.fusion.contract import RESERVED, check_modalities

__all__ = ["MultimodalBackbone", "adapt_first_convolution"]


@MODELS.register_module()
class MultimodalBackbone(BaseModule):
    """A registered backbone for each modality.

    A backbone's ``init_cfg=dict(type='Pretrained', checkpoint=..., prefix=...)``, alone or in a list,
    or its ``pretrained=...`` also works where the modality has another number of channels than the
    checkpoint's first convolution (RGB weights for depth): that kernel is averaged over its input
    channels. mmaction2's ResNets keep their own loaders (torchvision's names, inflation to 3D), and only the
    first kernel is averaged afterwards. The log names every tensor that was not loaded. Freezing and the
    like stay the inner backbone's own.

    Args:
        modalities: names, in the order in which the data preprocessor stacks them.
        backbones: config of each modality's encoder; ``mmseg.``/``mmpretrain.`` prefixes reach any
            library, no prefix the default scope.
        in_channels: input channels by modality; written into the config of each backbone that takes them.

    Shapes: a Tensor (B, sum of in_channels, H, W), or {m: input of any shape} ->
        {m: tuple of feature maps, as the encoder returns them}.
    Raises: ValueError if names or numbers of channels disagree, no weight of a checkpoint fits, or ``init_cfg`` of the
        whole names a checkpoint.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        backbones: Mapping[str, Mapping],
        in_channels: Mapping[str, int],
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.modalities = _check_names(modalities)
        if any(init.get("type") == "Pretrained" for init in _entries(init_cfg)):
            raise ValueError(
                f"backbone.init_cfg names a checkpoint, whose weights no encoder of several would get; set "
                f"backbone.backbones.<modality>.init_cfg, for each of {list(self.modalities)} that starts from it"
            )
        for key, given in (("backbones", backbones), ("in_channels", in_channels)):
            if not isinstance(given, Mapping):
                raise ValueError(
                    f"backbone.{key} must be a dict by modality such as dict({self.modalities[0]}=...), got {given!r}"
                )
            if set(given) != set(modalities):
                raise ValueError(
                    f"backbone.{key} names {sorted(given)}, backbone.modalities names {list(modalities)}"
                )
        for m in self.modalities:
            if not isinstance(in_channels[m], int) or isinstance(in_channels[m], bool) or in_channels[m] < 1:
                raise ValueError(f"backbone.in_channels.{m} must be a positive integer, got {in_channels[m]!r}")
        self.in_channels = {m: in_channels[m] for m in self.modalities}
        self.pretrained: dict[str, Mapping] = {}
        self.encoders = ModuleDict()  # torch's own hides its members from mmengine's init_weights
        for m in self.modalities:
            cfg = dict(backbones[m])
            if "in_channels" in cfg or "in_channels" in _parameters(cfg):
                cfg.setdefault("in_channels", in_channels[m])
            if cfg.get("in_channels", in_channels[m]) != in_channels[m]:
                raise ValueError(
                    f"backbone.backbones.{m}.in_channels is {cfg['in_channels']}, "
                    f"backbone.in_channels.{m} is {in_channels[m]}"
                )
            published = None if _loads_itself(cfg) else _take_pretrained(cfg, m)
            if published is not None:
                self.pretrained[m] = published
            self.encoders[m] = MODELS.build(cfg)
            _check_input(self.encoders[m], m, in_channels[m])

    def init_weights(self) -> None:
        super().init_weights()
        for m, init in self.pretrained.items():
            load_pretrained(self.encoders[m], init["checkpoint"], init.get("prefix", ""), m)
        for m, encoder in self.encoders.items():
            checkpoint = getattr(encoder, "pretrained", None)
            if isinstance(checkpoint, str) and m not in self.pretrained:
                _adapt_first(encoder, checkpoint, m)

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
        streams = self.split(inputs) if isinstance(inputs, Tensor) else inputs
        if set(streams) != set(self.modalities):
            raise ValueError(
                f"backbone.modalities is {list(self.modalities)}, the batch holds {sorted(streams)}"
            )
        feats = {m: self.encoders[m](streams[m]) for m in self.modalities}
        return {m: (x,) if isinstance(x, Tensor) else tuple(x) for m, x in feats.items()}

    def split(self, stacked: Tensor) -> dict[str, Tensor]:
        """(B, sum C_m, H, W) -> {m: (B, C_m, H, W)}."""
        widths = [self.in_channels[m] for m in self.modalities]
        if stacked.shape[1] != sum(widths):
            raise ValueError(
                f"the stacked input has {stacked.shape[1]} channels, backbone.in_channels asks for "
                f"{self.in_channels} = {sum(widths)}; data_preprocessor.mean must list as many channels"
            )
        return dict(zip(self.modalities, stacked.split(widths, 1)))


def _check_names(modalities: Sequence[str]) -> tuple[str, ...]:
    """Names in stacking order; one alone is a unimodal reference."""
    if isinstance(modalities, str) or len(modalities) != 1:
        return check_modalities(modalities)
    if not isinstance(modalities[0], str) or "." in modalities[0] or modalities[0] in RESERVED:
        raise ValueError(f"backbone.modalities: {modalities[0]!r} cannot be a modality's name; rename it")
    return tuple(modalities)


def _parameters(cfg: Mapping) -> set[str]:
    """Names that the constructor of the encoder in ``cfg`` takes, also through ``**kwargs`` from its base classes;
    none where it cannot be found (building it says why)."""
    kind = cfg.get("type")
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(cfg.get("_scope_")) as registry:  # MODELS.get knows no default scope
            kind = registry.get(kind)
    if kind is None:
        return set()
    names: set[str] = set()
    for base in inspect.getmro(kind) if inspect.isclass(kind) else [kind]:
        if inspect.isclass(base) and "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__ if inspect.isclass(base) else base).parameters.values()
        names |= {p.name for p in parameters}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return names


def _loads_itself(cfg: Mapping) -> bool:
    """mmaction2's ResNets map torchvision's names, and inflate 2D kernels, in loaders of their own."""
    own = {"torchvision_pretrain", "pretrained2d"}
    return isinstance(cfg.get("pretrained"), str) and bool(own & _parameters(cfg))


def _check_input(encoder: nn.Module, modality: str, channels: int) -> None:
    first = next((part for part in encoder.modules() if isinstance(part, _ConvNd)), None)
    if first is not None and first.in_channels != channels:
        raise ValueError(
            f"backbone.in_channels.{modality} is {channels}, the first convolution of {type(encoder).__name__} reads "
            f"{first.in_channels} whatever it is told; take another encoder"
        )


def _adapt_first(encoder: nn.Module, checkpoint: str, modality: str) -> None:
    """Average the first kernel of a checkpoint that the encoder loaded itself, leaving out one that did not fit."""
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location="cpu")
    state = loaded.get("state_dict", loaded)
    own = next((part.weight for part in encoder.modules() if isinstance(part, _ConvNd)), None)
    kernel = next((v for v in state.values() if isinstance(v, Tensor) and v.ndim == 4), None)
    if own is None or kernel is None or own.shape[1] == kernel.shape[1]:
        return
    if own.ndim == 5 and kernel.shape[-2:] == own.shape[-2:]:
        kernel = kernel.unsqueeze(2).expand(-1, -1, own.shape[2], -1, -1) / own.shape[2]
    adapted = adapt_first_convolution(kernel, own)
    if adapted.shape != own.shape:
        raise ValueError(
            f"backbone.backbones.{modality}.pretrained={checkpoint!r}: its first kernel {tuple(kernel.shape)} does not "
            f"fit the encoder's {tuple(own.shape)}"
        )
    with torch.no_grad():
        own.copy_(adapted)
    print_log(f"{modality}: first convolution of {checkpoint} averaged over its input channels", logger="current")


def _entries(init_cfg: Mapping | Sequence[Mapping] | None) -> list[Mapping]:
    return [init_cfg] if isinstance(init_cfg, Mapping) else list(init_cfg or [])


def _take_pretrained(cfg: dict, modality: str) -> Mapping | None:
    """Take the checkpoint out of a backbone's config: the encoder alone would skip a first convolution
    of another size without an error."""
    entries = _entries(cfg.get("init_cfg"))
    published = [entry for entry in entries if entry.get("type") == "Pretrained"]
    if isinstance(cfg.get("pretrained"), str):
        published.append({"type": "Pretrained", "checkpoint": cfg.pop("pretrained")})
    if len(published) > 1:
        raise ValueError(
            f"backbone.backbones.{modality} names {len(published)} checkpoints "
            f"({[entry['checkpoint'] for entry in published]}); keep one in init_cfg"
        )
    if not published:
        return None
    others = [entry for entry in entries if entry.get("type") != "Pretrained"]
    cfg["init_cfg"] = others or None
    return published[0]


def load_pretrained(encoder: nn.Module, checkpoint: str, prefix: str, modality: str) -> None:
    """Load a published checkpoint into one encoder, adapting its first convolution; the encoder itself resizes what
    it resizes alone (tables of positions).

    Raises: ValueError if the checkpoint has no such prefix, or none of its tensors fits the encoder.
    """
    where = f"backbone.backbones.{modality}.init_cfg"
    state = _without_prefix(CheckpointLoader.load_checkpoint(checkpoint, map_location="cpu"), prefix, where)
    own = encoder.state_dict()
    first = _first_convolution(encoder)
    adapted = first in state and first in own and state[first].shape != own[first].shape
    if adapted:
        state[first] = adapt_first_convolution(state[first], own[first])
    fitting = {name: v for name, v in state.items() if name in own and v.shape == own[name].shape}
    if not fitting:
        raise ValueError(
            f"no weight of {checkpoint!r} fits the {modality!r} encoder {type(encoder).__name__}; "
            f"check {where}.checkpoint and its prefix (the file holds {', '.join(list(state)[:3])}, ...)"
        )
    other_shape = sorted(name for name in state if name in own and name not in fitting)
    resized = _load_resized(encoder, state, fitting, other_shape)
    encoder.load_state_dict(fitting, strict=False)
    other_shape = [name for name in other_shape if name not in resized]
    left_out = {
        "of another shape": other_shape,
        "missing in the file": sorted(set(own) - set(state)),
        "unexpected in the file": sorted(set(state) - set(own)),
    }
    print_log(
        f"{modality}: {len(fitting) + len(resized)} of {len(own)} tensors loaded from {checkpoint}"
        + (f"; {first} averaged over its input channels" if adapted and first in fitting else "")
        + (f"; resized by the encoder: {', '.join(resized)}" if resized else "")
        + "".join(f"; {what}: {', '.join(names)}" for what, names in left_out.items() if names),
        logger="current",
        level=logging.WARNING if other_shape or left_out["missing in the file"] else logging.INFO,
    )


def _load_resized(
    encoder: nn.Module, state: Mapping[str, Tensor], fitting: Mapping[str, Tensor], names: Sequence[str]
) -> list[str]:
    """Which of ``names`` the encoder's own loader resizes and takes: Swin's and ViT's tables of positions."""
    if not names or not isinstance(encoder, BaseModule):
        return []
    before, own_cfg = {name: encoder.state_dict()[name].clone() for name in names}, encoder.init_cfg
    with tempfile.TemporaryDirectory() as folder:  # the loader takes a path alone
        path = f"{folder}/adapted.pth"
        torch.save({"state_dict": dict(state)}, path)
        encoder.init_cfg, encoder.is_init = dict(type="Pretrained", checkpoint=path), False
        encoder.init_weights()
    encoder.init_cfg, now = own_cfg, encoder.state_dict()
    if not all(torch.equal(now[name], value.to(now[name])) for name, value in fitting.items()):
        return []  # an init_weights that never looks at init_cfg
    return [name for name in names if not torch.equal(now[name], before[name])]


def _without_prefix(loaded: Mapping, prefix: str, where: str) -> dict[str, Tensor]:
    """The checkpoint's tensors by the names that an encoder alone would give them."""
    state = loaded.get("state_dict", loaded.get("model", loaded))
    state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    starts = (f"{prefix.rstrip('.')}.",) if prefix else ("backbone.", "module.backbone.", "module.")
    for start in starts:
        if any(name.startswith(start) for name in state):
            return {name[len(start) :]: v for name, v in state.items() if name.startswith(start)}
    if prefix:
        raise ValueError(f"{where}.prefix is {prefix!r}, the file holds {', '.join(list(state)[:3])}, ...")
    return state


def _first_convolution(encoder: nn.Module) -> str | None:
    """Name of the kernel that reads the input: the first one that the encoder registers."""
    return next((f"{name}.weight" for name, m in encoder.named_modules() if isinstance(m, _ConvNd)), None)


def adapt_first_convolution(pretrained: Tensor, own: Tensor) -> Tensor:
    """Average a kernel (out, in, ...) over its input channels where only ``in`` differs."""
    same_but_in = pretrained.ndim == own.ndim >= 3 and (
        pretrained.shape[:1] + pretrained.shape[2:] == own.shape[:1] + own.shape[2:]
    )
    if not same_but_in or pretrained.shape == own.shape:
        return pretrained
    return pretrained.mean(1, keepdim=True).expand_as(own).clone()
