"""A row of UDML's table the whole way: trained, its weights kept, read again by the two commands that measure them."""
from __future__ import annotations

import importlib
import json

import pytest

pytest.importorskip("mmaction")
from recognition.test_digit_clips import clips, sources  # noqa: F401  fixtures

from mmfusion_plugin.analysis import Job
from mmfusion_plugin.analysis.noise_response import roc_area
from mmfusion_plugin.analysis.table_runs import kept_weights, run_table, train_and_evaluate

SHORT = {
    "train_cfg.max_epochs": 2, "train_cfg.val_begin": 2, "train_dataloader.batch_size": 8,
    "model.data_preprocessor.train_noise.start": 0.0, "model.neck.weights_from": 0.5}


def keep(job, folder):
    return train_and_evaluate(job, folder, keep=True)


def test_kept_weights_are_read_by_both_commands(clips, tmp_path, repository, monkeypatch):  # noqa: F811
    monkeypatch.syspath_prepend(str(repository / "tools" / "benchmarks"))
    table, estimates, oracle = map(importlib.import_module, ("udml_table", "noise_estimates", "weight_oracle"))
    task = table.TASKS["digit-clips"]
    whole = table.jobs(task, str(clips), [0])
    job = next(job for job in whole if job.row == table.DEFAULT)
    job = Job(job.row, job.config, 0, SHORT, job.paths, {"clean": []})
    results = tmp_path / "results.jsonl"
    assert run_table([job], results, keep, workers=1, start_method="fork").trained == [job.key()]
    weights = kept_weights(results, job)
    monkeypatch.setattr(estimates, "LEVELS", (0, 6, 11))
    found = estimates.measure(job, weights, task)
    for m in task.noise:
        assert len(found[m]["means"]) == len(found[m]["weights"]) == 3 and -1 <= found[m]["spearman"] <= 1
        assert set(found[m]["areas"]) == set(estimates.faults(task)[m])
        assert all(0 <= area <= 1 for area in found[m]["areas"].values())
    record = json.loads(json.dumps(dict(row=job.row, seed=0, found=found)))
    lines = estimates.render([record, dict(record, seed=1)], task)
    assert lines.count("| UDML default |") == 2 and "of 2 |" in lines
    monkeypatch.setattr(oracle, "GRID", (0.0, 1.0))
    monkeypatch.setattr(oracle, "LEVELS", (11,))
    best = oracle.measure(job, weights, task, "val")
    assert set(best) == {"visual 11", "visual occluded", "audio 11", "audio occluded"}
    assert all(set(tried) == {"own", "0", "1", *oracle.LAWS} for tried in best.values())
    assert "| mean regret | | 0 |" in oracle.render([dict(found=best)])


def test_the_area_under_the_roc_counts_ties_half():
    assert roc_area([0, 1, 2], [3, 4]) == 1 and roc_area([3, 4], [0, 1]) == 0 and roc_area([1, 1], [1]) == 0.5
    assert roc_area([0, 1, 1, 2], [1, 3]) == pytest.approx((1 + 2 / 2 + 4) / 8)
    with pytest.raises(ValueError, match="need values of both"):
        roc_area([], [1.0])
