"""A fusion's kernels as one CUDA graph forward and one backward, each started by a single call. Plain torch.

A processor takes microseconds, up to 25, to start a kernel, and a small batch's kernel is done before the next one is
started: the 50 to 250 of a block cost what starting them costs, whatever the GPU could do.
"""
from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from .contract import FusionOutput, all_there, plain_eager
from .copies import Copies
from .parts import parts_of

__all__ = ["GraphedFusion"]

DEVICE = "cuda"
MOST_GRAPHS = 16  # each keeps the memory of its activations
MOST_KINDS = 256  # that are remembered for having come once
WARM_UP = 2
PLAIN = {bool, int, float, str}

Level = Mapping[str, Tensor]
Places = list[tuple[dict[str, Tensor | None], str]]
Fuse = Callable[[Sequence[Level], Mapping[str, Tensor], "Sequence[Level] | None"], FusionOutput]


class GraphedFusion:
    """Calls of one fusion, replayed from CUDA graphs: the same results, in tensors of their own.

    A kind of call (shapes, dtypes, memory formats, modes, the blocks' own settings, whether everything is there) runs
    as it is when it first comes, is recorded when it comes again, and is replayed from then on. What a graph cannot
    serve runs as it is: on a processor, under compilers, exporters, counters, functional transforms, forward-mode
    derivatives, anomaly detection, cached parametrisations and activation checkpointing round the fusion, within
    another recording, while an earlier call of the same kind still waits for its backward pass, and where weights are
    no parameters (FSDP's views, DataParallel's copies, what pruning makes). Hooks on the fusion's layers run while it
    is recorded, not when it is replayed. There are no second derivatives, which torch says.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drop all graphs and their memory."""
        self._recordings: dict[Hashable, Recording | None] = {}
        self._structure: list[object] = []
        self._parts: list[nn.Module] = []
        # where the blocks keep their settings, and the settings' names
        self._settings: list[tuple[dict[str, object], list[str]]] = []
        # where the layers keep their parameters and buffers, and which ones these were
        self._places: Places = []
        self._buffers: Places = []
        self._known: list[tuple[int, int]] | None = None
        self._untracked = False

    def forget_if_rebuilt(self, blocks: nn.ModuleList) -> None:
        """:meth:`forget` where layers, parameters, hooks or layers' settings have been added, exchanged or taken away.
        """
        if self._known is not None and not _same(self._structure, _structure(blocks)):
            self.forget()

    def __call__(
        self, blocks: nn.ModuleList, fuse: Fuse, pyramid: Sequence[Level], available: Mapping[str, Tensor],
        weights: Sequence[Level] | None = None,
    ) -> FusionOutput:
        """``fuse(pyramid, available, weights)``, of which features and weights may require gradients.

        Args:
            blocks: whose parameters ``fuse`` reads; nothing may be drawn at random.

        Raises: RuntimeError where it cannot be recorded, as with a layer that asks the GPU for a number.
        """
        inputs = [x for level in (*pyramid, *(weights or ())) for x in level.values()]
        if not _graphs_serve(inputs):
            return fuse(pyramid, available, weights)
        parameters = self._current_parameters(blocks)
        if self._untracked:
            return fuse(pyramid, available, weights)
        whole = all(all_there(mask) for mask in available.values())
        settings = tuple(where.get(name) for where, names in self._settings for name in names)
        kind = _kind(blocks, self._parts, inputs, parameters, settings, whole, weights is not None)
        if kind not in self._recordings:  # an epoch's last, smaller batch need not be worth a graph
            if len(self._recordings) < MOST_KINDS:
                self._recordings[kind] = None
            return fuse(pyramid, available, weights)
        recording = self._recordings[kind]
        if recording is None:
            if sum(known is not None for known in self._recordings.values()) >= MOST_GRAPHS:
                warnings.warn(
                    f"neck.cuda_graphs: {MOST_GRAPHS} kinds of batches have graphs, so that others run without; fewer "
                    "image sizes or batch sizes would help", stacklevel=2)
                return fuse(pyramid, available, weights)
            recording = self._recordings[kind] = Recording(
                Call(fuse, pyramid, available, weights, whole), inputs, None if whole else available, self._places,
                list(blocks.buffers()))
        if recording.busy:
            return fuse(pyramid, available, weights)
        return recording(inputs, None if whole else available)

    def _current_parameters(self, blocks: nn.ModuleList) -> list[nn.Parameter]:
        """All of them; :meth:`forget` where one, or a buffer, is another, or elsewhere in memory."""
        found = _at(self._places + self._buffers)
        if _identities(found) != self._known:
            self.forget()
            self._structure = _structure(blocks)
            # by name, not by walking the layers: that would take as long as a small block
            self._parts = parts_of(blocks)
            self._settings = [(vars(block), list(_settings(block))) for block in blocks]
            self._places, self._buffers = (
                [(of, name) for part in self._parts for of in [getattr(part, kind)]
                 for name, x in of.items() if x is not None] for kind in ("_parameters", "_buffers"))
            # nothing tells when another takes their place, and gradients would not reach what they were made of
            self._untracked = any(isinstance(x, Tensor) for part in self._parts for x in vars(part).values())
            found = _at(self._places + self._buffers)
            self._known = _identities(found)
        return found[: len(self._places)]

    def __reduce__(self) -> tuple:  # a copy has parameters of its own
        return GraphedFusion, ()


def _at(places: Places) -> list[Tensor | None]:
    return [where.get(name) for where, name in places]


def _identities(tensors: Sequence[Tensor | None]) -> list[tuple[int, int]]:
    return [(id(x), x.data_ptr()) for x in tensors if x is not None]


def _kind(
    blocks: nn.ModuleList, parts: Sequence[nn.Module], inputs: Sequence[Tensor], parameters: Sequence[nn.Parameter],
    *more: Hashable,
) -> Hashable:
    """All that a recording depends on and that may differ from call to call."""
    gradients = torch.is_grad_enabled()
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    return (
        *more, tuple((x.shape, x.stride(), x.dtype, gradients and x.requires_grad) for x in inputs),
        tuple(p.requires_grad for p in parameters) if gradients else None,
        tuple(part.training for part in parts), tuple(getattr(block, "fused_only", None) for block in blocks),
        torch.is_autocast_enabled(DEVICE), torch.get_autocast_dtype(DEVICE),
        # torch 2.9; the older switches raise once these were used
        cublas.fp32_precision if hasattr(cublas, "fp32_precision") else torch.get_float32_matmul_precision(),
        cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        torch.cuda.current_stream(inputs[0].device) if DEVICE == "cuda" else None)


def _graphs_serve(inputs: Sequence[Tensor]) -> bool:
    return (
        all(x.device.type == DEVICE and plain_eager(x) for x in inputs)
        and (DEVICE != "cuda" or inputs[0].device.index == torch.cuda.current_device()
             and not torch.cuda.is_current_stream_capturing())
        and not torch.is_anomaly_enabled()
        and forward_ad._current_level == -1
        and not parametrize._cache_enabled  # what is made of parameters outside would be used, and theirs inside kept
        # activation checkpointing, in its first pass and in its second
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
        and torch._C._current_graph_task_id() == -1)


def _settings(part: nn.Module) -> dict[str, Hashable]:
    """What the part has been told to do, as SCFAE's ``branch``; the modes that are told beside it are left out."""
    return {name: value for name, value in vars(part).items() if type(value) in PLAIN
            and name[0] != "_" and name not in ("training", "fused_only")}


def _structure(blocks: nn.ModuleList) -> list[object]:
    """Every layer, parameter and hook, and the layers' settings; the blocks' own are part of each call's kind."""
    own = set(blocks)
    found: list[object] = []
    for part in parts_of(blocks):
        found += [part, *part._parameters.values()]
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            found += hooks.values()
        if part not in own:
            found += _settings(part).values()
    return found


def _same(first: Sequence[object], second: Sequence[object]) -> bool:
    return len(first) == len(second) and all(a is b for a, b in zip(first, second))


class Call:
    """``fuse`` of tensors in a row, which gives tensors in a row."""

    def __init__(self, fuse: Fuse, pyramid: Sequence[Level], available: Mapping[str, Tensor],
                 weights: Sequence[Level] | None, whole: bool) -> None:
        self.fuse = fuse
        self.modalities = list(available)
        self.features = [list(level) for level in pyramid]
        self.weights = None if weights is None else [list(level) for level in weights]
        # known to be True before the GPU is asked: no masking is recorded
        self.all_there = {m: torch.ones(len(mask), dtype=torch.bool) for m, mask in available.items()} if whole else {}

    def __call__(self, tensors: Sequence[Tensor], masks_MB: Tensor | None) -> list[Tensor]:
        left = iter(tensors)
        pyramid = _next_levels(left, self.features)
        weights = None if self.weights is None else _next_levels(left, self.weights)
        available = self.all_there if masks_MB is None else dict(zip(self.modalities, masks_MB))
        out = self.fuse(pyramid, available, weights)
        self.levels = len(out.fused) if isinstance(out.fused, tuple) else None
        self.names = [list(known) for known in (out.losses, out.diagnostics, out.per_sample)]
        fused = out.fused if self.levels is not None else (out.fused,)
        return [*fused, *out.losses.values(), *out.diagnostics.values(), *out.per_sample.values()]

    def output(self, tensors: Sequence[Tensor]) -> FusionOutput:
        """Tensors as the last call gave them, by their names again."""
        left = iter(tensors)
        fused = next(left) if self.levels is None else tuple(next(left) for _ in range(self.levels))
        return FusionOutput(fused, *({name: next(left) for name in names} for names in self.names))


def _next_levels(tensors: Iterator[Tensor], names: Sequence[Sequence[str]]) -> list[dict[str, Tensor]]:
    return [{m: next(tensors) for m in level} for level in names]


class Recording:
    """One kind of call: the memory of its inputs, outputs and gradients, and what computes one from the other.

    Args:
        call: of inputs and masks (M, B), which are None where everything is there.
        places: of the parameters in their layers.
        buffers: which warming up, and computing activations again, must leave as they are.
    """

    def __init__(self, call: Call, inputs: Sequence[Tensor], available: Mapping[str, Tensor] | None,
                 places: Places, buffers: Sequence[Tensor]) -> None:
        self.call = call
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
            with torch.autocast(DEVICE, torch.get_autocast_dtype(DEVICE), torch.is_autocast_enabled(DEVICE), False):
                self.graphs = GRAPHS(self._forward, self._backward, buffers)
            # .data: another pass that waits for its backward pass may hold them, and torch would count the writing
            self._buffers = [x.data for x in buffers] if any(self.graphs.learns) else []
            self._before = [x.clone() for x in self._buffers]
        self._outputs, self._gradients = Copies(self.graphs.outputs), Copies(self.graphs.gradients)
        del call.fuse  # holds the neck, which holds this: a cycle keeps all its memory until Python looks for cycles

    def _forward(self) -> list[Tensor]:
        with _in_their_places(self._places, self._stand_ins):
            return self.call(self.inputs, self.masks_MB)

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

    def __call__(self, inputs: Sequence[Tensor], available: Mapping[str, Tensor] | None) -> FusionOutput:
        if available is not None:
            self.masks_MB.copy_(_stacked(available), non_blocking=True)
        if any(self.graphs.learns):
            return self.call.output(Replayed.apply(self, *inputs, *self.learning))
        return self.call.output(self.replay(inputs))

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
