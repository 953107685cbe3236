"""One checkpoint under many conditions (withheld modalities, noise, masked branches), reading the data once.

Encoders run once per batch for every input that differs: a modality that a condition leaves as it is, and one that
it withholds, reuses what its encoder gave before. Killed runs go on behind the last batch that was written down.
"""
from __future__ import annotations

import copy
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from mmfusion_plugin.fusion import SCFAE
from mmfusion_plugin.fusion.modes import constant_weights, evaluating

from .calibration import Counts, labels_and_probabilities
from .evidence import EvidenceError

__all__ = ["Condition", "EncoderMemo", "build_dataset", "class_names", "evaluate_conditions", "in_order"]

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Condition:
    """What an evaluation does to the data or the model.

    Args:
        name: in the results.
        missing: modalities withheld from every sample; None leaves the config's own.
        noise: as ``data_preprocessor.test_noise``; None leaves the config's own.
        branch: of Z that SCFAE keeps, ``shared`` or ``specific``; None leaves the model as it is.
        group: neighbours of one group share what encoders made of their inputs; put such conditions in a row.
    """

    name: str
    missing: tuple[str, ...] | None = None
    noise: Mapping[str, Mapping[str, Any]] | None = None
    branch: str | None = None
    group: str = ""


class EncoderMemo:
    """While entered, an encoder answers an input that it has seen in this batch (bit by bit) from memory.

    Args:
        encoders: by modality.

    ``passes`` counts what really ran, by modality. ``withheld`` names modalities whose output nothing may read:
    they get any output of the right shape.
    """

    def __init__(self, encoders: Mapping[str, nn.Module]) -> None:
        self.encoders = dict(encoders.items())
        self.passes = dict.fromkeys(self.encoders, 0)
        self.withheld: tuple[str, ...] = ()
        self.start_batch()

    def start_batch(self) -> None:
        """Forget everything."""
        self._first: dict[str, list] = {m: [] for m in self.encoders}
        self._group: dict[str, list] = {m: [] for m in self.encoders}
        self._keep = True

    def start_group(self) -> None:
        """Forget what was seen since the batch's first condition: memory holds one group at a time."""
        self._group = {m: [] for m in self.encoders}
        self._keep = False

    def __enter__(self) -> EncoderMemo:
        for m, encoder in self.encoders.items():
            encoder.forward = self._remembering(m, encoder.forward)
        return self

    def __exit__(self, *_: object) -> None:
        for encoder in self.encoders.values():
            del encoder.forward  # the class's own shows again
        self.start_batch()

    def _remembering(self, m: str, forward: Callable) -> Callable:
        def remember(x: Tensor) -> Any:
            entries = [*self._first[m], *self._group[m]]
            for seen, output, version in entries:
                if _versions(output) != version:  # somebody wrote into it
                    continue
                if seen.shape == x.shape and (m in self.withheld or torch.equal(seen, x)):
                    return output
            output = forward(x)
            self.passes[m] += 1
            (self._first if self._keep else self._group)[m].append((x, output, _versions(output)))
            return output

        return remember


def _versions(output: Tensor | Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(x._version for x in ((output,) if isinstance(output, Tensor) else output))


@dataclass
class _Running:
    """What has been gathered under one condition."""

    evaluator: Evaluator
    counts: Counts
    countable: bool = True
    weights: dict[str, list[float]] = field(default_factory=dict)  # name -> [sum, number]
    samples: int = 0

    def lengths(self) -> list[int]:
        return [len(metric.results) for metric in self.evaluator.metrics]

    def state(self) -> dict[str, Any]:
        return dict(
            results=[list(metric.results) for metric in self.evaluator.metrics], counts=self.counts.state(),
            countable=self.countable, weights=copy.deepcopy(self.weights), samples=self.samples)

    def load(self, state: Mapping[str, Any]) -> None:
        for metric, results in zip(self.evaluator.metrics, state["results"]):
            metric.results = list(results)
        self.counts.load(state["counts"])
        self.countable, self.weights = state["countable"], copy.deepcopy(state["weights"])
        self.samples = state["samples"]


def build_dataset(loader: Mapping[str, Any]) -> Dataset:
    """The dataset that a dataloader's config names. Raises: KeyError, or what building it raises."""
    dataset = loader["dataset"]
    if not isinstance(dataset, Mapping):
        return dataset
    built = DATASETS.build(copy.deepcopy(dataset))
    if hasattr(built, "full_init"):
        built.full_init()
    return built


def class_names(loader: Mapping[str, Any]) -> list[str] | None:
    """Names of the classes of a dataloader's data set; None where it has none."""
    cfg = loader["dataset"]
    own = (cfg.get("metainfo") or {}).get("classes")
    kind = cfg["type"]
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(None) as registry:  # the task library's own, as building would use
            kind = registry.get(kind)
    names = own if own is not None else (getattr(kind, "METAINFO", None) or {}).get("classes")
    return None if names is None else [str(name) for name in names]


def in_order(loader: Mapping[str, Any], dataset: Dataset, first: int = 0) -> torch.utils.data.DataLoader:
    """Batches of ``dataset`` from sample ``first`` on, in the order of its list, built as ``loader`` says."""
    cfg = {key: copy.deepcopy(value) for key, value in loader.items() if key not in ("dataset", "batch_sampler")}
    cfg.update(dataset=Subset(dataset, range(first, len(dataset))), sampler=dict(type="DefaultSampler", shuffle=False))
    return Runner.build_dataloader(cfg, seed=0)


def evaluate_conditions(
    model: nn.Module,
    loader: Mapping[str, Any],
    evaluator: Any,
    conditions: Sequence[Condition],
    *,
    partial: str | Path | None = None,
    key: str = "",
    report: Report | None = None,
    save_every: float = 30.0,
    memo: EncoderMemo | None = None,
) -> dict[str, dict[str, Any]]:
    """Evaluate ``model`` under every condition. It is in evaluation mode meanwhile and unchanged afterwards.

    Args:
        model: of either task, with a preprocessor of this plugin.
        loader, evaluator: ``test_dataloader`` and ``test_evaluator`` of the config.
        conditions: the first one's encoder outputs serve all others: let it be the complete, clean one.
        partial: file for the state of the run, for the caller to remove when the outcome is safe. None: no resuming.
        key: identity of the evaluation; a partial file of another key is an error.
        report: called with (samples done, all samples).
        save_every: seconds between two states; the end writes one, too, and so does an interruption.
        memo: for tests: the encoders' memory, whose ``passes`` then can be read.

    A condition leaves out the samples that have nothing but what it withholds.

    Returns: {condition: dict(metrics={name: value}, samples=, confusion=[[int]] (label, prediction) or None,
        calibration_error= or None, weights={modality: mean weight})}.
    Raises: ValueError for conditions that do not fit the model, for a partial file of another evaluation, and for a
        condition that leaves out every sample.
    """
    _check(model, conditions)
    dataset = build_dataset(loader)
    runs = {c.name: _start(evaluator, dataset) for c in conditions}
    done = 0 if partial is None else _resume(Path(partial), key, runs)
    encoders = getattr(getattr(model, "backbone", None), "encoders", None)
    memo = EncoderMemo({} if encoders is None else encoders) if memo is None else memo
    saved = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(constant_weights(model))
        stack.enter_context(memo)
        sound = done, _noted(runs)  # one name: an interruption finds a number and the states that belong to it
        try:
            if report is not None:
                report(done, len(dataset))
            for batch in in_order(loader, dataset, done) if done < len(dataset) else ():
                done += _one_batch(model, memo, batch, conditions, runs)
                sound = done, _noted(runs)
                if report is not None:
                    report(done, len(dataset))
                if partial is not None and time.monotonic() - saved > save_every:
                    _save(Path(partial), key, done, runs)
                    saved = time.monotonic()
        finally:
            if partial is not None:
                _take_back(runs, sound[1])  # else a batch that was broken off would count twice
                _save(Path(partial), key, sound[0], runs)
    with _quiet():
        return {name: _outcome(name, run) for name, run in runs.items()}


def _check(model: nn.Module, conditions: Sequence[Condition]) -> None:
    names = [c.name for c in conditions]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"conditions must have different names, got {names}")
    preprocessor = getattr(model, "data_preprocessor", None)
    known = getattr(preprocessor, "modalities", None)
    if known is None or not hasattr(preprocessor, "test_missing") or not hasattr(preprocessor, "noise"):
        raise ValueError(
            f"model.data_preprocessor is {type(preprocessor).__name__}, which can neither withhold a modality nor add "
            "noise; use MultimodalSegDataPreProcessor or MultimodalActionDataPreProcessor")
    for c in conditions:
        unknown = sorted({*(c.missing or ()), *(c.noise or {})} - set(known))
        if unknown:
            raise ValueError(f"condition {c.name!r} names {unknown}, data_preprocessor.modalities is {list(known)}")
        if set(c.missing or ()) >= set(known):
            raise ValueError(f"condition {c.name!r} withholds every modality of {list(known)}; leave at least one")
        if c.branch is not None and not any(isinstance(part, SCFAE) for part in model.modules()):
            raise ValueError(f"condition {c.name!r} masks a branch of SCFAE, which this model's neck does not use")


def _start(evaluator: Any, dataset: Dataset) -> _Running:
    metrics = evaluator if isinstance(evaluator, Sequence) else [evaluator]
    built = Evaluator([copy.deepcopy(metric) for metric in metrics])
    built.dataset_meta = getattr(dataset, "metainfo", {})
    return _Running(built, Counts(0))


def _one_batch(
    model: nn.Module, memo: EncoderMemo, batch: Any, conditions: Sequence[Condition], runs: Mapping[str, _Running]
) -> int:
    """Returns the number of samples."""
    memo.start_batch()
    before = model.data_preprocessor.noise.test_noise
    for i, condition in enumerate(conditions):
        if i and condition.group != conditions[i - 1].group or i == 1:
            memo.start_group()
        memo.withheld = condition.missing or ()
        run = runs[condition.name]
        with _under(model, condition, before):
            kept = _with_something_left(model.data_preprocessor, batch)
            if not kept["data_samples"]:
                continue
            data = model.data_preprocessor(copy.deepcopy(kept), False)  # samples are changed in place
            inputs, samples = data["inputs"], data["data_samples"]
            _gather_weights(run, model, inputs, samples)
            predicted = model(inputs, samples, mode="predict")
        for sample in predicted:
            _count(run, sample, getattr(getattr(model, "cls_head", None), "average_clips", None))
        run.evaluator.process(data_samples=predicted, data_batch=kept)
        run.samples += len(predicted)
    memo.start_batch()
    return len(batch["data_samples"])


def _with_something_left(preprocessor: nn.Module, batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """The samples of ``batch`` that have more than what the preprocessor withholds."""
    shown = [m for m in preprocessor.modalities if m not in preprocessor.test_missing]
    samples, inputs = batch["data_samples"], batch["inputs"]
    rows = [i for i, sample in enumerate(samples)
            if any(sample.metainfo.get("available", {}).get(m, True) for m in shown)]
    return batch if len(rows) == len(samples) else dict(
        batch, data_samples=[samples[i] for i in rows],
        inputs={m: [x[i] for i in rows] for m, x in inputs.items()} if isinstance(inputs, Mapping)
        else [inputs[i] for i in rows])


def _count(run: _Running, sample: Any, average_clips: str | None) -> None:
    found = labels_and_probabilities(sample, average_clips)
    if found is None:
        run.countable = False
        return
    if run.counts.classes == 0:
        run.counts = Counts(found[1].shape[1])
    run.counts.update(*found)


def _gather_weights(run: _Running, model: nn.Module, inputs: Any, samples: Sequence) -> None:
    """Means over samples (and views) of ``fusion.weight.<m>``, where the neck gives them."""
    if not hasattr(model, "fusion_output") or not _gives_weights(model):
        return
    for name, values in model.fusion_output(inputs, samples).per_sample.items():
        match = re.fullmatch(r"fusion\.weight\.([^.]+)", name)
        if match:
            total = run.weights.setdefault(match[1], [0.0, 0])
            total[0] += float(values.double().sum())
            total[1] += values.numel()


def _gives_weights(model: nn.Module) -> bool:
    return any(hasattr(part, "weigh") for part in getattr(model, "neck", nn.Identity()).modules())


@contextmanager
def _under(model: nn.Module, condition: Condition, before: nn.ModuleList) -> Iterator[None]:
    preprocessor = model.data_preprocessor
    blocks = [part for part in model.modules() if isinstance(part, SCFAE)] if condition.branch else []
    branches, missing = [block.branch for block in blocks], preprocessor.test_missing
    try:
        if condition.missing is not None:
            preprocessor.test_missing = condition.missing
        if condition.noise is not None:
            preprocessor.noise.set_test_noise(condition.noise)
        for block in blocks:
            block.branch = condition.branch
        yield
    finally:
        preprocessor.test_missing, preprocessor.noise.test_noise = missing, before
        for block, branch in zip(blocks, branches):
            block.branch = branch


@contextmanager
def _quiet() -> Iterator[None]:
    """IoUMetric prints a table of classes each time; here that would be one for each condition."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _noted(runs: Mapping[str, _Running]) -> dict[str, Any]:
    """What :func:`_take_back` takes back to."""
    return {name: (run.lengths(), copy.deepcopy((run.counts.state(), run.weights, run.samples)))
            for name, run in runs.items()}


def _take_back(runs: Mapping[str, _Running], states: Mapping[str, Any]) -> None:
    for name, (lengths, (counts, weights, samples)) in states.items():
        run = runs[name]
        for metric, length in zip(run.evaluator.metrics, lengths):
            del metric.results[length:]
        run.counts = Counts(len(counts["confusion"]))
        run.counts.load(counts)
        run.weights, run.samples = weights, samples


def _save(partial: Path, key: str, done: int, runs: Mapping[str, _Running]) -> None:
    partial.parent.mkdir(parents=True, exist_ok=True)
    state = dict(key=key, done=done, runs={name: run.state() for name, run in runs.items()})
    torch.save(state, f"{partial}.new")
    os.replace(f"{partial}.new", partial)


def _resume(partial: Path, key: str, runs: Mapping[str, _Running]) -> int:
    """Samples done."""
    if not partial.is_file():
        return 0
    try:
        state = torch.load(partial, map_location="cpu", weights_only=True)
        ours = state["key"] == key and set(state["runs"]) == set(runs)
    except Exception as error:  # parsers of torch's three formats raise as many types
        raise EvidenceError(f"{partial} is no unfinished evaluation, or a damaged one ({type(error).__name__}); remove "
                            "it or choose another --out") from error
    if not ours:
        raise EvidenceError(
            f"{partial} is the unfinished state of another evaluation (other config, checkpoint or conditions); "
            "remove it or choose another --out")
    for name, run in runs.items():
        run.counts = Counts(len(state["runs"][name]["counts"]["confusion"]))
        run.load(state["runs"][name])
    return int(state["done"])


def _outcome(name: str, run: _Running) -> dict[str, Any]:
    if not run.samples:
        raise EvidenceError(f"condition {name!r} leaves no sample of the test set any modality; leave it out, or take "
                            "another test_dataloader.dataset")
    metrics = {name: float(value) for name, value in run.evaluator.evaluate(run.samples).items()}
    countable = run.countable and run.counts.classes > 0
    return dict(
        metrics=metrics, samples=run.samples, confusion=run.counts.confusion_KK.tolist() if countable else None,
        calibration_error=run.counts.calibration_error if countable else None,
        weights={m: total / number for m, (total, number) in run.weights.items()})
