"""What each part of a model takes on this machine: milliseconds and memory, beside :func:`count_costs`."""
from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmfusion_plugin.fusion.modes import evaluating

from .costs import count_costs

__all__ = ["PeakMemory", "measure_costs"]


class PeakMemory(TorchDispatchMode):
    """While entered, counts the bytes of tensors that operators make and somebody holds; ``peak`` is the most at once.

    The same number on every device, without an allocator's rounding and cache and without an operator's own scratch
    space.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.device.type != "meta":
                self._hold(x.untyped_storage(), given)
        return result

    def _hold(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._known or place in given:  # a view, or written in place
            return
        self._known.add(place)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._release, place, size)

    def _release(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.held -= size


def measure_costs(
    model: nn.Module, inputs: Tensor | Mapping[str, Tensor], repeats: int = 10, warm_up: int = 3
) -> dict[str, dict[str, float]]:
    """Parameters, multiply-adds, latency and peak memory of one forward pass in evaluation mode, by part.

    Args:
        inputs: what the model takes, on the model's device.
        repeats, warm_up: passes that are timed (the median counts) and passes before them.

    Returns: the parts of :func:`count_costs` (``encoders.<m>``, ``neck``, ``head``, ``total``; ``auxiliary`` is left
        out), each with ``parameters``, ``multiply_adds``, ``milliseconds`` and ``peak_bytes``: the most that
        activations take at once while the part runs, the inputs of the model left out. ``head`` is everything that is
        in no other part; its memory is that of the time after the neck.
    Raises: ValueError if the model has no encoders by modality, or for no repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more, got {repeats}")
    costs = count_costs(model, inputs)
    costs.pop("auxiliary")
    backbone = getattr(model, "backbone", model)
    parts = {f"encoders.{m}": encoder for m, encoder in backbone.encoders.items()}
    if getattr(model, "neck", None) is not None:
        parts["neck"] = model.neck
    device = next(model.parameters()).device
    with evaluating(model):
        for _ in range(warm_up):
            model(inputs)
        times: dict[str, list[float]] = {name: [] for name in costs}
        for _ in range(repeats):
            for name, seconds in _timed(model, parts, inputs, device).items():
                times[name].append(seconds)
        peaks = _peaks(model, parts, inputs)
    return {
        name: dict(**cost, milliseconds=1000 * statistics.median(times[name]), peak_bytes=peaks[name])
        for name, cost in costs.items()}


def _timed(model: nn.Module, parts: Mapping[str, nn.Module], inputs: Any, device: torch.device) -> dict[str, float]:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    seconds, began, handles = dict.fromkeys(parts, 0.0), {}, []
    for name, part in parts.items():

        def start(*_, name=name):
            began[name] = now()

        def stop(*_, name=name):
            seconds[name] += now() - began[name]

        handles += [part.register_forward_pre_hook(start), part.register_forward_hook(stop)]
    try:
        before = now()
        model(inputs)
        total = now() - before
    finally:
        for handle in handles:
            handle.remove()
    return {**seconds, "head": max(0.0, total - sum(seconds.values())), "total": total}


def _peaks(model: nn.Module, parts: Mapping[str, nn.Module], inputs: Any) -> dict[str, int]:
    memory, peaks, handles = PeakMemory(), dict.fromkeys([*parts, "head", "total"], 0), []

    def mark(name: str) -> None:
        """What was held at most since the last mark belongs to ``name``."""
        peaks[name] = max(peaks[name], memory.peak)
        peaks["total"] = max(peaks["total"], memory.peak)
        memory.peak = memory.held

    for name, part in parts.items():
        handles += [part.register_forward_pre_hook(lambda *_: mark("head")),
                    part.register_forward_hook(lambda *_, name=name: mark(name))]
    try:
        with memory:
            model(inputs)
        mark("head")
    finally:
        for handle in handles:
            handle.remove()
    return peaks
