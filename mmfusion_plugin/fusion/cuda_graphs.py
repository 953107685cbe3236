"""A fusion's kernels as one CUDA graph forward and one backward, each started by a single call. Plain torch.

A processor takes microseconds, up to 25, to start a kernel, and a small batch's kernel is done before the next one is
started: the 50 to 250 of a block cost what starting them costs, whatever the GPU could do.
"""
from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize

from .contract import FusionOutput, all_there, plain_eager
from .parts import parts_of
from .recording import Places, Recording

__all__ = ["GraphedFusion"]

DEVICE = "cuda"
# tells which hooks a tensor passes that is kept for the backward pass; None: torch 2.7 and older cannot be asked
SAVED_TENSOR_HOOKS = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
MOST_GRAPHS = 16  # each keeps the memory of its activations
MOST_KINDS = 256  # that are remembered for having come once
PLAIN = {bool, int, float, str}

Level = Mapping[str, Tensor]
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

    Raises: RuntimeError with a torch that does not tell when activation checkpointing is at work.
    """

    def __init__(self) -> None:
        if SAVED_TENSOR_HOOKS is None:
            raise RuntimeError(
                f"neck.cuda_graphs=True needs torch 2.8 or newer, found {torch.__version__}; set it to False")
        self.forget()

    def forget(self) -> None:
        """Drop all graphs and their memory."""
        self._recordings: dict[Hashable, tuple[Call, Recording] | None] = {}
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
        kind = _kind(blocks, self._parts, inputs, parameters, settings, whole)
        if kind not in self._recordings:  # an epoch's last, smaller batch need not be worth a graph
            if len(self._recordings) < MOST_KINDS:
                self._recordings[kind] = None
            return fuse(pyramid, available, weights)
        known = self._recordings[kind]
        if known is None:
            if sum(one is not None for one in self._recordings.values()) >= MOST_GRAPHS:
                warnings.warn(
                    f"neck.cuda_graphs: {MOST_GRAPHS} kinds of batches have graphs, so that others run without; fewer "
                    "image sizes or batch sizes would help", stacklevel=2)
                return fuse(pyramid, available, weights)
            call = Call(fuse, pyramid, available, weights, whole)
            recording = Recording(call, inputs, None if whole else available, self._places, list(blocks.buffers()))
            del call.fuse  # holds the neck, which holds this: a cycle would keep its memory until Python looks for them
            known = self._recordings[kind] = call, recording
        call, recording = known
        if recording.busy:
            return fuse(pyramid, available, weights)
        return call.output(recording(inputs, None if whole else available))

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
        and SAVED_TENSOR_HOOKS(True) is None
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
