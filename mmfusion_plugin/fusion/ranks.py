"""Sums over the processes of a distributed training, and which of them this is. Plain torch."""
from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["all_reduced", "rank", "several"]


def all_reduced(*sums: Tensor) -> tuple[Tensor, ...]:
    """The same sums over all processes, in place; without several processes, as they are."""
    if several():
        for x in sums:
            torch.distributed.all_reduce(x)
    return sums


def rank() -> int:
    """Number of this process, 0 where there is one."""
    return torch.distributed.get_rank() if several() else 0


def several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
