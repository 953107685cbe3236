"""An optimiser's parameter groups that differ in nothing, stepped as one."""
from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["equal_groups_as_one"]

# whose step reads its groups and writes nothing into them
KNOWN = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


@contextmanager
def equal_groups_as_one(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within, torch's SGD, Adam and AdamW have one group for all parameters with the same options.

    mmengine makes a group of every parameter once ``paramwise_cfg`` is set, and an optimiser starts its kernels group
    by group: on a GPU 365 groups of two ResNet-18 and SCFAE took 40 of a step's 70 ms. Results are the same to the
    bit, and outside schedulers, hooks and checkpoints see the groups as they are.
    """
    groups = optimizer.param_groups
    merged = _merged(groups) if type(optimizer) in KNOWN else None
    if merged is None:
        yield
        return
    optimizer.param_groups = merged
    try:
        yield
    finally:
        optimizer.param_groups = groups


def _merged(groups: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """None where nothing is to be gained, or an option cannot be compared."""
    found: dict[Hashable, dict[str, Any]] = {}
    try:
        for group in groups:
            options = dict(group)
            parameters = options.pop("params")
            if isinstance(options.get("betas"), list):
                options["betas"] = tuple(options["betas"])
            known = found.setdefault(tuple(options.items()), {**options, "params": []})
            known["params"] += parameters
    except (TypeError, RuntimeError):  # not hashable; tensors of several values
        return None
    return list(found.values()) if len(found) < len(groups) else None
