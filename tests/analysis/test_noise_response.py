"""Tables, correlations and plots of what UDML makes of noise, on models of both tasks."""
from __future__ import annotations

import csv
import json
import math
from itertools import groupby

import pytest
import torch
from running import run_tool

from mmfusion_plugin.analysis.noise_response import (
    is_rising,
    plot_response,
    plot_training,
    respond,
    spearman,
    summarise,
    training_curves,
    write_csv,
)


def log(folder, time, lines):
    path = folder / time / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_resumed_training_is_one_curve(tmp_path):
    def step(i, weight):
        return {"loss": 1.0, "fusion.weight.a": weight, "fusion.dependency.a": 2.0, "fusion.weight.b": 2 - weight,
                "fusion.recon_distance.a.0": 5.0, "step": i}

    log(tmp_path, "20260101_000000", [step(10, 1.0), step(20, 1.25), step(30, 9.0)])
    log(tmp_path, "20260101_010000", [step(30, 1.5), {"mIoU": 3.0, "step": 30}])
    curves = training_curves(tmp_path)
    assert curves == dict(weight=dict(a=[(10, 1.0), (20, 1.25), (30, 1.5)], b=[(10, 1.0), (20, 0.75), (30, 0.5)]),
                          dependency=dict(a=[(10, 2.0), (20, 2.0), (30, 2.0)]))
    assert plot_training(curves, tmp_path / "new" / "x.png").stat().st_size > 1000


def test_a_log_cut_by_a_kill_counts_up_to_there_and_a_damaged_one_names_its_line(tmp_path):
    log(tmp_path, "1", [{"fusion.weight.a": 1.0, "step": 10}, {"fusion.weight.a": 2.0, "step": 20}])
    path = tmp_path / "1" / "vis_data" / "scalars.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert training_curves(tmp_path) == dict(weight=dict(a=[(10, 1.0)]))
    path.write_bytes(b"{" + whole)
    with pytest.raises(ValueError, match=r"scalars\.json, line 1 is no record.*remove"):
        training_curves(tmp_path)


def test_folders_without_a_log_of_udml_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="scalars.json below"):
        training_curves(tmp_path)
    log(tmp_path, "1", [dict(loss=1.0, step=1)])
    with pytest.raises(ValueError, match="not UDML"):
        training_curves(tmp_path)


def test_the_tool_draws_a_training_and_names_a_wrong_folder(tmp_path, monkeypatch, capsys):
    log(tmp_path / "run", "1", [{"fusion.weight.a": 1.5, "step": 1}, {"fusion.weight.a": 1.25, "step": 2}])
    monkeypatch.chdir(tmp_path)
    run_tool(monkeypatch, "plot_noise", "training", "run")
    assert "weight: a 1.250 (last)" in capsys.readouterr().out
    assert (tmp_path / "run" / "noise_training.png").is_file()
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, "plot_noise", "training", "nowhere")
    assert "scalars.json below nowhere" in capsys.readouterr().err


def test_spearman_with_ties_is_pearson_of_mean_ranks():
    x, y = [1, 1, 2, 5, 9], [3.0, 4.0, 4.0, 4.0, 7.0]
    ranks = torch.tensor([[1.5, 1.5, 3, 4, 5], [1, 3, 3, 3, 5]])
    assert spearman(x, y) == pytest.approx(float(torch.corrcoef(ranks)[0, 1]))
    assert spearman([1, 2, 3], [5, 6, 70]) == 1 and spearman([1, 2, 3], [9, 2, 1]) == -1
    assert math.isnan(spearman([1, 2], [3, 3]))
    with pytest.raises(ValueError, match="two or more pairs"):
        spearman([1], [1])


def test_the_summary_counts_samples_and_levels(tmp_path):
    rows = [{"sample": b, "type": "gaussian", "level": level, "noise.a": level + 0.6 * b, "weight.a": 1 / (1 + level)}
            for level in range(6) for b in range(3)]
    found = summarise(rows, "a", low=2)
    assert found["rising"] and found["means"][2] == pytest.approx(2.6) and found["weights"][1] == 0.5
    assert 0.8 < found["spearman_low"] < found["spearman"] < 1
    assert not summarise([dict(row, **{"noise.a": min(row["noise.a"], 3)}) for row in rows], "a")["rising"]
    assert is_rising([1]) and not is_rising([1, 1])
    with write_csv(rows, tmp_path / "new" / "x.csv").open() as file:
        again = list(csv.DictReader(file))
    assert len(again) == 18 and float(again[-1]["noise.a"]) == pytest.approx(6.2)


def check_response(model, batches, modality, other, number, tmp_path):
    rows = respond(model, batches, modality, "gaussian", [0, 2, 9])
    assert [(level, len(list(group))) for level, group in groupby(row["level"] for row in rows)] == [
        (level, n) for n in number for level in (0, 2, 9)]
    assert [row["sample"] for row in rows if row["level"] == 2] == list(range(sum(number)))
    at = {level: [row for row in rows if row["level"] == level] for level in (0, 2, 9)}
    for row, clean in zip(at[9], at[0]):
        assert row[f"noise.{modality}"] != clean[f"noise.{modality}"]
        assert row[f"noise.{other}"] == pytest.approx(clean[f"noise.{other}"], rel=1e-4)
        assert row[f"weight.{modality}"] + row[f"weight.{other}"] == pytest.approx(2, abs=1e-4)
    assert not len(model.data_preprocessor.noise.test_noise), "as before"
    again = respond(model, batches, modality, "gaussian", [9])
    assert again == at[9], "drawn by the sample's name, whatever was asked before"
    assert plot_response(rows, modality, tmp_path / "x.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="test_noise"):
        respond(model, batches, modality, "blur", [9])


def test_a_recognizers_response(tmp_path):
    pytest.importorskip("mmaction")
    from recognition.model import batch, build
    from recognition.test_udml_recognizer import at, udml_cfg

    model = at(build(udml_cfg(dict(preset="default"))), 1.0).eval()
    check_response(model, [batch(), batch(number=2, seed=3)], "visual", "audio", [4, 2], tmp_path)


def test_a_segmentors_response(tmp_path):
    pytest.importorskip("mmseg")
    from mmengine.registry import init_default_scope
    from segmentation.scene import write_frames
    from segmentation.test_segmentor import batch
    from segmentation.test_udml_segmentor import udml

    init_default_scope("mmseg")
    model = udml().eval()
    data = batch(write_frames(tmp_path / "frames"))
    for i, sample in enumerate(data["data_samples"]):
        sample.set_metainfo(dict(img_path=f"{i}.png"))
    check_response(model, [data], "depth", "rgb", [len(data["data_samples"])], tmp_path)


def test_samples_that_lack_the_modality_are_left_out():
    pytest.importorskip("mmaction")
    from recognition.model import batch, build
    from recognition.test_udml_recognizer import at, udml_cfg

    model = at(build(udml_cfg(dict(preset="default"))), 1.0).eval()
    data = batch(missing=[(1, "visual")])
    assert {row["sample"] for row in respond(model, [data], "visual", "gaussian", [0, 5])} == {0, 2, 3}
    nowhere = batch(missing=[(b, "visual") for b in range(4)])
    with pytest.raises(ValueError, match="no sample of the test set has 'visual'"):
        respond(model, [nowhere], "visual", "gaussian", [0])


def test_a_neck_that_predicts_nothing_is_named():
    pytest.importorskip("mmaction")
    from recognition.model import batch, build
    from recognition.test_udml_recognizer import NOISE, model_cfg

    cfg = model_cfg()
    cfg["data_preprocessor"]["train_noise"] = dict(noise=NOISE)
    with pytest.raises(ValueError, match="predicts no noise of 'audio'"):
        respond(build(cfg), [batch()], "audio", "gaussian", [1])
