"""Ask a model something without teaching it. Plain torch."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .kept import Kept
from .parts import parts_of

__all__ = ["constant_weights", "evaluating", "fused_only", "in_evaluation_mode"]


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Without gradients and in evaluation mode."""
    with torch.no_grad(), in_evaluation_mode(*modules):
        yield


@contextmanager
def in_evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """No dropout, no draw, and BatchNorm's statistics stay as they are; gradients as outside."""
    modes = [(part, part.training) for part in parts_of(*modules)]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, mode in modes:  # not train(): a part may have been kept in evaluation mode
            part.training = mode


@contextmanager
def fused_only(*modules: nn.Module, only: bool = True) -> Iterator[None]:
    """Fusion blocks among the modules leave out what ``fused`` does not need: the reconstruction and its comparison.

    For predictions: ``losses`` and what a block says of itself beside ``fused`` may then be empty. ``only=False``
    asks for everything again within.
    """
    with _told(modules, "fused_only", lambda: only):
        yield


@contextmanager
def constant_weights(*modules: nn.Module) -> Iterator[None]:
    """For predictions with weights that the caller does not change within: layers keep what they make of theirs.

    On a processor, in float32 and without gradients: weights in the order in which oneDNN reads them (a quarter less
    time for 32 rows, 40 % for 8) and SCFAE's last linears as one. Takes the memory of the blocks' weights once more.
    Results differ by rounding. A weight that ``load_state_dict`` or any operator writes to is noticed, and a pass that
    asks for gradients ends what was kept, as an optimiser may follow; writing through ``weight.data`` is not noticed.
    """
    with _told(modules, "kept", Kept):
        yield


@contextmanager
def _told(modules: Iterable[nn.Module], name: str, value: Callable[[], object]) -> Iterator[None]:
    """Every part whose class knows attribute ``name`` has a ``value`` of its own within."""
    parts = [part for part in parts_of(*modules) if hasattr(type(part), name)]
    before = [getattr(part, name) for part in parts]
    for part in parts:
        setattr(part, name, value())
    try:
        yield
    finally:
        for part, was in zip(parts, before):
            setattr(part, name, was)
