"""Where the time of one training step goes: by phase of the step, and by kind of operator."""
from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from speed_floor import spread

__all__ = ["by_kind", "by_phase"]

# the first kind one of whose words is in an operator's name
KINDS = {
    "optimiser": ("optimizer", "adam", "sgd", "_foreach"),
    "convolutions, backward": ("convolution_backward", "mkldnn_convolution_backward"),
    "convolutions, forward": ("conv",),
    "matrix products": ("mm", "linear", "matmul"),
    "normalisation": ("batch_norm", "layer_norm"),
    "resizing and pooling": ("upsample", "pool", "interpolate"),
    "copies and layout": ("copy_", "contiguous", "clone", "cat", "to_copy", "reorder"),
    "loss": ("cross_entropy", "nll_loss", "log_softmax", "cosine"),
    "memory set to a value": ("zero_", "fill_", "zeros", "ones", "empty"),
}


def by_kind(case, rounds: int) -> dict[str, float]:
    """Seconds of a step's operators themselves, without what they call; a mean over ``rounds`` steps."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    cuda = case.device.type == "cuda"
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(rounds):
            case.step()
    found: dict[str, float] = {}
    for event in profiler.key_averages():
        seconds = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6 / rounds
        found[kind_of(event.key)] = found.get(kind_of(event.key), 0.0) + seconds
    return {name: seconds for name, seconds in found.items() if seconds > 0}


def kind_of(operator: str) -> str:
    name = operator.lower()
    if not name.startswith(("aten::", "mkldnn", "onednn", "optimizer", "void", "sm", "cu")):
        return "Python and autograd"
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "element by element")


def by_phase(case, rounds: int) -> dict[str, float]:
    """Seconds of a step's phases by the clock; the median over ``rounds`` steps.

    ``heads and losses`` is what the forward pass does outside encoders and neck.
    """
    backbone, rows = case.model.backbone, []
    parts = {"data preprocessor": [case.model.data_preprocessor], "neck": [case.model.neck],
             **{f"encoder {m}": [encoder] for m, encoder in backbone.encoders.items()}}
    for _ in range(rounds):
        seconds = dict.fromkeys([*parts, "heads and losses", "backward", "optimiser"], 0.0)
        with _hooked(parts, seconds, case.device), _wrapped(case.optim_wrapper, seconds, case.device):
            began = _now(case.device)
            case.step()
            whole = _now(case.device) - began
        seconds["heads and losses"] = whole - sum(seconds.values())
        rows.append(seconds)
    return {name: spread([row[name] for row in rows])[0] for name in rows[0]}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _hooked(parts, seconds: dict[str, float], device: torch.device) -> Iterator[None]:
    began, handles = {}, []
    for name, modules in parts.items():

        def start(*_, name=name):
            began[name] = _now(device)

        def stop(*_, name=name):
            seconds[name] += _now(device) - began[name]

        for module in modules:
            handles += [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _wrapped(wrapper, seconds: dict[str, float], device: torch.device) -> Iterator[None]:
    """mmengine's train_step calls wrapper.update_params, which calls these two."""
    inner = dict(backward=wrapper.backward, step=wrapper.step, zero_grad=wrapper.zero_grad)

    def watch(name: str, phase: str):
        def call(*args, **kwargs):
            began = _now(device)
            result = inner[name](*args, **kwargs)
            seconds[phase] += _now(device) - began
            return result

        return call

    wrapper.backward, wrapper.step = watch("backward", "backward"), watch("step", "optimiser")
    wrapper.zero_grad = watch("zero_grad", "optimiser")
    try:
        yield
    finally:
        for name in inner:
            delattr(wrapper, name)
