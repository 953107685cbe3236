"""A call of tensors recorded as one CUDA graph forward and one backward, and replayed within autograd. Plain torch."""
from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .copies import Copies

__all__ = ["Places", "Recording"]

WARM_UP = 2

Places = list[tuple[dict[str, Tensor | None], str]]


class Recording:
    """One kind of call: the memory of its inputs, outputs and gradients, and what computes one from the other.

    Args:
        call: outputs of inputs and of masks (M, B), which are None where everything is there.
        places: of the parameters in their layers.
        buffers: which warming up, and computing activations again, must leave as they are.
    """

    def __init__(self, call: Callable[[Sequence[Tensor], Tensor | None], list[Tensor]], inputs: Sequence[Tensor],
                 available: Mapping[str, Tensor] | None, places: Places, buffers: Sequence[Tensor]) -> None:
        self._lease: weakref.ref[Tensor] | None = None
        self._output_gradients: list[Tensor] | None = None
        gradients = torch.is_grad_enabled()
        parameters = {id(p): p for p in (where[name] for where, name in places)}
        self.learning = [p for p in parameters.values() if gradients and p.requires_grad]
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            self._memory = [x.detach().clone() for x in inputs]
            # the same memory, where gradients of it are asked for
            self.inputs = [own.detach().requires_grad_(gradients and x.requires_grad)
                           for own, x in zip(self._memory, inputs)]
            self.masks_MB = None if available is None else _stacked(available).to(inputs[0].device)
            self._places = places
            self._stand_ins = {i: nn.Parameter(p.detach(), p.requires_grad) for i, p in parameters.items()}
            self._roots = [x for x in self.inputs if x.requires_grad] + [self._stand_ins[id(p)] for p in self.learning]
            # without the cache of cast weights: a recorded cast is none for calls outside, and the other way round
            kind = inputs[0].device.type
            with torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), False):
                self.graphs = GRAPHS(lambda: self._forward(call), self._backward, buffers)
            # .data: another pass that waits for its backward pass may hold them, and torch would count the writing
            self._buffers = [x.data for x in buffers] if any(self.graphs.learns) else []
            self._before = [x.clone() for x in self._buffers]
        self._outputs, self._gradients = Copies(self.graphs.outputs), Copies(self.graphs.gradients)

    def _forward(self, call: Callable) -> list[Tensor]:
        with _in_their_places(self._places, self._stand_ins):
            return call(self.inputs, self.masks_MB)

    def _backward(self, outputs: Sequence[Tensor]) -> list[Tensor | None]:
        """Gradients of the roots from those of the outputs, None where there are none."""
        ends = [y for y in outputs if y.requires_grad]
        if not ends:
            return []
        if self._output_gradients is None:  # made while warming up, outside of the recording
            self._output_gradients = [torch.zeros_like(y) for y in ends]
        with _in_their_places(self._places, self._stand_ins):  # for what activation checkpointing computes again
            return list(torch.autograd.grad(ends, self._roots, self._output_gradients, allow_unused=True))

    @property
    def busy(self) -> bool:
        """Whether a backward pass may still come to the activations that are kept."""
        return self._lease is not None and self._lease() is not None

    def __call__(self, inputs: Sequence[Tensor], available: Mapping[str, Tensor] | None) -> Sequence[Tensor]:
        if available is not None:
            self.masks_MB.copy_(_stacked(available), non_blocking=True)
        if any(self.graphs.learns):
            return Replayed.apply(self, *inputs, *self.learning)
        return self.replay(inputs)

    def versions(self) -> list[int]:
        """How often each weight has been written to."""
        return [p._version for p in self._stand_ins.values()]

    def replay(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        torch._foreach_copy_(self._memory, list(inputs))
        _copy(self._before, self._buffers)
        self.graphs.forward()
        return self._outputs.made()

    def leased(self) -> Tensor:
        """What autograd keeps for exactly as long as a backward pass may come."""
        lease = torch.empty(0)
        self._lease = weakref.ref(lease)
        return lease

    def replay_backward(self, gradients: Sequence[Tensor | None], again: bool) -> list[Tensor | None]:
        """By inputs and learning parameters; ``again``: a backward pass has overwritten the activations."""
        if again:
            after = [x.clone() for x in self._buffers]
            _copy(self._buffers, self._before)
            self.graphs.forward()
            _copy(self._buffers, after)
        given = [g for g, learns in zip(gradients, self.graphs.learns) if learns]
        for own, g in zip(self._output_gradients, given):
            if g is None:
                own.zero_()
        pairs = [(own, g) for own, g in zip(self._output_gradients, given) if g is not None]
        _copy([own for own, _ in pairs], [g for _, g in pairs])
        self.graphs.backward()
        left = iter(self._gradients.made())
        return [*(next(left) if x.requires_grad else None for x in self.inputs), *left]


def _copy(to: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, given)


@contextmanager
def _in_their_places(places: Places, stand_ins: Mapping[int, nn.Parameter]) -> Iterator[None]:
    """The layers have parameters of their own, in the same memory.

    Where autograd adds up a parameter's gradient it waits for the stream that the parameter was first used on, which
    would be drawn into the recording.
    """
    before = [where[name] for where, name in places]
    for (where, name), p in zip(places, before):
        where[name] = stand_ins[id(p)]
    try:
        yield
    finally:
        for (where, name), p in zip(places, before):
            where[name] = p


class Replayed(torch.autograd.Function):
    """A recording's outputs from inputs and learning parameters."""

    @staticmethod
    def forward(ctx, recording: Recording, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = recording.replay(tensors[: len(recording.inputs)])
        ctx.recording, ctx.again, ctx.versions = recording, False, recording.versions()
        ctx.save_for_backward(recording.leased())
        ctx.set_materialize_grads(False)  # zeros for every diagnostic, a kernel each
        ctx.mark_non_differentiable(*(y for y, learns in zip(outputs, recording.graphs.learns) if not learns))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # raises where an earlier pass has freed the graph
        if ctx.versions != ctx.recording.versions():  # what torch says of the weights that it has saved
            raise RuntimeError(
                "a weight of the fusion, needed for gradient computation, has been modified by an inplace operation "
                "since the forward pass, as by an optimiser's step")
        found = ctx.recording.replay_backward(gradients, ctx.again)
        ctx.again = True
        return None, *found


class CudaGraphs:
    """A function that makes outputs and one that makes gradients of them, always in the same memory, as two graphs."""

    def __init__(self, forward: Callable[[], list[Tensor]], backward: Callable[[Sequence[Tensor]], list[Tensor | None]],
                 buffers: Sequence[Tensor]) -> None:
        before = [buffer.clone() for buffer in buffers]
        here, self._stream = torch.cuda.current_stream(), torch.cuda.Stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                backward(forward())
        here.wait_stream(self._stream)
        for buffer, was in zip(buffers, before):
            buffer.copy_(was)
        self._pool = torch.cuda.graph_pool_handle()
        try:
            self._forward, outputs = self._recorded(forward)
            self.learns = [y.requires_grad for y in outputs]
            self._backward, self.gradients = (
                self._recorded(lambda: backward(outputs)) if any(self.learns) else (None, []))
        except RuntimeError as error:
            torch.cuda.set_stream(here)  # a recording that fails leaves its own
            raise RuntimeError(
                f"this fusion cannot be recorded as a CUDA graph: {error}\nSet neck.cuda_graphs=False") from error
        self.outputs = [y.detach() for y in outputs]

    def _recorded(self, function: Callable[[], list]) -> tuple[torch.cuda.CUDAGraph, list]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: the loaders' threads go on pinning memory
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            found = function()
        return graph, found

    def forward(self) -> None:
        self._forward.replay()

    def backward(self) -> None:
        self._backward.replay()


GRAPHS = CudaGraphs


def _stacked(available: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(available.values()))
