"""Many small trainings that make one table: resumable, side by side, one line of JSON per result.

A killed run goes on where it stopped: a job whose result stands in the file is skipped. Results carry a
hash of the whole config, so that rows trained with other settings are never mixed. What is evaluated is
the model after the last iteration; no checkpoint is picked on the data that the table reports.
"""
from __future__ import annotations

import copy
import fcntl
import gc
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any, TextIO

import torch

__all__ = [
    "Job", "Summary", "TableError", "kept_runner", "kept_weights", "read_results", "run_table", "train_and_evaluate",
]

BEGINNING = b'{"key": "'  # of every record
# read once, when a process starts
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62)}  # glibc keeps what is freed: engine.memory


@dataclass(frozen=True)
class Job:
    """One training and its evaluations.

    Args:
        row: the table's row; jobs that differ in the seed alone share it.
        config: config file.
        seed: of the whole run (``randomness.seed``).
        overrides: config keys as in ``--cfg-options`` (``model.neck.norm``) and their values.
        paths: more overrides, which do not change the result (data roots): not part of the hash.
        evaluations: by name, the modalities that are withheld, or ``dict(missing=[...], noise={m: ...})`` with noise as
            in ``data_preprocessor.test_noise``.
        channels_last: keep convolution weights channels-last, about 1.3 times faster on a processor.
    """

    row: str
    config: str
    seed: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    paths: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Mapping[str, Sequence[str] | Mapping[str, Any]] = field(default_factory=lambda: {"complete": ()})
    channels_last: bool = False

    def load_config(self) -> Any:
        """The job's mmengine Config, without work dir and seed. Raises: FileNotFoundError."""
        from mmengine.config import Config

        cfg = Config.fromfile(self.config)
        cfg.merge_from_dict(copy.deepcopy({**self.overrides, **self.paths}))  # merging takes _delete_ out of its input
        return cfg

    def settings(self) -> str:
        """Hash of all that decides the result except the seed: the same for all seeds of a row."""
        from mmengine.config import Config

        cfg = Config.fromfile(self.config)
        cfg.merge_from_dict(copy.deepcopy(dict(self.overrides)))
        text = json.dumps(
            [cfg.to_dict(), {k: v if isinstance(v, Mapping) else list(v) for k, v in self.evaluations.items()},
             self.channels_last],
            sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def key(self) -> str:
        """Hash of :meth:`settings` and the seed: the identity of one result."""
        return f"{self.settings()}-{self.seed}"


class TableError(ValueError):
    """A table cannot be run or read as asked. The message says what to change."""


RunJob = Callable[[Job, Path], dict[str, Any]]


@dataclass
class Summary:
    """What a call of :func:`run_table` did: keys of the jobs trained, found done, and failed."""

    trained: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


# --- files ---------------------------------------------------------------------------------------


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """Results in file order. A last line that breaks off (a killed run) is left out.

    Raises: TableError naming the line if another one is no record.
    """
    path = Path(path)
    return _records(path, _whole_lines(path.read_bytes())) if path.exists() else []


def _whole_lines(content: bytes) -> list[bytes]:
    """All lines but a last one that breaks off; one that lacks its end alone is whole."""
    *lines, last = content.split(b"\n")
    try:
        json.loads(last)
    except (ValueError, RecursionError):
        return lines
    return [*lines, last]


def _records(path: Path, lines: Sequence[bytes]) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = dict(json.loads(line))
            if "key" not in record:
                raise ValueError("it has no key")
        except (ValueError, TypeError, RecursionError) as error:
            raise TableError(f"{path}, line {number} is no record in JSON ({error}); remove that line, or choose "
                             "another file") from error
        records.append(record)
    return records


def kept_weights(results: str | Path, job: Job) -> Path:
    """Where ``train_and_evaluate(keep=True)`` writes the weights of ``job`` in a table with these results."""
    results = Path(results)
    return results.with_name(f"{results.stem}_runs") / _folder_name(job, job.key()) / "final.pth"


def kept_runner(job: Job, weights: str | Path, edit: Callable[[Any], None] | None = None) -> Any:
    """mmengine Runner of ``job`` with the weights that it kept, for evaluation; ``edit`` changes its config first."""
    from mmengine.runner import Runner, load_checkpoint

    cfg = job.load_config()
    cfg.work_dir, cfg.randomness, cfg.log_level = str(Path(weights).parent), dict(seed=job.seed), "WARNING"
    _name_apart(cfg, f"{job.key()}_{time.time_ns()}")
    if edit is not None:
        edit(cfg)
    runner = Runner.from_cfg(cfg)
    load_checkpoint(runner.model, str(weights), map_location="cpu", strict=True)
    runner.model.eval()
    return runner


def _name_apart(cfg: Any, name: str) -> None:
    """mmengine keeps loggers, message hubs and visualizers by name: one set per run."""
    cfg.experiment_name = name
    if cfg.get("visualizer"):
        cfg.visualizer.name = name


def _folder_name(job: Job, key: str) -> str:
    return f"{re.sub('[^A-Za-z0-9]+', '-', job.row).strip('-')}_{key}"


def _failures_path(results: Path) -> Path:
    return results.with_name(f"{results.stem}.failures.jsonl")


@contextmanager
def _append_only(path: Path):
    """The results file, opened by us alone, its torn last line cut off.

    Raises: TableError if another run has it, or for a file of something else, which stays as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TableError(f"another run is writing {path}; wait for it or choose another file") from None
        file.seek(0)
        content = file.read()
        lines = _whole_lines(content)
        _records(path, lines)
        whole = b"".join(line + b"\n" for line in lines)
        torn = content[len(whole):]
        if torn[:len(BEGINNING)] != BEGINNING[:len(torn)]:
            raise TableError(f"{path} ends in what is no record; remove its last line, or choose another file")
        if len(whole) > len(content):
            file.write(b"\n")
        file.truncate(len(whole))
        yield file


def _append(file: Any, record: Mapping[str, Any]) -> None:
    file.write(json.dumps(record).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


# --- runner --------------------------------------------------------------------------------------


def run_table(
    jobs: Sequence[Job],
    results: str | Path,
    run_job: RunJob | None = None,
    *,
    workers: int = 2,
    retry_failed: bool = False,
    start_method: str = "spawn",
    out: TextIO | None = None,
) -> Summary:
    """Train and evaluate every job that has no result yet.

    Each worker is one process with one thread, which imports once and trains job after job. A job that
    raises, or whose process dies, is written to ``<results>.failures.jsonl`` and left alone, in later calls
    too unless ``retry_failed``; the others go on. Logs and work dirs are in ``<results>_runs/``.

    Args:
        run_job: what a job means, ``(job, its own folder) -> record``; a top-level function. None:
            :func:`train_and_evaluate`.
        out: where progress is printed (default: stdout).

    Raises: TableError for two jobs with the same settings and seed, fewer than one worker, if another run is
        writing the same file, and if that file holds something else.
    """
    if workers < 1:
        raise TableError(f"--workers {workers}: at least 1")
    results, out = Path(results), out or sys.stdout
    run_job = run_job or train_and_evaluate
    keyed = {job.key(): job for job in jobs}
    if len(keyed) < len(jobs):
        names = [f"{job.row} seed {job.seed}" for job in jobs]
        raise TableError(f"{len(jobs) - len(keyed)} jobs repeat the settings and seed of another: {names}")
    summary = Summary()
    with _append_only(results) as file:
        done = {record["key"] for record in read_results(results)}
        known = {record["key"] for record in read_results(_failures_path(results))}
        todo: deque[tuple[str, Job]] = deque()
        for key, job in keyed.items():
            if key in done:
                summary.skipped.append(key)
            elif key in known and not retry_failed:
                summary.failed.append(key)
                print(f"failed before, not retried: {job.row} seed {job.seed}", file=out, flush=True)
            else:
                todo.append((key, job))
        print(f"{len(jobs)} jobs: {len(summary.skipped)} done, {len(todo)} to run", file=out, flush=True)
        pool = _Pool(run_job, results.with_name(f"{results.stem}_runs"), start_method)
        try:
            pool.start(min(workers, len(todo)))
            started, commit, total = time.monotonic(), _git_commit(), len(todo)
            for number, (key, job, record, error) in enumerate(pool.run(todo), start=1):
                about = dict(key=key, row=job.row, seed=job.seed)
                if error is None:
                    _append(file, {
                        **about, "settings": job.settings(), "config": Path(job.config).name,
                        "overrides": dict(job.overrides), "channels_last": job.channels_last,
                        "commit": commit, "torch": torch.__version__, **record})
                    summary.trained.append(key)
                else:
                    with _append_only(_failures_path(results)) as failures:
                        _append(failures, {**about, "error": error, "time": time.strftime("%F %T")})
                    summary.failed.append(key)
                minutes = (time.monotonic() - started) / 60
                word = "FAILED" if error else "done"
                print(f"[{number}/{total}, {minutes:.1f} min] {word}: {job.row} seed {job.seed}"
                      + (f": {error.strip().splitlines()[-1]}" if error else ""), file=out, flush=True)
        finally:
            pool.stop()
    return summary


class _Pool:
    """Processes that run one job at a time; a dead one costs its job alone."""

    def __init__(self, run_job: RunJob, folder: Path, start_method: str) -> None:
        self.run_job, self.folder = run_job, folder
        self.context = multiprocessing.get_context(start_method)
        self.workers: dict[connection.Connection, Any] = {}

    def start(self, number: int) -> None:
        before = {name: os.environ.get(name) for name in (*THREADS, *MEMORY)}
        os.environ.update(THREADS)
        if not any(name.startswith("MALLOC_") for name in os.environ):  # the user's own settings stay
            os.environ.update(MEMORY)
        try:
            for _ in range(number):
                ours, theirs = self.context.Pipe()
                process = self.context.Process(
                    target=_work, args=(theirs, self.run_job, self.folder), daemon=False)
                process.start()
                theirs.close()
                self.workers[ours] = process
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def run(self, todo: deque[tuple[str, Job]]):
        """Yield (key, job, record, error) as jobs end; exactly one of record and error is None."""
        busy: dict[connection.Connection, tuple[str, Job]] = {}
        for pipe in list(self.workers):
            self._give(pipe, todo, busy)
        while busy:
            for pipe in connection.wait(list(busy)):
                key, job = busy.pop(pipe)
                try:
                    record, error = pipe.recv()
                except (EOFError, ConnectionResetError):
                    process = self.workers.pop(pipe)
                    process.join()
                    record, error = None, f"the process died with exit code {process.exitcode}"
                    if todo:
                        self.start(1)
                        pipe = list(self.workers)[-1]
                if pipe in self.workers:
                    self._give(pipe, todo, busy)
                yield key, job, record, error

    def _give(self, pipe: connection.Connection, todo: deque, busy: dict) -> None:
        if todo:
            key, job = todo.popleft()
            busy[pipe] = key, job
            try:
                pipe.send((key, job))
            except BrokenPipeError:
                pass  # died before it got the job: recv above meets the end of the pipe and reports it

    def stop(self) -> None:
        for pipe in self.workers:
            with suppress(BrokenPipeError):
                pipe.send(None)
        for process in self.workers.values():
            process.join(timeout=2)  # an idle one ends at once; one still training is stopped
            if process.is_alive():
                process.terminate()
                process.join()
        self.workers.clear()


def _work(pipe: connection.Connection, run_job: RunJob, folder: Path) -> None:
    """Body of a worker process: jobs in, (record, error) out."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    # a forked process may have inherited streams that lead elsewhere than to the descriptors 1 and 2
    sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
    while True:
        try:
            given = pipe.recv()
        except EOFError:
            return
        if given is None:
            return
        key, job = given
        name = _folder_name(job, key)
        shutil.rmtree(folder / name, ignore_errors=True)  # logs of a run that was killed are not this run's
        (folder / name).mkdir(parents=True)
        with _output_to(folder / f"{name}.log"):
            try:
                answer = run_job(job, folder / name), None
                json.dumps(answer)  # a record that cannot be written is this job's failure, not the table's
            except BaseException:
                error = traceback.format_exc()
                print(error, file=sys.stderr)
                answer = None, error[-4000:]
        pipe.send(answer)


def _die_with_parent() -> None:
    # a killed runner must not leave trainings behind that compete with its successor
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _output_to(log: Path):
    """Send this process's output, C libraries' included, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for target, source in zip((1, 2), kept, strict=True):
                os.dup2(source, target)
                os.close(source)


def _git_commit() -> str | None:
    """Commit of this source tree, ``+`` where tracked files differ from it; None outside git."""
    here = Path(__file__).parent
    try:
        commit, changed = (
            subprocess.run(
                ["git", *words], cwd=here, check=True, capture_output=True, text=True).stdout.strip()
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "-uno"]))
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")


# --- one job -------------------------------------------------------------------------------------


def train_and_evaluate(
    job: Job, folder: Path, keep: bool = False, examine: Callable[[Any, Path], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Train ``job`` through mmengine's Runner, then evaluate it complete and with modalities withheld.

    Nothing is evaluated during training; ``keep`` writes the last weights to ``final.pth`` in the folder. ``metrics``
    holds what the evaluator returns, and the IoU of each class where it is mmsegmentation's IoUMetric. ``examine``
    (runner, folder) adds entries of its own, asked of the trained model.

    Raises: whatever the Runner raises; ValueError if a withheld modality is not one of the model's.
    """
    from mmengine.runner import Runner

    cfg = job.load_config()
    cfg.work_dir = str(folder)
    cfg.randomness = dict(seed=job.seed)
    _name_apart(cfg, f"{folder.name}_{time.time_ns()}")
    cfg.default_hooks = {**cfg.get("default_hooks", {}), "checkpoint": None}
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    runner = Runner.from_cfg(cfg)
    model = runner.model
    preprocessor = model.data_preprocessor
    known = set(getattr(preprocessor, "modalities", ()))
    evaluations = {name: _evaluation(name, asked, known) for name, asked in job.evaluations.items()}
    if job.channels_last:
        model.to(memory_format=torch.channels_last)
    start = time.perf_counter()
    runner.train()
    trained = time.perf_counter()
    if keep:
        runner.save_checkpoint(str(folder), "final.pth", save_optimizer=False, save_param_scheduler=False)
    metrics = {}
    for name, (missing, noise) in evaluations.items():
        if known:
            preprocessor.test_missing = missing
            preprocessor.noise.set_test_noise(noise)
        metrics[name] = _evaluate(runner)
    record = dict(
        metrics=metrics,
        iterations=runner.iter,
        parameters=_parameters(model),
        neck_parameters=_parameters(getattr(model, "neck", None)),
        train_seconds=round(trained - start, 1),
        evaluation_seconds=round(time.perf_counter() - trained, 1))
    if examine is not None:
        if known:
            preprocessor.test_missing = ()
            preprocessor.noise.set_test_noise(None)
        start = time.perf_counter()
        record.update(examine(runner, folder), examination_seconds=round(time.perf_counter() - start, 1))
    _end_workers(runner)
    del runner, model, preprocessor
    gc.collect()
    return record


def _end_workers(runner: Any) -> None:
    """End the processes that loaders keep between epochs (``persistent_workers``), at once.

    Left to the collector of cycles, each is waited for in vain, 5 s long, and killed: the collector closes the queue
    before torch asks for the end through it.
    """
    for loop in filter(None, (runner.train_loop, runner.test_loop)):
        iterator, loop.dataloader._iterator = loop.dataloader._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()


def _evaluation(name: str, asked: Sequence[str] | Mapping[str, Any], known: set[str]) -> tuple[tuple[str, ...], Any]:
    """(withheld modalities, test noise) of one evaluation."""
    given = dict(asked) if isinstance(asked, Mapping) else dict(missing=asked)
    missing, noise = tuple(given.pop("missing", ())), given.pop("noise", None)
    if given:
        raise ValueError(f"evaluation {name!r} has {sorted(given)}, it takes missing and noise")
    for what, modalities in (("withholds", missing), ("adds noise to", noise or ())):
        if set(modalities) - known:
            raise ValueError(f"evaluation {name!r} {what} {sorted(modalities)}, the model has {sorted(known)}")
    return missing, noise


def _evaluate(runner: Any) -> dict[str, Any]:
    if runner.test_loop is None:
        raise ValueError("the config has no test_dataloader, test_cfg and test_evaluator")
    counted: dict[str, float] = {}
    for metric in runner.test_loop.evaluator.metrics:
        _record_class_iou(metric, counted)
    values = {name: float(value) for name, value in runner.test().items()}
    return {**values, **({"IoU": counted} if counted else {})}


def _record_class_iou(metric: Any, counted: dict[str, float]) -> None:
    """IoUMetric prints the IoU of each class and returns the mean alone; keep them."""
    if type(metric).__name__ != "IoUMetric":
        return
    original = type(metric).compute_metrics

    def compute_metrics(results: list) -> dict[str, float]:
        intersect, union = (sum(column) for column in list(zip(*results, strict=True))[:2])
        iou = (100 * intersect / union).tolist()
        counted.update(zip(metric.dataset_meta["classes"], iou, strict=True))
        return original(metric, results)

    metric.compute_metrics = compute_metrics


def _parameters(module: torch.nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())
