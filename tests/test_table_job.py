"""One job of a table from its config to its record, with modalities withheld and noise added."""
from __future__ import annotations

import importlib
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmaction")
from mmengine.registry import MODELS

from mmfusion_plugin.analysis import Job
from mmfusion_plugin.analysis.table_runs import train_and_evaluate
from mmfusion_plugin.models.injection import BatchNoise

CONFIG = Path(__file__).parents[1] / "configs" / "recognition" / "concat_handwritten6.py"
VIEWS = dict(pix=240, fou=76, fac=216, zer=47, kar=64, mor=6)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Ten classes that every view tells apart, in the layout of the real file."""
    from scipy.io import savemat

    folder, rng = tmp_path_factory.mktemp("views"), np.random.default_rng(0)
    centres = {m: rng.normal(size=(10, C)) for m, C in VIEWS.items()}
    arrays = {}
    for split, number in (("train", 400), ("test", 100)):
        labels = np.arange(number) % 10
        arrays[f"gt_{split}"] = labels[:, None] + 1
        for i, m in enumerate(VIEWS, start=1):
            arrays[f"x{i}_{split}"] = centres[m][labels] + rng.normal(size=(number, VIEWS[m])) * 0.3
    savemat(folder / "handwritten_6views.mat", arrays)
    return {f"{part}_dataloader.dataset.data_root": str(folder) for part in ("train", "val", "test")}


def job(paths: dict, **evaluations) -> Job:
    short = {"train_cfg.max_epochs": 3, "train_cfg.val_begin": 3, "param_scheduler.0.end": 3}
    return Job("concat", str(CONFIG), 0, short, paths, evaluations)


def test_a_job_is_evaluated_complete_without_a_modality_and_under_noise(paths, tmp_path):
    loud = {m: dict(type="gaussian", level=1, kind="vector", scale=dict(gaussian=100.0)) for m in VIEWS}
    record = train_and_evaluate(
        job(paths, complete=[], alone=list(VIEWS)[:-1], noisy=dict(noise=loud), both=dict(missing=["pix"], noise={}),
            again=[]), tmp_path)
    accuracy = {name: found["acc/fused_top1"] for name, found in record["metrics"].items()}
    assert record["iterations"] == 3 * 7
    assert accuracy["complete"] > 0.9 and accuracy["noisy"] < 0.4
    assert accuracy["alone"] < accuracy["complete"]
    assert accuracy["again"] == accuracy["complete"], "noise and withheld modalities end with their evaluation"


def test_a_jobs_workers_end_when_they_are_asked_to(paths, tmp_path, monkeypatch):
    calls = []

    def count(name: str) -> None:
        own = getattr(BaseProcess, name)
        monkeypatch.setattr(BaseProcess, name, lambda self: calls.append(name) or own(self))

    count("start")
    count("terminate")
    kept = {f"{part}_dataloader.{name}": value for part in ("train", "test")
            for name, value in dict(num_workers=1, persistent_workers=True).items()}
    one_epoch = replace(job(paths, complete=[]), overrides={
        "train_cfg.max_epochs": 1, "train_cfg.val_begin": 1, "param_scheduler.0.end": 1, **kept})
    train_and_evaluate(one_epoch, tmp_path)
    assert calls == ["start", "start"], "terminate: after they were waited for in vain"


@pytest.mark.parametrize(("asked", "message"), [
    (["ear"], "withholds"), (dict(noise=dict(ear=dict(type="gaussian", level=1))), "adds noise to"),
    (dict(nose={}), "takes missing and noise")])
def test_an_evaluation_of_something_else_is_refused_before_training(paths, tmp_path, asked, message):
    with pytest.raises(ValueError, match=message):
        train_and_evaluate(job(paths, odd=asked), tmp_path)


@pytest.mark.parametrize("task", ["digit-clips", "cwfid", "nyuv2-half"])
def test_udmls_table_names_every_row_once_and_noise_that_the_model_takes(task, repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "tools" / "benchmarks"))
    tool, estimates = importlib.import_module("udml_table"), importlib.import_module("noise_estimates")
    jobs = tool.jobs(tool.TASKS[task], "anywhere", [0, 1])
    parts = tool.ablations(tool.TASKS[task], "anywhere", [0, 1])
    by_position = [job for job in parts if job.row.endswith("weights per position")]
    assert len(jobs) == 16 and len(parts) - len(by_position) == 10
    assert len(by_position) == (0 if task == "digit-clips" else 4), "where features are maps"
    whole = jobs + parts
    assert len({job.key() for job in whole}) == len({(job.row, job.seed) for job in whole}) == len(whole)
    assert set(estimates.ROWS) <= {job.row for job in jobs + parts}
    trained = jobs[0].load_config().model.data_preprocessor.train_noise.noise
    for name, asked in jobs[0].evaluations.items():
        if not isinstance(asked, dict):
            continue
        BatchNoise(list(trained), None, asked["noise"])
        for m, noise in asked["noise"].items():
            if noise["type"] == "gaussian":
                assert noise["scale"] == trained[m].scale, f"{name}: a level means something else than in training"
    assert jobs[-1].load_config().model.data_preprocessor.train_noise is None
    for job in parts:
        assert MODELS.build(job.load_config().model.neck).modalities == tuple(trained), job.row
