"""One encoder per modality behind mmsegmentation's and mmaction2's single ``backbone`` slot."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

__all__ = ["MultimodalBackbone", "adapt_first_convolution"]


@MODELS.register_module()
class MultimodalBackbone(BaseModule):
    """A registered backbone for each modality.

    A backbone's ``init_cfg=dict(type='Pretrained', checkpoint=...)`` also works where the modality
    has another number of channels than the checkpoint's first convolution (RGB weights for depth):
    that kernel is averaged over its input channels.

    Args:
        modalities: names, in the order in which the data preprocessor stacks them.
        backbones: config of each modality's encoder; ``mmseg.``/``mmpretrain.`` prefixes reach any
            library, no prefix the default scope.
        in_channels: input channels by modality; written into each backbone's config.

    Shapes: a Tensor (B, sum of in_channels, H, W), or {m: input of any shape} ->
        {m: tuple of feature maps, as the encoder returns them}.
    Raises: ValueError if names differ or the stacked input has another number of channels.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        backbones: Mapping[str, Mapping],
        in_channels: Mapping[str, int],
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        for key, given in (("backbones", backbones), ("in_channels", in_channels)):
            if set(given) != set(modalities):
                raise ValueError(
                    f"backbone.{key} names {sorted(given)}, backbone.modalities names {list(modalities)}"
                )
        self.modalities = tuple(modalities)
        self.in_channels = {m: in_channels[m] for m in self.modalities}
        self.pretrained: dict[str, Mapping] = {}
        self.encoders = nn.ModuleDict()
        for m in self.modalities:
            cfg = {"in_channels": in_channels[m], **backbones[m]}
            if cfg["in_channels"] != in_channels[m]:
                raise ValueError(
                    f"backbone.backbones.{m}.in_channels is {cfg['in_channels']}, "
                    f"backbone.in_channels.{m} is {in_channels[m]}"
                )
            init = cfg.get("init_cfg")
            if isinstance(init, Mapping) and init.get("type") == "Pretrained":
                self.pretrained[m] = init
                cfg["init_cfg"] = None
            self.encoders[m] = MODELS.build(cfg)

    def init_weights(self) -> None:
        super().init_weights()
        for m, init in self.pretrained.items():
            load_pretrained(self.encoders[m], init["checkpoint"], init.get("prefix", ""), m)

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
        streams = self.split(inputs) if isinstance(inputs, Tensor) else inputs
        if set(streams) != set(self.modalities):
            raise ValueError(
                f"backbone.modalities is {list(self.modalities)}, the batch holds {sorted(streams)}"
            )
        feats = {m: self.encoders[m](streams[m]) for m in self.modalities}
        return {m: x if isinstance(x, tuple) else tuple(x) if isinstance(x, list) else (x,) for m, x in feats.items()}

    def split(self, stacked: Tensor) -> dict[str, Tensor]:
        """(B, sum C_m, H, W) -> {m: (B, C_m, H, W)}."""
        widths = [self.in_channels[m] for m in self.modalities]
        if stacked.shape[1] != sum(widths):
            raise ValueError(
                f"the stacked input has {stacked.shape[1]} channels, backbone.in_channels asks for "
                f"{self.in_channels} = {sum(widths)}; data_preprocessor.mean must list as many channels"
            )
        return dict(zip(self.modalities, stacked.split(widths, 1)))


def load_pretrained(encoder: nn.Module, checkpoint: str, prefix: str, modality: str) -> None:
    """Load a published checkpoint into one encoder, adapting its first convolution.

    Raises: ValueError if no tensor of the checkpoint fits the encoder.
    """
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location="cpu")
    state = loaded.get("state_dict", loaded)
    starts = (f"{prefix.rstrip('.')}.",) if prefix else ("backbone.", "module.backbone.", "module.")
    for start in starts:
        if any(name.startswith(start) for name in state):
            state = {name[len(start) :]: v for name, v in state.items() if name.startswith(start)}
            break
    own = encoder.state_dict()
    state = {name: adapt_first_convolution(v, own[name]) for name, v in state.items() if name in own}
    fitting = {name: v for name, v in state.items() if v.shape == own[name].shape}
    if not fitting:
        raise ValueError(
            f"no weight of {checkpoint!r} fits the {modality!r} encoder {type(encoder).__name__}; "
            f"check backbone.backbones.{modality}.init_cfg.checkpoint and its prefix"
        )
    encoder.load_state_dict(fitting, strict=False)
    left = sorted(set(own) - set(fitting))
    print_log(
        f"{modality}: {len(fitting)} of {len(own)} tensors from {checkpoint}"
        + (f"; not loaded: {', '.join(left[:8])}{' ...' if len(left) > 8 else ''}" if left else ""),
        logger="current",
    )


def adapt_first_convolution(pretrained: Tensor, own: Tensor) -> Tensor:
    """Average a kernel (out, in, ...) over its input channels where only ``in`` differs."""
    same_but_in = pretrained.ndim == own.ndim >= 3 and (
        pretrained.shape[:1] + pretrained.shape[2:] == own.shape[:1] + own.shape[2:]
    )
    if not same_but_in or pretrained.shape == own.shape:
        return pretrained
    return pretrained.mean(1, keepdim=True).expand_as(own).clone()
