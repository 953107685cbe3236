"""Random features of every rank of the contract."""
from __future__ import annotations

import torch

RANKS = {"vector": (), "sequence": (3,), "map": (2, 3), "clip": (2, 2, 3)}


def features(widths: dict[str, int], batch: int = 4, rank: str = "vector", dtype=torch.float32) -> dict:
    """{m: tensor} with the given widths, requiring gradients."""
    grid = RANKS[rank]
    shape = {
        m: (batch, *grid, C) if rank in ("vector", "sequence") else (batch, C, *grid) for m, C in widths.items()
    }
    return {m: torch.randn(shape[m], dtype=dtype).requires_grad_() for m in widths}


def present(modalities, batch: int = 4, missing: dict[str, list[int]] | None = None) -> dict:
    """All there, except the named samples of the named modalities."""
    available = {m: torch.ones(batch, dtype=torch.bool) for m in modalities}
    for m, samples in (missing or {}).items():
        available[m][samples] = False
    return available
