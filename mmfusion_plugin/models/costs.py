"""What each part of a model costs: parameters and multiply-adds."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["count_costs"]


def count_costs(model: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
    """Parameters and multiply-adds of one forward pass in evaluation mode, by part.

    Counted by torch's FlopCounterMode, which reports two flops for one multiply-add: convolutions,
    matrix products and attention; normalisation, activations and resizing count nothing.

    Args:
        model: has a ``backbone`` such as :class:`MultimodalBackbone` (or is one), perhaps a ``neck``
            and a head.
        inputs: what the model takes: the stacked tensor or a dict by modality. The numbers are for
            this batch; give one sample for "per sample".

    Returns: ``{part: dict(parameters=, multiply_adds=)}`` with the parts ``encoders.<m>``, ``neck``,
        ``head`` (what else runs in inference), ``auxiliary`` (heads for training alone) and ``total``,
        which leaves ``auxiliary`` out.
    Raises: ValueError if the model has no encoders by modality.
    """
    backbone = getattr(model, "backbone", model)
    encoders = getattr(backbone, "encoders", None)
    if not isinstance(encoders, nn.ModuleDict):
        raise ValueError(
            f"{type(backbone).__name__} has no encoders by modality; count_costs needs a model whose backbone "
            "is a MultimodalBackbone"
        )
    parts: dict[str, nn.Module] = {f"encoders.{m}": encoder for m, encoder in encoders.items()}
    if getattr(model, "neck", None) is not None:
        parts["neck"] = model.neck
    flops, total = _flops(model, parts, inputs)
    auxiliary = sum(_parameters(getattr(model, name, None)) for name in ("auxiliary_head", "modality_heads"))
    costs = {
        name: dict(parameters=_parameters(part), multiply_adds=flops[name] // 2) for name, part in parts.items()
    }
    whole = dict(parameters=_parameters(model) - auxiliary, multiply_adds=total // 2)
    costs["head"] = {key: whole[key] - sum(part[key] for part in costs.values()) for key in whole}
    costs["auxiliary"] = dict(parameters=auxiliary, multiply_adds=0)
    costs["total"] = whole
    return costs


def _flops(
    model: nn.Module, parts: Mapping[str, nn.Module], inputs: Tensor | Mapping[str, Tensor]
) -> tuple[dict[str, int], int]:
    """(flops by part, flops of the whole pass)."""
    flops, started, handles = dict.fromkeys(parts, 0), {}, []
    counter = FlopCounterMode(display=False)
    for name, part in parts.items():

        def start(*_, name=name):
            started[name] = counter.get_total_flops()

        def stop(*_, name=name):
            flops[name] += counter.get_total_flops() - started[name]

        handles += [part.register_forward_pre_hook(start), part.register_forward_hook(stop)]
    modes = {module: module.training for module in model.modules()}  # frozen stages differ from the rest
    try:
        model.eval()
        with torch.no_grad(), counter:
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return flops, counter.get_total_flops()


def _parameters(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())
