"""Copies of many small tensors. Plain torch."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Copies"]


class Copies:
    """Copies of the same tensors, again and again: on a GPU one kernel for all of a dtype instead of one each."""

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        self._number = len(tensors)
        self._groups = []
        for dtype in {x.dtype for x in tensors if x is not None}:
            these = [i for i, x in enumerate(tensors) if x is not None and x.dtype == dtype]
            one = 1.0 if dtype.is_floating_point else dtype == torch.bool or 1
            self._groups.append((these, [tensors[i] for i in these], one))

    def made(self) -> list[Tensor | None]:
        """Tensors of their own, detached; None for None."""
        found: list[Tensor | None] = [None] * self._number
        for these, tensors, one in self._groups:
            # torch has no clone of many tensors; times 1 is the same to the bit
            for i, copy in zip(these, torch._foreach_mul(tensors, one)):
                found[i] = copy
        return found
