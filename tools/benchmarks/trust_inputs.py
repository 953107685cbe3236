"""Checks of what comes in: damaged and hostile checkpoints, values that are not finite, low precision."""
from __future__ import annotations

import builtins
import io
import itertools
import os
import pickle
import random
import stat
import subprocess
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import trust_cases as cases
from mmaction.registry import DATASETS as ACTION_DATASETS
from mmaction.registry import MODELS as ACTION_MODELS
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from mmseg.registry import MODELS as SEG_MODELS
from torch.optim import SGD
from trust_cases import Row
from trust_runs import at_the_end, drawn_samples, quiet_model

from mmfusion_plugin.engine import GuardedOptimWrapper, NonFiniteError
from mmfusion_plugin.engine import checkpoint_files as files

# --- 3


def small_checkpoint(path: Path, value: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    model = quiet_model("SCFAE")
    torch.save(dict(state_dict=model.state_dict(), meta=dict(iter=1), w=torch.full((3,), value)), f"{path}.partial")
    files.commit(path)
    return path


def damaged_checkpoints(folder: Path, number: int) -> Iterator[Row]:
    for checksum in (True, False):
        path = small_checkpoint(folder / "iter_1.pth")
        whole = path.read_bytes()
        if not checksum:
            files.sidecar(path).unlink()
        for kind in ("truncated", "flipped bit"):
            rng, missed, unnamed = random.Random(0), 0, 0
            for _ in range(number):
                data = bytearray(whole)
                if kind == "truncated":
                    data = data[: rng.randrange(len(data))]
                else:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                path.write_bytes(bytes(data))
                try:
                    found = files.load_from_local(str(path))
                except files.CheckpointError as error:
                    unnamed += str(path) not in str(error)
                else:
                    # without a checksum, bits that the archive does not use may flip; weights may not
                    path.write_bytes(whole)
                    missed += checksum or bool(list(cases.differences(found, files.load_from_local(str(path)))))
            yield Row(f"{kind}, {'with' if checksum else 'without'} .sha256", str(number),
                      f"{missed} not seen, {unnamed} not named", not missed and not unnamed)


# --- 4


def _model(task: str, neck: str, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    if task == "segmentation":
        init_default_scope("mmseg")
        cfg, models = cases.segmentation_model(neck), SEG_MODELS
    else:
        init_default_scope("mmaction")
        cfg, models = cases.recognition_model(neck), ACTION_MODELS
    cfg["neck"].update(options)
    model = models.build(cfg)
    model.init_weights()
    return at_the_end(model).train()


def _samples(task: str, number: int) -> list[dict]:
    return drawn_samples(number) if task == "recognition" else cases.drawn_frames(number)


def not_finite(patience: int) -> Iterator[Row]:
    """One model of each task and neck, through every kind of bad step, with good steps between."""
    for task, neck in itertools.product(cases.TASKS, cases.NECKS):
        wrong, skipped = [], Counter()
        kinds = ["NaN loss", *(f"{m} {value}" for m in cases.NAMES[task] for value in ("nan", "inf", "0"))]
        for what in kinds:
            model = _model(task, neck)
            optim = GuardedOptimWrapper(SGD(model.parameters(), lr=0.01, momentum=0.9), patience=patience)
            model.train_step(pseudo_collate(_samples(task, 4)), optim)
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            with _one_bad(task, model, what) as batch:
                logged = model.train_step(batch(), optim)
            bad_loss = not torch.isfinite(torch.as_tensor(float(logged["loss"].detach())))
            same = all(torch.equal(p, before[name]) for name, p in model.named_parameters())
            skipped[what] = optim.skipped
            if bad_loss and optim.skipped != 1 or optim.skipped and not same:
                wrong.append(f"{what}: loss {float(logged['loss'])}, {optim.skipped} skipped, weights "
                             f"{'kept' if same else 'changed'}")
            if what.endswith(" 0") and optim.skipped:
                wrong.append(f"{what}: skipped, though zeros are finite")
            after = model.train_step(pseudo_collate(_samples(task, 4)), optim)
            finite = all(x.isfinite().all() for x in model.state_dict().values() if x.is_floating_point())
            if not finite or not np.isfinite(float(after["loss"].detach())) or optim.in_a_row:
                wrong.append(f"{what}: not finite afterwards")
        stopped = 0
        with _one_bad(task, model, "NaN loss") as batch:
            try:
                while stopped <= patience:
                    model.train_step(batch(), optim)
                    stopped += 1
            except NonFiniteError:
                stopped += 1
        if stopped != patience:
            wrong.append(f"stopped after {stopped} in a row")
        seen = ", ".join(what for what, number in skipped.items() if number)
        yield Row(f"{task}, {neck}", f"{len(kinds)} kinds; {patience} in a row",
                  "; ".join(wrong) or f"finite weights, stops; skipped: {seen}", not wrong)


@contextmanager
def _one_bad(task: str, model: torch.nn.Module, what: str) -> Iterator[Callable[[], dict]]:
    """Batches with bad readings of one modality, or a head whose loss is NaN."""
    def batch() -> dict:
        samples = _samples(task, 4)
        if what != "NaN loss":
            m, value = what.split()
            for sample in samples[:2]:
                sample["inputs"][m].fill_(float(value))
        return pseudo_collate(samples)

    if what != "NaN loss":
        yield batch
        return
    real = model.parse_losses
    model.parse_losses = lambda losses: real({**losses, "loss_bad": torch.full((), float("nan"))})
    try:
        yield batch
    finally:
        del model.parse_losses


# --- 7


def precisions() -> Iterator[Row]:
    batch = pseudo_collate(drawn_samples(32))
    for neck in cases.NECKS:
        found = {}
        for low in (False, True):
            model = quiet_model(neck)
            data = model.data_preprocessor(batch, True)
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                loss, _ = model.parse_losses(model(**data, mode="loss"))
            loss.backward()
            found[low] = float(loss), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        off = abs(found[True][0] / found[False][0] - 1)
        cosine = float(torch.nn.functional.cosine_similarity(found[True][1], found[False][1], dim=0))
        yield Row(f"{neck}, bfloat16 against float32", "32 samples",
                  f"loss {off:.3%} off, gradient cosine {cosine:.4f}", off < 0.02 and cosine >= 0.99)
    variance = dict(quality="variance", dependency=False, law="inverse_square", kl_weight=1.0)
    for neck, options in (("SCFAE", {}), ("UDML", {}), ("UDML", variance)):
        model = _model("recognition", neck, **options)
        samples = drawn_samples(32)
        for sample in samples:
            for x in sample["inputs"].values():
                x.mul_(1e3)
        data = model.data_preprocessor(pseudo_collate(samples), True)
        with torch.autocast("cpu", torch.float16):
            losses = model(**data, mode="loss")
        shown = {key: float(value) for key, value in losses.items() if "fusion.loss" in key}
        text = ", ".join(f"{key} {value:.3g}" for key, value in shown.items())
        name = f"{neck} by variance" if options else neck
        yield Row(f"{name}, float16, inputs x 1,000", "32 samples", text,
                  bool(shown) and bool(np.isfinite(list(shown.values())).all()))


# --- 8


class _Call:
    """A pickle that calls ``function(*arguments)`` when it is loaded."""

    def __init__(self, function: Callable, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _hostile(mark: Path) -> dict[str, Callable]:
    touch = f"open({str(mark)!r}, 'w')"
    evaluate, execute = (getattr(builtins, name) for name in ("eval", "exec"))
    return {
        "os.system": _Call(os.system, f"touch {mark}"), "os.mkdir": _Call(os.mkdir, str(mark)),
        "subprocess": _Call(subprocess.check_call, ["touch", str(mark)]), "open": _Call(open, str(mark), "w"),
        "evaluated text": _Call(evaluate, touch),
        "executed text": _Call(execute, touch),
        "a method of a path": _Call(Path.touch, mark), "pickle in pickle": _Call(pickle.loads, pickle.dumps(
            _Call(os.mkdir, str(mark)))),
        "getattr": _Call(getattr, str, "format"), "numpy": _Call(np.save, str(mark), 1),
    }


def hostile_files(folder: Path) -> Iterator[Row]:
    folder.mkdir(parents=True)
    mark, ran, refused, number = folder / "ran", [], 0, 0
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # torch's own switch to be careless
    try:
        for name, bomb in _hostile(mark).items():
            for form in ("new", "old", "pickle"):
                number += 1
                path = folder / f"{number}.pth"
                content = dict(state_dict=dict(w=torch.ones(1)), meta=dict(iter=1, x=bomb))
                if form == "pickle":
                    path.write_bytes(pickle.dumps(content))
                else:
                    torch.save(content, path, _use_new_zipfile_serialization=form == "new")
                try:
                    CheckpointLoader.load_checkpoint(str(path), map_location="cpu", logger="silent")
                except files.CheckpointError as error:
                    refused += str(path) in str(error)
                if list(folder.glob("ran*")):
                    ran.append(f"{name} ({form})")
    finally:
        del os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"]
    yield Row("hostile pickles as checkpoints", str(number), f"{len(ran)} ran, {refused} refused by name",
              not ran and refused == number)
    path = folder / "config.pth"
    torch.save(dict(state_dict={}, meta=dict(config=f"open({str(mark)!r}, 'w')")), path)
    left = CheckpointLoader.load_checkpoint(str(path), map_location="cpu", logger="silent")["meta"]
    yield Row("text that mmengine's resume would run", "1", f"left of meta: {left}", not left and not mark.exists())
    yield from _hostile_arrays(folder, mark)


def _hostile_arrays(folder: Path, mark: Path) -> Iterator[Row]:
    init_default_scope("mmaction")
    inside = folder / "in"
    inside.mkdir()
    objects = io.BytesIO()
    np.save(objects, np.array([_Call(os.mkdir, str(mark))], dtype=object), allow_pickle=True)
    link = zipfile.ZipInfo("x.npy")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    members = {"object array": ("x.npy", objects.getvalue()), "../ in a name": ("../x.npy", b"escaped"),
               "absolute name": (str(folder / "x.npy"), b"escaped"), "symlink": (link, str(mark).encode())}
    refused = 0
    for i, (name, content) in enumerate(members.values()):
        path = inside / f"{i}.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)
        try:
            ACTION_DATASETS.build(dict(type="FeatureDataset", ann_file=str(path), arrays=dict(a="x"), label="x",
                                       num_classes=1, pipeline=[]))
        except ValueError as error:
            refused += path.name in str(error)
    outside = [p.name for p in folder.iterdir() if p.suffix != ".pth" and p != inside]
    yield Row("arrays of objects, archives that lead out", str(len(members)), f"{refused} refused by name, outside: "
              f"{outside or 'nothing'}", refused == len(members) and not outside)
