"""Checks that train: killed, resumed, repeated, in several processes, and for long."""
from __future__ import annotations

import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
import trust_cases as cases
from mmaction.registry import MODELS as ACTION_MODELS
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.fileio import LocalBackend
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.utils.data import DataLoader
from trust_cases import Row

from mmfusion_plugin.engine import checkpoint_files as files
from mmfusion_plugin.engine.launch import build_runner

PATIENCE = 60  # s that a short training may take before it counts as hanging
UDML_STAGES = ("before noise", "with noise", "with weights")
ENOUGH = 20  # kills of which each stage is to get one


def _trained(work_dir: Path, work: Callable[[], None], **options) -> int:
    return cases.finish(cases.start(work, work_dir / "out.txt", **options), PATIENCE)


def _why(work_dir: Path) -> str:
    lines = (work_dir / "out.txt").read_text().strip().splitlines()
    return lines[-1][:200].replace("|", "/") if lines else "it wrote nothing"


# --- 1


def resumed_equals_unbroken(folder: Path, kills: int) -> Iterator[Row]:
    """``kills`` SIGKILLs at random moments of trainings with UDML, each resumed, compared when they are through."""
    data = cases.write_frames(folder / "data")
    for task, by_epoch, workers in itertools.product(cases.TASKS, (True, False), (0, 2)):
        name = f"{task}, {'epochs' if by_epoch else 'iterations'}, {workers} workers"
        whole, build = folder / f"whole-{name}".replace(" ", ""), partial(
            cases.training, task, data=data, by_epoch=by_epoch, workers=workers)
        begin = time.monotonic()
        code = _trained(whole, lambda w=whole, build=build: cases.train(build(work_dir=w)))
        seconds = time.monotonic() - begin
        if code:
            yield Row(name, "1", _why(whole), False)
            continue
        rng, done, runs, different, resumed_at = random.Random(0), 0, 0, [], Counter()
        while done < kills and not different:
            work_dir = folder / f"killed-{name}-{runs}".replace(" ", "")
            done += _killed_until_through(work_dir, build, rng, kills - done, seconds, resumed_at)
            runs += 1
            different = list(cases.differences(cases.final(whole), cases.final(work_dir)))
        at = ", ".join(f"{step}: {number}" for step, number in sorted(resumed_at.items()))
        stages = Counter(stage for step, number in resumed_at.items() for stage in [_stage(step)] * number)
        shown = ", ".join(f"{stages[stage]} {stage}" for stage in UDML_STAGES)
        unseen = done >= ENOUGH and set(stages) != set(UDML_STAGES)
        yield Row(name, f"{done} kills, {runs} runs", f"differences: {different[:3] or 'none'}; resumed {shown} "
                  f"(after step {at})", not different and not unseen)
    yield two_ranks_resumed(folder / "ranks")


def _stage(step: int) -> str:
    """What UDML does after ``step`` of :func:`cases.training`."""
    share = step / cases.STEPS
    return UDML_STAGES[(share >= cases.STAGES["noise"]) + (share >= cases.STAGES["weights"])]


def _killed_until_through(work_dir: Path, build: Callable, rng: random.Random, most: int, seconds: float,
                          resumed_at: Counter) -> int:
    """Number of kills of one training, at most ``most``. Each is equally likely to hit any moment of it."""
    kills, resume = 0, False
    while True:
        child = cases.start(lambda resume=resume: cases.train(build(work_dir=work_dir), resume), work_dir / "out.txt")
        if kills == most or not cases.kill_after(child, rng.uniform(0.1, 1.0) * seconds):
            code = cases.finish(child, PATIENCE) if kills == most else 0
            if code:
                raise RuntimeError(f"{work_dir} did not finish ({code}): {_why(work_dir)}")
            return kills
        kills, resume = kills + 1, True
        pointer = work_dir / files.POINTER
        resumed_at[int(Path(pointer.read_text()).stem.split("_")[1]) if pointer.is_file() else 0] += 1


def two_ranks_resumed(folder: Path) -> Row:
    """Two gloo processes, killed before a step within an epoch and resumed; each has its own random state."""
    def both(work_dir: Path, resume: bool, die_at: int | None) -> list[int]:
        store = folder / f"store-{work_dir.name}-{resume}"

        def work(rank: int) -> None:
            os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
            torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2,
                                                 timeout=timedelta(seconds=30))
            seed = Runner.set_randomness
            # mmengine seeds all ranks alike: from here on their generators differ
            Runner.set_randomness = lambda self, *args, **kwargs: (seed(self, *args, **kwargs), torch.rand(rank))
            if die_at is not None:
                cases.die_before(die_at)
            cfg = cases.training("recognition", work_dir, folder, launcher="pytorch", steps=16)  # two to an epoch
            cfg.resume = resume
            build_runner(cfg).train()

        children = [cases.start(partial(work, rank), work_dir / f"rank{rank}" / "out.txt") for rank in range(2)]
        return [cases.finish(child, PATIENCE) for child in children]

    folder.mkdir(parents=True, exist_ok=True)
    codes = both(folder / "whole", False, None), both(folder / "killed", False, 4), both(folder / "killed", True, None)
    name = "recognition, epochs, 2 processes"
    if codes != ([0, 0], [-9, -9], [0, 0]):
        return Row(name, "1 kill", f"exit codes {codes}", False)
    whole = cases.final(folder / "whole")
    one, other = whole["resume_state"]["random"]
    different = list(cases.differences(whole, cases.final(folder / "killed")))
    drawn = "own random states" if list(cases.differences(one, other)) else "one random state"
    return Row(name, "1 kill", f"differences: {different[:3] or 'none'}; {drawn}",
               not different and drawn.startswith("own"))


# --- 2


def killed_while_saving(folder: Path, saves: int) -> Iterator[Row]:
    data, work_dir = folder, folder / "killed"
    hook = dict(interval=1, max_keep_ckpts=1)
    rng, lost, unfinished, last = random.Random(0), [], 0, 0
    for i in range(saves):
        step, operation, share = rng.randint(1, 2), rng.randrange(12), rng.random()
        code = _trained(work_dir, lambda i=i, step=step, operation=operation, share=share: (
            _die_in_save(step, operation, share),
            cases.train(cases.training("recognition", work_dir, data, by_epoch=False, steps=10_000, hook=hook,
                                       val_cfg=None, val_dataloader=None, val_evaluator=None), resume=i > 0)))
        if code != -signal.SIGKILL:
            lost.append(f"{code}: {_why(work_dir)}")
            continue
        unfinished += (work_dir / "iter_1.pth.partial").is_file() or bool(list(work_dir.glob("*.partial")))
        found, wrong = files.newest_good(files.candidates(work_dir, work_dir, "iter_{}.pth"))
        pointer = work_dir / files.POINTER
        if pointer.is_file():
            try:
                now = files.load_from_local(pointer.read_text())["meta"]["iter"]
            except files.CheckpointError as error:
                lost.append(str(error))
                continue
            if now < last:
                lost.append(f"step {last} was saved, {now} is left")
            last = now
        elif last:
            lost.append("the pointer is gone")
    yield Row("SIGKILL inside a save, keep 1", f"{saves} saves", f"not loadable: {lost[:2] or 'none'}; half-written "
              f"files left by {unfinished}; at step {last} in the end", not lost and last > 0)
    full = folder / "full"
    options = dict(hook=dict(max_keep_ckpts=1))
    _trained(full, lambda: (cases.die_before(4), cases.train(cases.training("recognition", full, data, **options))))
    size = (full / "iter_3.pth").stat().st_size
    for share in (0.0, 0.5, 0.99):
        limit = int(size * share)
        code = _trained(full, lambda: cases.train(cases.training("recognition", full, data, **options), True),
                        limits=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        pointer = Path((full / files.POINTER).read_text())
        good, _ = files.newest_good([pointer])
        yield Row("no room for a checkpoint, keep 1", f"file size {share:.0%} of it", f"exit code {code}, pointer to "
                  f"{pointer.name}, {'good' if good else 'damaged'}", code == 1 and good is not None)
    yield from full_disk(folder / "disk")


def full_disk(folder: Path, mib: int = 8) -> Iterator[Row]:
    """A tmpfs of ``mib`` MiB, filled until a share of the next checkpoint fits beside the only one; then emptied."""
    name, disk, logs = "full disk (tmpfs), keep 1", folder / "disk", folder / "logs"
    disk.mkdir(parents=True)
    if reason := _not_mounted(disk, mib):
        yield Row(name, "0", f"skipped: {reason}", True)
        return
    run, ballast = disk / "run", disk / "ballast"

    def trained(resume: bool, die_at: int | None = None) -> int:
        def work():
            if die_at is not None:
                cases.die_before(die_at)
            cases.train(cases.training("recognition", run, folder, hook=dict(max_keep_ckpts=1)), resume)
        return _trained(logs, work)

    try:
        trained(False, 4)
        size = (run / "iter_3.pth").stat().st_size
        for share in (0.0, 0.5, 0.99):
            ballast.write_bytes(bytes(shutil.disk_usage(disk).free - int(share * size)))
            code = trained(True)
            ballast.unlink()
            pointer = Path((run / files.POINTER).read_text())
            good, _ = files.newest_good([pointer])
            yield Row(name, f"room for {share:.0%} of it", f"exit code {code}, pointer to {pointer.name}, "
                      f"{'good' if good else 'damaged'}", code == 1 and good is not None)
        code = trained(True)
        pointer = Path((run / files.POINTER).read_text())
        yield Row("room made, resumed", "1", f"exit code {code}, pointer to {pointer.name}",
                  code == 0 and pointer.name == "iter_12.pth" and files.newest_good([pointer])[0] is not None)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)


def _not_mounted(at: Path, mib: int) -> str | None:
    """Mount a tmpfs; why that was not possible, if it was not."""
    if shutil.which("mount") is None:
        return "there is no mount command"
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(at)]
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stderr.strip() or f"mount exits with {done.returncode}").replace("|", "/") if done.returncode else None


def _die_in_save(save: int, operation: int, share: float) -> None:
    """SIGKILL in a checkpoint: after part of its bytes (operation 0), or before that change of the disk."""
    counts = Counter()
    put, commit = LocalBackend.put, files.commit

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def dying_put(self, content, path):
        counts["saves"] += 1
        if counts["saves"] == save and operation == 0:
            Path(path).write_bytes(content[: int(share * len(content))])
            die()
        return put(self, content, path)

    def counted(real):
        def call(*args, **kwargs):
            if counts["saves"] == save:
                counts["operations"] += 1
                if counts["operations"] == operation:
                    die()
            return real(*args, **kwargs)
        return call

    def last_commit(path):
        commit(path)
        if counts["saves"] > save:
            die()  # the save had fewer operations

    LocalBackend.put = dying_put
    files.commit = last_commit
    os.replace, files._flush, Path.write_text = map(counted, (os.replace, files._flush, Path.write_text))


# --- 5


def broken_samples(folder: Path) -> Iterator[Row]:
    from mmseg.registry import DATASETS

    init_default_scope("mmseg")
    number = 100
    shares = (1, 0.01), (10, 0.1), (11, 0.1), (100, 1.0), (1, 0.0)
    for workers, (damaged, allowed) in itertools.product((0, 2), shares):
        data = cases.write_frames(folder / f"{workers}-{damaged}-{allowed}", number)
        for i in random.Random(0).sample(range(number), damaged):
            path = data / "RGB" / f"{i:02d}.png"
            path.write_bytes(path.read_bytes()[:200])
        listed = data / "broken.txt"
        cfg = cases.dataset_cfg("segmentation", data) | (
            dict(max_broken=allowed, broken_list=str(listed)) if allowed else {})
        dataset = DATASETS.build(cfg)
        np.random.seed(0)  # which sample replaces a broken one; loader processes draw from the generator's seed
        loader = DataLoader(dataset, 10, num_workers=workers, collate_fn=list,
                            generator=torch.Generator().manual_seed(0))
        try:
            seen = sum(len(batch) for batch in loader)
            ended = "finished"
        except Exception as error:
            seen, ended = 0, type(error).__name__
        lines = len(listed.read_text().splitlines()) if listed.is_file() else 0
        few = damaged <= allowed * number and damaged < number
        if few:
            holds = ended == "finished" and seen == number and dataset.number_broken == lines == damaged
        elif allowed:  # a process may be ended between its mark and its line
            holds = ended == "TooManyBroken" and dataset.number_broken == damaged and 0 <= damaged - lines <= workers
        else:
            holds = ended == "SensorReadError"
        yield Row(f"{damaged} % broken, {allowed:.0%} allowed, {workers} workers", f"{number} samples",
                  f"{ended}; counted {dataset.number_broken}, listed {lines}", holds)
    yield killed_process(folder, training=False)
    yield killed_process(folder, training=True)


def _children(of: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if int(fields[2]) == of and fields[0] != "Z":  # of its process group
            found.append(int(path.parent.name))
    return found


def killed_process(folder: Path, training: bool) -> Row:
    """SIGKILL of a loader process, or of the training that started it: all end by themselves within 30 s."""
    name = f"a {'training with loader processes' if training else 'loader process'} is killed"
    work_dir = folder / ("training" if training else "worker")
    child = cases.start(lambda: cases.train(cases.training("recognition", work_dir, folder, workers=2, steps=40_000)),
                        work_dir / "out.txt")
    begin = time.monotonic()
    while len(_children(child)) < 3 or not (work_dir / "iter_3.pth").is_file():
        if time.monotonic() - begin > PATIENCE:
            cases.finish(child, 0)
            return Row(name, "1", f"no training: {_why(work_dir)}", False)
        time.sleep(0.05)
    os.kill(child if training else max(_children(child)), signal.SIGKILL)
    begin = time.monotonic()
    code = cases.finish(child, 60)
    seconds = time.monotonic() - begin
    while (left := _children(child)) and time.monotonic() - begin < 30:
        time.sleep(0.1)  # a loader looks for its parent every few seconds
    gone = time.monotonic() - begin
    ended = code == -signal.SIGKILL if training else code not in (0, -signal.SIGALRM)
    return Row(name, "1", f"exit code {code} after {seconds:.1f} s, {len(left)} processes left after {gone:.1f} s",
               ended and seconds < 30 and not left)


# --- 6


def equal_runs(folder: Path) -> Iterator[Row]:
    data = cases.write_frames(folder / "data")
    for task in cases.TASKS:
        found = []
        for i, workers in enumerate((0, 0, 1, 2)):
            work_dir = folder / f"{task}{i}"
            build = partial(cases.training, task, work_dir, data, workers=workers)
            if _trained(work_dir, lambda build=build: cases.train(build())):
                yield Row(task, "1", _why(work_dir), False)
                return
            found.append(cases.final(work_dir))
        for what, other in (("twice", 1), ("0 and 1 workers", 2), ("0 and 2 workers", 3)):
            different = list(cases.differences(found[0], found[other]))
            yield Row(f"{task}, {what}", "12 steps", f"differences: {different[:3] or 'none'}", not different)
    yield from two_processes(folder)


def quiet_model(neck: str) -> torch.nn.Module:
    """In training, without anything that is drawn or normalised over a batch: several processes see other batches.

    UDML weighs by noise and dependency, and learns both: :func:`drawn_samples` come with levels.
    """
    init_default_scope("mmaction")
    torch.manual_seed(0)
    cfg = cases.recognition_model(neck)
    cfg["data_preprocessor"].pop("train_noise")
    cfg["cls_head"]["dropout"] = 0.0
    (cfg["neck"].get("inner") or cfg["neck"])["modality_dropout"] = 0.0
    if neck == "UDML":
        cfg["neck"].update(dependency_every=1, kl_weight=0.01, reads=["variance", "input"], novelty=["input"])
    model = ACTION_MODELS.build(cfg)
    model.init_weights()
    at_the_end(model).train()
    if neck == "UDML":
        model.neck.udml.embed.eval()  # it draws, and has BatchNorm
    return model


def at_the_end(model: torch.nn.Module) -> torch.nn.Module:
    """UDML and noise in their last stage."""
    for part in model.modules():
        if hasattr(part, "set_progress"):
            part.set_progress(1.0)
    return model


def drawn_samples(number: int, lacking: dict[int, str] | None = None) -> list[dict]:
    """As if noise of levels 0 to 3 had been injected into the first modality."""
    first, *others = cases.NAMES["recognition"]
    dataset = cases.DrawnVectors([first, *others], number)
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    found = [dataset[i] for i in range(number)]
    for i, sample in enumerate(found):
        sample["data_samples"].set_metainfo(dict(noise_level={first: i % 4, **dict.fromkeys(others, 0)}))
    for i, m in (lacking or {}).items():
        found[i]["data_samples"].set_metainfo(dict(available=found[i]["data_samples"].available | {m: False}))
    return found


class _Keep(OptimWrapper):
    """Keeps gradients instead of making steps."""

    def step(self, **kwargs) -> None:
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.kept = [None if p.grad is None else p.grad.clone() for p in params]


def _gradients(neck: str, samples: list[dict], wrap: Callable = lambda model: model) -> dict:
    """Gradients by parameter, and the buffers: all that a step without BatchNorm leaves behind."""
    model = quiet_model(neck)
    optim, wrapped = _Keep(torch.optim.SGD(model.parameters(), lr=0.1)), wrap(model)
    for _ in range(2):  # the second reads the dependency and the statistics that the first has left
        wrapped.train_step(pseudo_collate(samples), optim)
    kept = {name: g for (name, _), g in zip(model.named_parameters(), optim.kept) if g is not None}
    return kept | {f"buffer {name}": x.float() for name, x in model.named_buffers()}


def _metrics(samples: list[dict], sampler: DefaultSampler) -> dict:
    model = quiet_model("SCFAE").eval()
    evaluator = Evaluator([dict(type="AccMetric")])
    batches = DataLoader(samples, 2, sampler=sampler, collate_fn=pseudo_collate)
    with torch.no_grad():
        for batch in batches:
            evaluator.process(model.val_step(batch), batch)
    return {key: float(value) for key, value in evaluator.evaluate(len(samples)).items()}


def _iou(number: int, sampler: DefaultSampler) -> dict:
    """mIoU of made-up label maps."""
    init_default_scope("mmseg")
    evaluator = Evaluator([dict(type="IoUMetric")])
    evaluator.dataset_meta = dict(classes=[str(k) for k in range(cases.CLASSES)])
    for batch in DataLoader(range(number), 2, sampler=sampler):
        drawn = [torch.randint(cases.CLASSES, (2, 1, 8, 8), generator=torch.Generator().manual_seed(i))
                 for i in batch.tolist()]
        evaluator.process([dict(pred_sem_seg=dict(data=found), gt_sem_seg=dict(data=label)) for found, label in drawn])
    return {key: float(value) for key, value in evaluator.evaluate(number).items()}


def _one_rank(folder: Path, rank: int, work: Callable[[], dict]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2,
                                         timeout=timedelta(seconds=20))
    torch.save(work(), folder / f"{rank}.pth")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _on_two_ranks(folder: Path, work: Callable[[int], dict]) -> list[dict] | str:
    folder.mkdir(parents=True)
    children = [cases.start(lambda r=r: _one_rank(folder, r, lambda: work(r)), folder / f"{r}" / "out.txt")
                for r in range(2)]
    codes = [cases.finish(child, PATIENCE) for child in children]
    if any(codes):
        return f"exit codes {codes}: {_why(folder / str(codes.index(max(codes, key=abs))))}"
    return [torch.load(folder / f"{r}.pth", weights_only=True) for r in range(2)]


def two_processes(folder: Path, necks: Sequence[str] = cases.NECKS) -> Iterator[Row]:
    samples = drawn_samples(8)
    for neck in necks:
        one = _gradients(neck, samples)
        two = _on_two_ranks(folder / neck, lambda rank, neck=neck: _gradients(
            neck, samples[rank::2], MMDistributedDataParallel))
        if isinstance(two, str):
            yield Row(f"{neck}, one against two processes", "8 samples", two, False)
            continue
        names = [name for name in one if not name.startswith("buffer ")]
        scale = max(float(one[name].abs().max()) for name in names)
        worst = max(float((one[name] - two[r][name]).abs().max()) for r in range(2) for name in names) / scale
        same = all(torch.equal(two[0][name], two[1][name]) for name in one) and set(one) == set(two[0])
        kept = all(torch.allclose(one[name], two[0][name], rtol=1e-4, atol=1e-5) for name in set(one) - set(names))
        yield Row(f"{neck}, one against two processes", "8 samples", f"gradients within {worst:.1e} of the largest, "
                  f"with the buffers {'equal' if same else 'different'} on both, buffers "
                  f"{'as' if kept else 'other than'} in one", worst < 1e-6 and same and kept)
    samples = drawn_samples(cases.NUMBER + 1)
    for task, found in (("recognition", partial(_metrics, samples)), ("segmentation", partial(_iou, len(samples)))):
        one = found(DefaultSampler(samples, shuffle=False))
        two = _on_two_ranks(folder / f"metrics-{task}", lambda rank, found=found: found(
            DefaultSampler(samples, shuffle=False)))
        holds = not isinstance(two, str) and all(one == other for other in two)
        shown = f"{len(one)} of {len(one)} equal" if holds else f"{one} and {two}"
        yield Row(f"metrics of {task}, one against two processes", f"{len(samples)} samples", shown, holds)
    silent = drawn_samples(4, dict.fromkeys(range(4), "audio"))
    for name, parts in (("ragged last batch", [drawn_samples(4), drawn_samples(3)]),
                        ("a rank lacks a modality", [drawn_samples(4), silent])):
        for neck in necks:
            found = _on_two_ranks(folder / f"{name}-{neck}", lambda rank, neck=neck, parts=parts: _gradients(
                neck, parts[rank], MMDistributedDataParallel))
            holds = not isinstance(found, str) and all(torch.equal(g, found[1][n]) for n, g in found[0].items())
            yield Row(f"{neck}, {name}", "1 step", "no hang, equal gradients" if holds else str(found)[:200], holds)


# --- 10


def memory(folder: Path, steps: int, limit: float = 1.0) -> Iterator[Row]:
    """Resident memory of a training's process over its steps, by a line through the second half; ``limit`` in MB."""
    work_dir, log = folder / "soak", folder / "memory.txt"

    def work():
        every = max(steps // 100, 1)
        step = Runner.call_hook

        def counting(self, fn_name, **kwargs):
            if fn_name == "after_train_iter" and self.iter % every == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                with open(log, "a") as file:
                    file.write(f"{self.iter} {pages * resource.getpagesize() / 1e6}\n")
            return step(self, fn_name, **kwargs)

        Runner.call_hook = counting
        cases.train(cases.training("recognition", work_dir, folder, by_epoch=False, hook=dict(interval=500),
                                   train_cfg=dict(type="IterBasedTrainLoop", max_iters=steps, val_interval=500)))

    code = cases.finish(cases.start(work, work_dir / "out.txt"), 3600)
    if code:
        yield Row("memory", f"{steps} steps", _why(work_dir), False)
        return
    at, used = np.loadtxt(log)[len(np.loadtxt(log)) // 2:].T
    slope = float(np.polyfit(at, used, 1)[0]) * 1000
    yield Row("resident memory, UDML", f"{steps} steps", f"{slope:+.2f} MB per 1,000 steps (at {used[-1]:.0f} MB)",
              slope <= limit)
