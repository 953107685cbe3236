"""Linears with nothing between them as one. Plain torch.

A block's **ends**: each modality's last linear is read by its part of a readout of all modalities, concatenated in
their order, and perhaps by one more linear of its own beside that.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from .kept import Kept

__all__ = ["Ends", "merge", "merge_ends", "merging_pays", "untouched"]

Ends = dict[str, tuple[Tensor, Tensor, Kept | None]]  # by modality: weight, bias, what is kept of them
# torch's own function that asks for them all is younger than torch 2.6
GLOBAL_HOOKS = ("_global_forward_pre_hooks", "_global_forward_hooks", "_global_backward_pre_hooks",
                "_global_backward_hooks")


def merge_ends(
    lasts: Mapping[str, nn.Linear], readout: nn.Linear, beside: Mapping[str, nn.Linear],
    kept: Callable[[], Kept | None] = lambda: None,
) -> Ends:
    """One linear for each of ``lasts``, which gives its part of the readout's outputs, to be added up over modalities,
    then those of the linear beside it. ``beside`` has every modality or none.
    """
    ends: Ends = {}
    for (m, last), weight in zip(lasts.items(), readout.weight.split([x.out_features for x in lasts.values()], 1)):
        # the readout's bias once, not once in every modality
        bias = readout.bias if not ends else torch.zeros_like(readout.bias)
        if beside:
            weight, bias = torch.cat([weight, beside[m].weight]), torch.cat([bias, beside[m].bias])
        ends[m] = *merge(last, weight, bias), kept()
    return ends


def merge(first: nn.Linear, then_weight: Tensor, then_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (E, C) and bias (E,) of the one linear that does what ``first`` (C to D) and a second one, (E, D), do."""
    return then_weight @ first.weight, torch.addmv(then_bias, then_weight, first.bias)


def merging_pays(
    rows: float, lasts: Mapping[str, nn.Linear], readout: nn.Linear, beside: Mapping[str, nn.Linear]
) -> bool:
    """Whether ``rows`` pass merged ends, merging included, sooner than the linears one after the other.

    ``math.inf`` rows where merging is done once for all.
    A third more multiply-adds have to be saved than the merged weights take: a small product is the slower one.
    """
    for m, last in lasts.items():
        C, D = last.in_features, last.out_features
        E = readout.out_features + (beside[m].out_features if beside else 0)
        if not 3 * rows * (C * D + D * E - C * E) > 4 * C * D * E:
            return False
    return True


def untouched(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether nothing but its class decides what the layer does: no hook, nothing in its place.

    Pruning, adapters, counters and probes act by hooks, by another class, or by a weight that is no parameter.
    """
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    own = type(layer) is kind and all(type(p) is nn.Parameter for p in layer._parameters.values())
    return own and not any(hooks) and not any(getattr(nn_module, name) for name in GLOBAL_HOOKS)
