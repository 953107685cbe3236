"""Two linears with nothing between them as one, where many rows pass both. Plain torch."""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

__all__ = ["merge", "merging_pays", "untouched"]


def merge(first: nn.Linear, then_weight: Tensor, then_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (E, C) and bias (E,) of the one linear that does what ``first`` (C to D) and a second one, (E, D), do."""
    return then_weight @ first.weight, torch.addmv(then_bias, then_weight, first.bias)


def merging_pays(rows: int, inputs: int, between: int, outputs: int) -> bool:
    """Whether ``rows`` pass :func:`merge` sooner than two linears, ``inputs`` to ``between`` to ``outputs``.

    A third more multiply-adds have to be saved than the merged weight takes: a small product is the slower one.
    """
    saved = inputs * between + between * outputs - inputs * outputs
    return 3 * rows * saved > 4 * inputs * between * outputs


def untouched(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether nothing but its class decides what the layer does: no hook, nothing in its place.

    Pruning, adapters, counters and probes act by hooks, by another class, or by a weight that is no parameter.
    """
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    own = type(layer) is kind and all(type(p) is nn.Parameter for p in layer._parameters.values())
    return own and not any(hooks) and not _has_any_global_hook()
