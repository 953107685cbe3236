"""Ask a model something without teaching it. Plain torch."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["evaluating", "fused_only"]


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Without gradients and in evaluation mode: no dropout, no draw, and BatchNorm's statistics stay as they are."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
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
    parts = [part for module in modules for part in module.modules() if hasattr(type(part), "fused_only")]
    modes = [part.fused_only for part in parts]
    for part in parts:
        part.fused_only = only
    try:
        yield
    finally:
        for part, mode in zip(parts, modes):
            part.fused_only = mode
