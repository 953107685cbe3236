"""Interleaved timing, and the floor of a fusion block: its own matrix products, each by torch's fastest call.

**Floor of the forward pass.** One forward pass with hooks on every ``nn.Linear`` (``ChannelLinear`` among them) and
1x1 convolution lists the products: rows, inputs, outputs, and the grid of a map. Each distinct one is timed as
``torch.mm``, ``F.linear``, a 1x1 convolution on channels-last memory and, where torch has it, oneDNN's linear; the
fastest is taken.
The floor then runs the list in the block's order with the block's own weights, so that both stream the same memory.
Attention's inner products are no layers and not in it. The list is that of the formulation as written: a block that
multiplies two linears into one (fusion/merging.py) does fewer products than its floor, and one whose weights stay as
they are (modes.constant_weights) has them in oneDNN's own order, where the floor's are as a model keeps them.

**Floor of the training step.** The same products; for each the two of its backward pass (the gradient of its input and
that of its weight: by ``torch.mm`` or oneDNN's linear, each the faster, that of the weight as a 1x1 convolution's,
either way round, or both by one ``convolution_backward``); and one step of the same fused AdamW on the same parameters.
What is no product (biases, norms) gets its gradient for nothing. Block and floor start from gradients set to None and
allocate them anew, as a runner does.

A block's ratio is the median over rounds of its time by its floor's of the same round. With one thread on a processor
the time is that thread's own, which other processes do not lengthen; otherwise it is the clock's.
"""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from mmfusion_plugin.fusion import block as block_module

__all__ = ["Floor", "Product", "adamw", "graphed", "products", "ratios", "spread", "timed"]


def adamw(parameters: Iterable[nn.Parameter], device: torch.device) -> torch.optim.AdamW:
    """The optimiser of a block's step and of its floor's, fit for a CUDA graph."""
    return torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.01, fused=True, capturable=device.type == "cuda")


def timed(
    calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, seconds: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of each call in each round, the calls taking turns; two rounds before the first do not count.

    Args:
        rounds: at least so many.
        seconds: rounds go on until this much time is used, or ten times ``rounds``.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(2):
        for call in calls.values():
            call()
    began = time.perf_counter()
    while len(times := found[next(iter(calls))]) < rounds or (
            time.perf_counter() - began < seconds and len(times) < 10 * rounds):
        for name, call in calls.items():
            found[name].append(_one(call, device))
    return found


def _one(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        # one thread's own time does not count what other processes do on the same core
        clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        began = clock()
        call()
        return clock() - began
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1000


def graphed(call: Callable[[], object]) -> Callable[[], None]:
    """``call`` as one CUDA graph: its kernels without the host between them."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what a first call allocates or chooses must not be part of the graph
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def spread(values: Sequence[float]) -> tuple[float, float]:
    """(median, interquartile range)."""
    if len(values) < 2:
        return float(values[0]), 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return statistics.median(values), high - low


def ratios(times: Mapping[str, Sequence[float]], base: str) -> dict[str, tuple[float, float]]:
    """{name: (median, interquartile range)} of the rounds' ratios to ``base``."""
    return {name: spread([a / b for a, b in zip(values, times[base])]) for name, values in times.items()}


@dataclass(frozen=True)
class Product:
    """rows x inputs times inputs x outputs. ``grid``: shape (B, ..., C) of the input, channels last."""

    rows: int
    inputs: int
    outputs: int
    grid: tuple[int, ...]


def products(block: nn.Module, run: Callable[[], object]) -> list[tuple[Product, nn.Parameter]]:
    """The matrix products of one call of ``run``, in order, each with its weight.

    Raises: ValueError for a convolution that is no matrix product.
    """
    found, handles = [], []

    def note(layer: nn.Module, given: tuple[Tensor, ...], _) -> None:
        x, weight = given[0], layer.weight
        if weight.ndim > 2 and weight.numel() != weight.shape[0] * weight.shape[1]:
            raise ValueError(f"the floor knows linears and 1x1 convolutions, found {layer}")
        outputs, inputs = weight.shape[:2]
        maps = x.ndim > 3 and x.shape[1] == inputs
        grid = (x.movedim(1, -1) if maps else x).shape
        found.append((Product(x.numel() // inputs, inputs, outputs, tuple(grid)), weight))

    for layer in block.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            handles.append(layer.register_forward_hook(note))
    try:
        with mock.patch.object(block_module, "split_rows", lambda *_: []):  # maps stay maps, in one piece
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found


class Floor:
    """What :func:`products` found, by the fastest calls.

    Args:
        found: products and weights.
        dtype: of the products; the optimiser's parameters keep their own.
        parameters: what the optimiser of the step updates.
        step: whether :meth:`step` will be asked for; it needs the memory of an optimiser.
        rounds: of choosing the calls.
    """

    def __init__(self, found: Sequence[tuple[Product, nn.Parameter]], parameters: Sequence[nn.Parameter], *,
                 dtype: torch.dtype, device: torch.device, step: bool, rounds: int = 3) -> None:
        self.device, self.dtype = device, dtype
        self.inputs = {p: torch.randn(p.grid, device=device).to(dtype) for p, _ in found}
        self.order = [(p, weight.detach().flatten(1).to(dtype)) for p, weight in found]
        self.weights = [weight for _, weight in found]
        some = dict(self.order)
        self.backward_by: dict[Product, tuple] = {}
        self.gradients: dict[tuple[int, int], Tensor] = {}
        self.forward_by = {p: self._fastest(FORWARD, p, some[p], rounds) for p in self.inputs}
        if not step:
            return
        for p, x in self.inputs.items():
            if (p.rows, p.outputs) not in self.gradients:
                self.gradients[p.rows, p.outputs] = torch.randn(*x.shape[:-1], p.outputs, device=device).to(dtype)
            self.backward_by[p] = self._fastest(BACKWARD, p, some[p], rounds)
        # copies: the block's own parameters must not be moved by made-up gradients, nor share its optimiser's state
        self.twins = {id(p): nn.Parameter(p.detach().clone()) for p in parameters}
        self.spare = {id(p): torch.randn_like(p) * 1e-4 for p in parameters if id(p) not in set(map(id, self.weights))}
        self.optimiser = adamw(self.twins.values(), device)

    @property
    def ways(self) -> dict[str, int]:
        """How many of the products are computed by which call."""
        ways: dict[str, int] = {}
        for p, _ in self.order:
            ways[self.forward_by[p][0]] = ways.get(self.forward_by[p][0], 0) + 1
        return ways

    def forward(self) -> None:
        with torch.no_grad():
            for p, weight in self.order:
                self.forward_by[p][1](self.inputs[p], weight, None)

    def step(self) -> None:
        with torch.no_grad():
            for p, weight in self.order:
                self.forward_by[p][1](self.inputs[p], weight, None)
            for (p, weight), own in zip(reversed(self.order), reversed(self.weights)):
                gradient = self.backward_by[p][1](self.inputs[p], weight, self._gradient(p))
                twin = self.twins.get(id(own))
                if twin is not None:
                    twin.grad = gradient.to(twin.dtype).view_as(twin)
            for key, gradient in self.spare.items():
                self.twins[key].grad = gradient
        self.optimiser.step()
        for twin in self.twins.values():
            twin.grad = None

    def _gradient(self, p: Product) -> Tensor | None:
        return self.gradients.get((p.rows, p.outputs))

    def _fastest(self, ways: Mapping[str, Callable], p: Product, weight: Tensor, rounds: int) -> tuple:
        x, gradient, able = self.inputs[p], self._gradient(p), {}
        for name, way in ways.items():
            try:
                way(x, weight, gradient)
            except (RuntimeError, AttributeError, NotImplementedError):  # not in this torch, not for this device
                continue
            able[name] = way
        with torch.no_grad():
            times = timed({name: lambda way=way: way(x, weight, gradient) for name, way in able.items()}, rounds,
                          self.device)
        best = min(able, key=lambda name: statistics.median(times[name]))
        return best, able[best]


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _map(x: Tensor) -> Tensor:
    """(B, ..., C) -> (B, C, H, W) on the same memory; vectors as one row of positions, sequences as B rows."""
    x = x[None, :, None] if x.ndim == 2 else x[:, :, None] if x.ndim == 3 else x.flatten(1, x.ndim - 3)
    return x.movedim(-1, 1)


def _convolution_backward(x: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    both = torch.ops.aten.convolution_backward(
        _map(gradient), _map(x), weight[:, :, None, None], None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
        [True, True, False])
    return both[1].flatten(1)


def _products_backward(of_x: Callable, of_weight: Callable) -> Callable:
    def both(x: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
        g, rows = _rows(gradient), _rows(x)
        of_x(g, weight)
        return of_weight(g.t(), rows)

    return both


def _onednn_mm(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


def _convolution_of_weight(across: Tensor, rows: Tensor) -> Tensor:
    gradient = across.t()
    return conv2d_weight(_map(rows), (gradient.shape[1], rows.shape[1], 1, 1), _map(gradient)).flatten(1)


def _convolution_of_weight_across(across: Tensor, rows: Tensor) -> Tensor:
    return _convolution_of_weight(rows.t(), across.t()).t().contiguous()


def _onednn(x: Tensor, weight: Tensor, _) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(_rows(x), weight, None, "none", [], "")


FORWARD: dict[str, Callable] = {
    "torch.mm": lambda x, weight, _: torch.mm(_rows(x), weight.t()),
    "F.linear": lambda x, weight, _: F.linear(x, weight),
    "1x1 convolution": lambda x, weight, _: F.conv2d(_map(x), weight[:, :, None, None]),
    "oneDNN linear": _onednn,
}
BACKWARD: dict[str, Callable] = {
    "torch.mm": _products_backward(torch.mm, torch.mm),
    "oneDNN linear": _products_backward(_onednn_mm, _onednn_mm),
    "oneDNN linear, torch.mm": _products_backward(_onednn_mm, torch.mm),
    "torch.mm, oneDNN linear": _products_backward(torch.mm, _onednn_mm),
    "oneDNN linear, 1x1 convolution": _products_backward(_onednn_mm, _convolution_of_weight),
    "oneDNN linear, 1x1 convolution across": _products_backward(_onednn_mm, _convolution_of_weight_across),
    "1x1 convolution": _convolution_backward,
}
