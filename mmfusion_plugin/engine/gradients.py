"""How the task's gradient and each auxiliary loss's agree at the encoders, watched during training."""
from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from .data_order import random_states, restore_random_states

__all__ = ["GradientAnalysisHook", "gradient_statistics", "group_losses", "untouched"]

AUXILIARY = ("fusion.", "aux")
PROBES = ("probe_",)
COUNTS = "gradient_analysis"  # in the message hub, which is saved with the checkpoint
PLACES = ("output", "parameters")


@HOOKS.register_module()
class GradientAnalysisHook(Hook):
    """Every ``interval`` steps, compare gradients on the batch that is about to be trained on; train as without it.

    For each encoder, at its output (all levels) and at its parameters:
    ``gradient/cosine_<place>/<modality>/<term>`` between the task loss and each auxiliary loss,
    ``gradient/negative_<place>/<modality>/<term>``, the share of negative cosines so far (kept over a resume),
    ``gradient/norm_<place>/<modality>``, the norm of the task's gradient, and
    ``gradient/ratio_<place>/<modality>/<term>``, the auxiliary gradient's norm over it: a cosine says little of a loss
    that hardly pulls. They go to the visualizer, so to
    ``vis_data/scalars.json``, and as one line to the log.

    The analysis runs its own forward pass: random states, buffers (BatchNorm's statistics, steps, running means) and
    gradients are afterwards what they were. It costs about one forward and one backward pass per loss. Under
    DistributedDataParallel every rank looks at its own batch, and rank 0 reports.

    Args:
        interval: steps between two analyses; the first is before the first step.
        auxiliary: prefixes of the losses that are auxiliary, each entry with ``loss`` in its name a term of its own;
            ``probe_*`` trains nothing but itself and is left out; the rest is the task.

    Raises: ValueError for an interval below 1; in training if the backbone has no encoders by modality, or the model
        gives no task loss.
    Source: SCFAE, Fig. 4 and Table 7.
    """

    priority = "LOW"  # after the hooks that tell the model which stage it is in

    def __init__(self, interval: int = 100, auxiliary: Sequence[str] = AUXILIARY) -> None:
        if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
            raise ValueError(f"GradientAnalysisHook.interval must be a positive integer, got {interval!r}")
        if isinstance(auxiliary, str):
            raise ValueError(f"GradientAnalysisHook.auxiliary must be a list such as [{auxiliary!r}]")
        self.interval = interval
        self.auxiliary = tuple(auxiliary)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        if runner.iter % self.interval:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        with untouched(model), runner.optim_wrapper.optim_context(model):
            found = self.analyse(model, data_batch)
        self._report(runner, found)

    def analyse(self, model: nn.Module, batch) -> dict[str, float]:
        """{``cosine_<place>/<modality>/<term>``, ``ratio_``... or ``norm_<place>/<modality>``: value} of one batch."""
        encoders = getattr(getattr(model, "backbone", None), "encoders", None)
        if not isinstance(encoders, nn.ModuleDict):
            raise ValueError(
                f"GradientAnalysisHook needs a model whose backbone is a MultimodalBackbone, got "
                f"{type(model).__name__}; remove the hook from custom_hooks")
        outputs: dict[str, list[Tensor]] = {m: [] for m in encoders}

        def keep(m: str):
            def hook(module, args, output):
                levels = (output,) if isinstance(output, Tensor) else output
                outputs[m] += [x for x in levels if x.requires_grad]

            return hook

        handles = [encoder.register_forward_hook(keep(m)) for m, encoder in encoders.items()]
        try:
            with torch.enable_grad():
                data = model.data_preprocessor(copy.deepcopy(batch), True)
                losses = model(**data, mode="loss") if isinstance(data, Mapping) else model(*data, mode="loss")
        finally:
            for handle in handles:
                handle.remove()
        terms = group_losses(losses, self.auxiliary)
        places = {
            "output": outputs,
            "parameters": {m: [p for p in e.parameters() if p.requires_grad] for m, e in encoders.items()}}
        return {
            f"{what}_{place}/{rest}": value for place, tensors in places.items()
            for (what, rest), value in gradient_statistics(terms, tensors).items()}

    def _report(self, runner: Runner, found: Mapping[str, float]) -> None:
        counts = dict(runner.message_hub.runtime_info.get(COUNTS) or {})
        scalars = {f"gradient/{name}": value for name, value in found.items()}
        for name, value in found.items():
            if name.startswith("cosine_"):
                negative, number = counts.get(name, (0, 0))
                counts[name] = (negative + (value < 0), number + 1)
                share = counts[name][0] / counts[name][1]
                scalars[f"gradient/negative_{name[len('cosine_'):]}"] = share
        runner.message_hub.update_info(COUNTS, {name: [int(v) for v in pair] for name, pair in counts.items()})
        if is_main_process():
            runner.visualizer.add_scalars(scalars, step=runner.iter)
            shown = ", ".join(f"{name} {value:.3g}" for name, value in found.items() if "_output/" in name)
            runner.logger.info(f"gradients at the encoders' outputs, step {runner.iter}: {shown}")


def group_losses(losses: Mapping[str, Tensor | Sequence[Tensor]], auxiliary: Sequence[str] = AUXILIARY
                 ) -> dict[str, Tensor]:
    """{``task``: scalar, term: scalar}: what mmengine's ``parse_losses`` sums, apart.

    ``fusion.loss_recon`` is the term ``recon``, ``aux_audio.loss_cls`` and its like ``aux_audio``.

    Raises: ValueError without a task loss.
    """
    terms: dict[str, Tensor] = {}
    for name, value in losses.items():
        if "loss" not in name or name.startswith(PROBES):
            continue
        parts = [value] if isinstance(value, Tensor) else list(value)
        total = sum(part.float().mean() for part in parts)
        term = "task"
        if name.startswith(tuple(auxiliary)):
            head, _, tail = name.partition(".")
            term = tail.replace("loss_", "") if head == "fusion" else head
        terms[term] = terms[term] + total if term in terms else total
    if "task" not in terms:
        raise ValueError(
            f"the model's losses are {sorted(losses)}: all are auxiliary by GradientAnalysisHook.auxiliary="
            f"{list(auxiliary)}, none is the task's")
    return terms


def gradient_statistics(
    terms: Mapping[str, Tensor], tensors: Mapping[str, Sequence[Tensor]]
) -> dict[tuple[str, str], float]:
    """{("norm", m): task gradient's norm at m's tensors, ("cosine", "m/term"): with the gradient of each other term,
    ("ratio", "m/term"): that gradient's norm over the task's}.

    A pair of which either gradient is zero (a loss that does not reach the encoder) has no cosine and is left out.
    """
    flat = [x for m in tensors for x in tensors[m]]
    gradients = {}
    for term, loss in terms.items():
        if loss.requires_grad and flat:
            found = torch.autograd.grad(loss, flat, retain_graph=True, allow_unused=True)
            gradients[term] = [torch.zeros_like(x) if g is None else g for x, g in zip(flat, found)]
    statistics, first = {}, 0
    for m in tensors:
        part = slice(first, first + len(tensors[m]))
        first = part.stop
        vectors = {
            term: torch.cat([g.detach().double().flatten() for g in found[part]]) for term, found in gradients.items()
            if found[part]}
        task = vectors.pop("task", None)
        if task is None:
            continue
        statistics["norm", m] = float(task.norm())
        for term, other in vectors.items():
            size = float(task.norm() * other.norm())
            if size > 0:
                statistics["cosine", f"{m}/{term}"] = float(task @ other) / size
                statistics["ratio", f"{m}/{term}"] = float(other.norm() / task.norm())
    return statistics


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Afterwards random states, buffers, modes and gradients are what they were."""
    buffers = [(module, name, x, x.detach().clone()) for module in model.modules()
               for name, x in module._buffers.items() if x is not None]
    gradients = [(p, p.grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    states = random_states()
    for p, _ in gradients:
        p.grad = None
    try:
        yield
    finally:
        for p, gradient in gradients:
            p.grad = gradient
        with torch.no_grad():
            for module, name, x, before in buffers:
                x.copy_(before)
                module._buffers[name] = x
        for module, mode in modes:
            module.training = mode
        restore_random_states(states)
