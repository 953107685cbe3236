"""Noise sweeps: what each row is, and what the curves amount to."""
from __future__ import annotations

import copy
import importlib
import json
import math

import pytest
import torch
from analysis import tiny
from running import run_tool

from mmfusion_plugin.analysis.conditions import EncoderMemo, evaluate_conditions, in_order
from mmfusion_plugin.analysis.robustness import (
    check_reference,
    noise_conditions,
    noise_markdown,
    plot_noise_curves,
    robustness,
    sensors_of,
    summarise_noise,
)
from mmfusion_plugin.corruptions import Sensor

SWEEP = dict(visual=dict(gaussian=(20.0, 80.0), blur=(2.0,)), audio=dict(gaussian=(0.5, 2.0)))
SENSORS = dict(visual=Sensor("image"), audio=Sensor("spectrogram", valid_range=(-12.0, 4.0)))


def noisy_model():
    pytest.importorskip("mmaction")
    from recognition.test_udml_recognizer import at, udml_cfg

    model, loader, evaluator = tiny.recognition(udml_cfg(dict(preset="default")))
    return at(model, 1.0), loader, evaluator


def test_rows_are_what_test_noise_gives_one_at_a_time():
    from mmfusion_plugin.analysis.calibration import Counts, labels_and_probabilities

    model, loader, evaluator = noisy_model()
    asked, described = noise_conditions(model.data_preprocessor, SENSORS, SWEEP)
    assert [c.name for c in asked] == [
        "clean", *(f"{t}: gaussian, {i}" for i in (1, 2) for t in ("visual", "audio", "all")), "visual: blur, 1"]
    memo = EncoderMemo(model.backbone.encoders)
    outcomes = evaluate_conditions(model, loader, evaluator, asked, memo=memo)
    assert memo.passes == dict(visual=3 * 4, audio=3 * 3), "clean, and once for each noise"
    noise = model.data_preprocessor.noise
    for condition in asked:
        noise.set_test_noise(condition.noise)
        counts = Counts(5)
        for batch in in_order(loader, loader["dataset"]):
            with torch.no_grad():
                for sample in model.eval().test_step(copy.deepcopy(batch)):
                    counts.update(*labels_and_probabilities(sample))
        assert outcomes[condition.name]["calibration_error"] == counts.calibration_error, condition.name
    both = described["all: gaussian, 2"]
    assert both["strengths"] == dict(visual=80.0, audio=2.0) and both["units"]["visual"] == (
        "standard deviation, grey levels")
    weights = outcomes["visual: gaussian, 2"]["weights"]
    assert sum(weights.values()) == pytest.approx(2, abs=1e-4) and weights != outcomes["clean"]["weights"]


def test_a_type_that_training_scales_is_told_at_its_level():
    model = noisy_model()[0]
    scale = model.data_preprocessor.noise.train_noise.noise["visual"].scale["gaussian"]
    sweep = dict(visual=dict(gaussian=(3 * scale,), blur=(2,)))
    _, described = noise_conditions(model.data_preprocessor, SENSORS, sweep)
    assert described["visual: gaussian, 1"]["levels"] == dict(visual=pytest.approx(3))
    assert described["visual: blur, 1"]["levels"] == dict(visual=1.0)


def test_a_type_with_an_offset_is_told_at_the_level_of_its_strength_where_there_is_one():
    from mmfusion_plugin.models.injection import BatchNoise

    class Preprocessor:
        modalities = ("a", "b")
        noise = BatchNoise(modalities, dict(noise=dict(a=dict(
            kind="vector", levels=(1, 3), scale=dict(gaussian=0.5), offset=dict(gaussian=1.0)))), None)

    sensors = dict.fromkeys(Preprocessor.modalities, Sensor("vector"))
    asked, described = noise_conditions(Preprocessor(), sensors, dict(a=dict(gaussian=(0.5, 2.0))), together=False)
    assert [described[f"a: gaussian, {i}"]["levels"]["a"] for i in (1, 2)] == [1, 2]  # no level has 0.5
    for condition in asked[1:]:
        Preprocessor.noise.set_test_noise(condition.noise)
        [fixed] = Preprocessor.noise.test_noise
        assert fixed.noise["a"].strength(fixed.type, fixed.level) == described[condition.name]["strengths"]["a"]


def test_strengths_arrive_as_stated_also_where_less_is_worse():
    from mmfusion_plugin.models.injection import BatchNoise

    class Preprocessor:
        modalities = ("sound", "other")
        noise = BatchNoise(modalities, None, None)

    sensors = dict(sound=Sensor("waveform"), other=Sensor("vector"))
    sweep = dict(sound=dict(sound_snr=(20, 0, -5)), other=dict(gaussian=(0.5, 1, 4)))
    asked, described = noise_conditions(Preprocessor(), sensors, sweep)
    for condition in asked[1:]:
        Preprocessor.noise.set_test_noise(condition.noise)
        for fixed in Preprocessor.noise.test_noise:
            m = fixed.modality
            assert fixed.noise[m].strength(fixed.type, fixed.level) == described[condition.name]["strengths"][m]
    assert [c.name for c in asked if c.name.startswith("all")] == [
        f"all: sound=sound_snr, other=gaussian, {i}" for i in (1, 2, 3)], "no type in common: the first of each"
    with pytest.raises(ValueError, match="changes nothing"):
        noise_conditions(Preprocessor(), sensors, dict(sound=dict(sound_snr=(math.inf,))))
    with pytest.raises(ValueError, match="does not fit"):
        noise_conditions(Preprocessor(), sensors, dict(sound=dict(blur=(1,))))
    for mixed in (dict(sound=dict(sound_snr=(0, 20))), dict(other=dict(gaussian=(1, 4, 4)))):
        with pytest.raises(ValueError, match="from mild to severe"):
            noise_conditions(Preprocessor(), sensors, mixed)
    with pytest.raises(ValueError, match="--sensor sound.kind"):
        sensors_of(Preprocessor())
    assert sensors_of(Preprocessor(), {m: dict(kind=s.kind) for m, s in sensors.items()}) == sensors


def test_numbers_of_a_curve():
    found = robustness([0.9, 0.7, 0.4])
    assert found["relative"] == pytest.approx((0.8 + 0.55) / 2) and found["error"] == pytest.approx(0.45)
    assert found["effective"] is None and found["relative_error"] is None
    against = robustness([0.9, 0.7, 0.4], [0.8, 0.5, 0.3])
    # the reference, lifted to the same clean value, falls to 0.6 and 0.4
    assert against["effective"] == pytest.approx((0.1 + 0.0) / 2)
    assert against["relative_error"] == pytest.approx(0.9 / 1.2)
    with pytest.raises(ValueError, match="3 values and a reference of 2"):
        robustness([1, 1, 1], [1, 1])


def test_the_summary_against_a_reference(tmp_path):
    model, loader, evaluator = noisy_model()
    asked, described = noise_conditions(model.data_preprocessor, SENSORS, SWEEP)
    outcomes = evaluate_conditions(model, loader, evaluator, asked)
    record = dict(command="c", noise_seed=0, **summarise_noise(outcomes, described))
    against = summarise_noise(outcomes, described, reference=dict(record, checkpoint="x.pth"))
    for row in against["summary"]:
        assert row["effective"] == pytest.approx(0) and row["relative_error"] == pytest.approx(1)
    by_name = {(r["target"], r["type"]): r for r in record["summary"]}
    assert by_name["visual", "mean"]["error"] == pytest.approx(
        (by_name["visual", "gaussian"]["error"] + by_name["visual", "blur"]["error"]) / 2)
    with pytest.raises(ValueError, match="same --sweep"):
        summarise_noise(outcomes, described, reference=dict(rows=record["rows"][:2]))
    with pytest.raises(ValueError, match="no noise.json"):
        check_reference({}, described)
    louder = [dict(row, strengths=dict(row["strengths"], visual=21.0)) for row in record["rows"]]
    with pytest.raises(ValueError, match="other strengths.*clean.*same --sweep"):
        check_reference(dict(rows=louder), described)
    assert "| visual | gaussian | 80 standard deviation, grey levels |" in noise_markdown(record)
    assert plot_noise_curves(record, tmp_path / "x.png").stat().st_size > 1000


def test_both_tools_on_a_checkpoint_of_the_runner(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mmaction")
    config, checkpoint = tiny.trained_features(tmp_path, monkeypatch)
    folder = tmp_path / "run" / "evidence"

    def said(*words: object) -> str:
        capsys.readouterr()
        run_tool(monkeypatch, *words)
        return capsys.readouterr().out

    def refused(*words: object) -> str:
        with pytest.raises(SystemExit) as stop:
            said(*words)
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "--metric 'nothing': test_evaluator reports" in refused(
        "evaluate_missing", config, checkpoint, "--metric", "nothing")
    assert (folder / "missing.partial").is_file()
    assert "12/12" not in said("evaluate_missing", config, checkpoint), "what was evaluated is summed up"
    record = json.loads((folder / "missing.json").read_text())
    assert len(record["rows"]) == 7 and record["command"].startswith("python ") and record["seed"] == 7
    assert (folder / "missing.png").is_file() and not (folder / "missing.partial").exists()
    assert "12/12" not in said("evaluate_missing", config, checkpoint), "what is complete is not computed again"
    sweep = ["--sweep", *(f"{m}:gaussian=1,2" for m in "abc"), "--sensor", *(f"{m}.kind=vector" for m in "abc")]
    text = said("evaluate_noise", config, checkpoint, *sweep)
    assert "12/12" in text and "| a | gaussian | 2 standard deviation, the features' own unit |" in text
    text = said("evaluate_noise", config, checkpoint, *sweep, "--reference", folder / "noise.json")
    assert "12/12" not in text and "Reference: " in text
    path = tmp_path / "other.json"
    for content in ("{", "[]", "[" * 100_000, b"\xff"):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        assert "other.json" in refused("evaluate_noise", config, checkpoint, *sweep, "--reference", path)
    path.write_text("{}")
    elsewhere = ("--out", tmp_path / "elsewhere")
    assert "no noise.json" in refused("evaluate_noise", config, checkpoint, *sweep, "--reference", path, *elsewhere)
    assert not (tmp_path / "elsewhere" / "noise.partial").exists(), "known before anything is evaluated"
    assert "--sensor a.kind=image" in refused("evaluate_noise", config, checkpoint, *elsewhere)
    assert "what a level means is not stated" in refused(
        "plot_noise", "response", config, checkpoint, "--modality", "a", *elsewhere, "--work-dir", tmp_path / "logs")


@pytest.mark.parametrize("pair", ["0.1,10", "(0.1, 10.0)"])
def test_a_pair_of_numbers_may_be_written_as_the_messages_write_it(pair, repository, monkeypatch):
    monkeypatch.syspath_prepend(repository / "tools")
    tool = importlib.import_module("evaluate_noise")
    words = ["depth.kind=depth", f"depth.valid_range={pair}"]
    assert tool.sensors_from(words) == dict(depth=dict(kind="depth", valid_range=(0.1, 10.0)))
    with pytest.raises(tool.launch.UsageError, match="such as 0.1,10.0"):
        tool.sensors_from(["depth.valid_range=near"])
    with pytest.raises(tool.launch.UsageError, match="a:blur is there before"):
        tool.sweep_from(["a:blur=1", "a:blur=2"])
