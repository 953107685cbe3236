"""Ask a model something without teaching it. Plain torch."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["evaluating"]


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
