"""What every fusion block takes and what it gives back. Plain torch.

Axes: B batch, C channels, T time, H height, W width. Features of one modality are vectors
(B, C), sequences (B, T, C), maps (B, C, H, W) or clips (B, C, T, H, W).
"""
from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

__all__ = [
    "FusionOutput",
    "all_there",
    "as_levels",
    "channel_axis",
    "check_batch",
    "check_in_channels",
    "check_modalities",
    "check_names",
    "check_width",
    "expand_mask",
    "on_device_of",
    "plain_eager",
    "positions",
    "refuse_recomputation",
    "takes_weights",
    "weighted",
    "where_there",
]

LOSS_PREFIX = "fusion.loss_"
RESERVED = frozenset([*dir(nn.ModuleDict()), *dir(nn.ParameterDict())])


@dataclass
class FusionOutput:
    """Result of a fusion block (one level) or neck (a pyramid).

    Args:
        fused: what the task head reads; a tuple of tensors for a pyramid.
        losses: scalars, already weighted; every name starts with ``fusion.loss_`` because
            mmengine optimises only entries whose name contains ``loss``.
        diagnostics: detached scalars for logs and plots; no name may contain ``loss``.
        per_sample: what diagnostics average, as detached tensors (B,): for analysis, never logged.

    Raises: ValueError if a name breaks these rules.
    """

    fused: Tensor | tuple[Tensor, ...]
    losses: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    per_sample: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.losses:
            if not name.startswith(LOSS_PREFIX):
                raise ValueError(f"loss {name!r} must be named {LOSS_PREFIX}*, or it is never optimised")
        for name in self.diagnostics:
            if "loss" in name:
                raise ValueError(f"diagnostic {name!r} would be optimised: its name contains 'loss'")
        self.diagnostics = {name: _detached(value) for name, value in self.diagnostics.items()}
        self.per_sample = {name: _detached(value) for name, value in self.per_sample.items()}

    def __getitem__(self, index: object) -> Tensor:
        """Raises TypeError: who takes this for a pyramid is a model of another library."""
        raise TypeError(
            "a fusion neck gives a FusionOutput, whose .fused a head reads; set model.type='FusionEncoderDecoder' "
            "(mmsegmentation's EncoderDecoder knows no fusion) or 'FusionRecognizer'")


def _detached(x: Tensor) -> Tensor:
    return x.detach() if x.requires_grad else x


def check_modalities(modalities: Sequence[str]) -> tuple[str, ...]:
    """Names in ring order. Raises ValueError unless there are two or more different names."""
    if isinstance(modalities, str) or not all(isinstance(m, str) for m in modalities):
        raise ValueError(f"modalities must be a list of names such as ['rgb', 'depth'], got {modalities!r}")
    if len(modalities) < 2:
        raise ValueError(f"fusion needs at least two modalities, modalities is {list(modalities)}")
    if len(set(modalities)) != len(modalities):
        raise ValueError(f"modalities holds a name twice: {list(modalities)}")
    if any(not m or "." in m for m in modalities):
        raise ValueError(f"a modality's name must be non-empty and hold no dot: {list(modalities)}")
    if any("loss" in m for m in modalities):
        raise ValueError(
            f"no modality's name may contain 'loss', or mmengine adds up its diagnostics as losses: {list(modalities)}")
    taken = [m for m in modalities if m in RESERVED]
    if taken:
        raise ValueError(
            f"modalities {taken} cannot be used as names: torch's containers have attributes called so; "
            f"rename them in modalities={list(modalities)}, for example to {taken[0] + '_sensor'!r}"
        )
    return tuple(modalities)


def check_names(modalities: Sequence[str], given: Mapping[str, object], what: str) -> None:
    """Raises ValueError unless ``given`` (``what``) holds exactly the modalities."""
    if set(given) != set(modalities):
        raise ValueError(
            f"neck.modalities is {list(modalities)}, {what} holds {sorted(given)}; "
            "rename it in the config or the stream in the pipeline"
        )


def check_in_channels(modalities: Sequence[str], in_channels: Mapping[str, int]) -> dict[str, int]:
    """Widths by name, in the order of ``modalities``. Raises ValueError if the names differ."""
    if not isinstance(in_channels, Mapping):
        raise ValueError(
            f"in_channels must be a dict by modality such as dict({modalities[0]}=512, ...), "
            f"got {in_channels!r}"
        )
    if set(in_channels) != set(modalities):
        raise ValueError(
            f"in_channels names {sorted(in_channels)}, modalities names {list(modalities)}; "
            "give one width for each modality"
        )
    for m in modalities:
        C = in_channels[m]
        if not isinstance(C, int) or isinstance(C, bool) or C < 1:
            raise ValueError(f"in_channels.{m} must be a positive integer, got {C!r}")
    return {m: in_channels[m] for m in modalities}


def channel_axis(x: Tensor) -> int:
    """Axis of the channels: last for sequences (B, T, C), 1 otherwise."""
    return 2 if x.ndim == 3 else 1


def positions(x: Tensor) -> torch.Size:
    """Sizes of the axes that are neither batch nor channels: (), (T,), (H, W) or (T, H, W)."""
    return x.shape[1:2] if x.ndim == 3 else x.shape[2:]


def expand_mask(mask_B: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...) with as many axes as ``like``."""
    expanded = mask_B.reshape(-1, *[1] * (like.ndim - 1))
    return _mark_all_true(expanded) if _is_all_true(mask_B) else expanded


def plain_eager(x: Tensor) -> bool:
    """Whether operators on ``x`` run at once and unseen.

    Not under a compiler, an exporter, a counter or a transform of torch.func, nor for a tensor subclass.
    """
    return (
        type(x) is Tensor
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and _get_current_dispatch_mode() is None
    )


def all_there(mask: Tensor) -> bool:
    """Whether the mask is known to be all True: a processor can tell without waiting, or could before
    :func:`on_device_of`."""
    return _is_all_true(mask) or mask.device.type == "cpu" and plain_eager(mask) and bool(mask.all())


def where_there(mask: Tensor, x: Tensor, stand_in: Tensor | float) -> Tensor:
    """torch.where, or ``x`` itself where :func:`all_there`.

    A ``stand_in`` that learns stays in the graph whatever the mask says.
    """
    learns = isinstance(stand_in, Tensor) and stand_in.requires_grad
    return x if not learns and all_there(mask) else torch.where(mask, x, stand_in)


def weighted(x: Tensor, weight: Tensor, mask_B: Tensor) -> Tensor:
    """``x`` times its weight where the modality is there; what stands in for a missing one stays as it is.

    Shapes: x any rank of the contract, weight with one channel and x's positions, or 1 for each of them.
    """
    return where_there(expand_mask(mask_B, x), x * weight.to(x.dtype), x)


@functools.cache  # reading a signature takes as long as a small product
def takes_weights(fuse: Callable) -> bool:
    """Whether a class's function multiplies by the modalities' weights itself.

    Raises: TypeError for one that says nothing of what it takes.
    """
    parameters = inspect.signature(fuse).parameters
    if any(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in parameters.values()):
        raise TypeError(
            f"{fuse.__qualname__} takes {inspect.signature(fuse)}, which does not say whether `weights` are read: name "
            "its parameters")
    return "weights" in parameters


def refuse_recomputation(what: str) -> None:
    """Raises RuntimeError in a forward pass that activation checkpointing repeats: ``what`` would not be the same.

    Its gradients would be those of another draw, and running statistics would take in each batch twice.
    """
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            f"{what} is run again in a backward pass: activation checkpointing round it cannot repeat what it drew and "
            "learnt the first time. Checkpoint the encoders and heads alone; SCFAE has neck.with_cp=True of its own")


def as_levels(m: str, x: Tensor | Sequence[Tensor], number: int) -> tuple[Tensor, ...]:
    """The levels of modality ``m``'s pyramid; a tensor is one. Raises ValueError unless there are ``number``."""
    levels = (x,) if isinstance(x, Tensor) else tuple(x)
    if len(levels) != number:
        raise ValueError(
            f"the {m!r} encoder gives {len(levels)} levels, neck.in_channels.{m} lists {number}; change it or the "
            "backbone's out_indices")
    return levels


def check_width(m: str, x: Tensor, C: int) -> None:
    """Raises ValueError unless features of modality ``m`` are of a rank of the contract and have ``C`` channels."""
    if x.ndim not in (2, 3, 4, 5):
        raise ValueError(
            f"features of {m!r} have shape {tuple(x.shape)}; expected (B, C), (B, T, C), (B, C, H, W) "
            "or (B, C, T, H, W)"
        )
    if x.shape[channel_axis(x)] != C:
        raise ValueError(
            f"features of {m!r} have {x.shape[channel_axis(x)]} channels (shape {tuple(x.shape)}), "
            f"neck.in_channels.{m} is {C}"
        )


def check_batch(
    modalities: Sequence[str],
    in_channels: Mapping[str, int],
    feats: Mapping[str, Tensor],
    available: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """Check one level of features and return the availability of every modality, on the device that it came on.

    Masks should come on the processor, where the answer to "is anything left?" does not wait for an accelerator.

    Shapes: feats {m: (B, C_m), (B, T, C_m), (B, C_m, H, W) or (B, C_m, T, H, W)};
        available {m: (B,)} bool, or None for "all there" -> {m: (B,)} bool.
    Raises: ValueError if names, channels, positions or batch sizes differ, or if a sample has no
        modality at all; TypeError if a mask is not boolean.
    """
    check_names(modalities, feats, "the batch")
    first = feats[modalities[0]]
    for m in modalities:
        x = feats[m]
        check_width(m, x, in_channels[m])
        if x.shape[0] != first.shape[0]:
            raise ValueError(f"{m!r} holds {x.shape[0]} samples, {modalities[0]!r} {first.shape[0]}")
        if x.ndim != first.ndim or positions(x) != positions(first):
            raise ValueError(
                f"{m!r} has positions {tuple(positions(x))}, {modalities[0]!r} {tuple(positions(first))}; "
                "bring them to one grid before fusion (the necks' align option does)"
            )
    if available is None:
        where = first.device if torch.compiler.is_compiling() else "cpu"
        return {m: torch.ones(first.shape[0], dtype=torch.bool, device=where) for m in modalities}
    check_names(modalities, available, "available")
    for m in modalities:
        if available[m].dtype != torch.bool:
            raise TypeError(f"available[{m!r}] must be bool, got {available[m].dtype}")
        if available[m].shape != first.shape[:1]:
            raise ValueError(
                f"available[{m!r}] has shape {tuple(available[m].shape)}, expected ({first.shape[0]},)"
            )
    kind = available[modalities[0]].device.type
    if kind != "meta" and not (kind == "cuda" and torch.cuda.is_current_stream_capturing()):
        nothing = ~torch.stack([available[m] for m in modalities]).any(0)
        if not torch.compiler.is_compiling() and nothing.any():
            raise ValueError(
                f"samples {nothing.nonzero().flatten().tolist()} of the batch have no modality at all; "
                f"at least one of {list(modalities)} must be available per sample"
            )
    return {m: available[m] for m in modalities}


def on_device_of(feats: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks on the device of the features; those that are known to be all True are marked for :func:`where_there`.

    On a GPU that spares a batch of vectors 8 of its 50 kernels and a copy of each mask.
    """
    return {m: _on_device(available[m], x.device) for m, x in feats.items()}


def _on_device(mask: Tensor, device: torch.device) -> Tensor:
    if mask.device == device:
        return mask
    if mask.device.type == "cpu" and plain_eager(mask) and mask.all():
        # made there, not copied: a CUDA graph can hold it
        return _mark_all_true(torch.ones_like(mask, device=device))
    return mask.to(device, non_blocking=True)


def _mark_all_true(mask: Tensor) -> Tensor:
    mask.known_all_true = True
    return mask


def _is_all_true(mask: Tensor) -> bool:
    return getattr(mask, "known_all_true", False)
