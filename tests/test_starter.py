"""Configs that the starter writes train as they are, on data in the layout that they describe."""
from __future__ import annotations

import re

import pytest
from running import run_tool
from without import python

from mmfusion_plugin.starter import NECKS, main, starter

SENSORS = dict(rgb="color", depth="depth", thermal="gray")


def small(text: str) -> str:
    """What a user changes: the sizes, and how long it trains."""
    for old, new in (("crop_size = (480, 640)", "crop_size = (64, 64)"), ("iterations = 20000", "iterations = 20"),
                     ("max_iters=iterations", "max_iters=2"), ("epochs = 40", "epochs = 2"),
                     ("clip_seconds=5.0", "clip_seconds=1.0"), ("rate=16000, seconds=5.0", "rate=8000, seconds=1.0"),
                     (r"interval=iterations // 10", "interval=2"), ("batch_size=4", "batch_size=2"),
                     ("batch_size=32", "batch_size=2"), (r"num_workers=[24]", "num_workers=0"),
                     ("persistent_workers=True", "persistent_workers=False"), (r"scale=\(224, 224\)", "scale=(64, 64)"),
                     (r"scale=\(-1, 256\)", "scale=(-1, 64)"), ("crop_size=224", "crop_size=64")):
        text = re.sub(old if "\\" in old or "[" in old else re.escape(old), new, text)
    return text


def frames(folder):
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    for name in (*SENSORS, "label"):
        (folder / name).mkdir(parents=True)
    for stem in "abcd":
        for name, shape, largest, kind in (("rgb", (70, 90, 3), 255, "uint8"), ("thermal", (70, 90), 255, "uint8"),
                                           ("depth", (70, 90), 5000, "uint16"), ("label", (70, 90), 2, "uint8")):
            reading = rng.integers(largest // 10, largest, shape).astype(kind)
            assert cv2.imwrite(str(folder / name / f"{stem}.png"), reading)
    (folder / "train.txt").write_text("a\nb\nc\n")
    (folder / "val.txt").write_text("d\n")


def vectors(folder):
    import numpy as np

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part in ("train", "val"):
        np.savez(folder / f"{part}.npz", imu=rng.normal(size=(6, 24)).astype("float32"),
                 gps=rng.normal(size=(6, 5)).astype("float32"), label=np.arange(6) % 2)


def clips(folder):
    from mmfusion_plugin.recognition.demo_shapes import generate

    generate(folder, 4, 2)
    for part in ("train", "val"):  # two classes of the six
        lines = (folder / f"{part}.txt").read_text().splitlines()
        (folder / f"{part}.txt").write_text("".join(f"{line.split()[0]} {i % 2}\n" for i, line in enumerate(lines)))


@pytest.mark.parametrize(("task", "given", "data", "neck"), [
    ("segmentation", [f"{m}={kind}" for m, kind in SENSORS.items()], frames, "UDML"),
    ("recognition", [], clips, "SCFAE"), ("features", ["imu=24", "gps=5"], vectors, "UDML")])
def test_what_is_written_trains(task, given, data, neck, tmp_path, monkeypatch, capsys):
    pytest.importorskip("mmseg" if task == "segmentation" else "mmaction")
    if data is clips:
        pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    data(tmp_path / "data" / "mine")
    assert main([task, "my.py", *given, "--neck", neck]) == 0
    written = (tmp_path / "my.py").read_text()
    assert f"{written.count('CHANGE') - 1} places" in capsys.readouterr().out
    (tmp_path / "my.py").write_text(small(written))
    run_tool(monkeypatch, "train", "my.py", "--work-dir", "work")
    assert list((tmp_path / "work").glob("*_2.pth"))


@pytest.mark.parametrize("neck", NECKS)
def test_every_neck_makes_a_config_that_builds(neck, tmp_path):
    pytest.importorskip("mmseg")
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    tasks = dict(segmentation=dict(SENSORS, hha="image"), features=dict(a="3", b="4", c="5"), recognition={})
    for task, given in tasks.items():
        path = tmp_path / f"{task}.py"
        path.write_text(starter(task, given, neck))
        cfg = Config.fromfile(path)
        init_default_scope(cfg.default_scope)
        model = MODELS.build(cfg.model)
        assert model.neck.__class__.__name__.startswith(neck.removesuffix("Fusion"))
        assert max(len(line) for line in path.read_text().splitlines()) <= 120


def test_weights_and_ranges_that_it_names_fit():
    text = starter("segmentation", SENSORS, "UDML")
    assert "init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet18_v1c')" in text
    assert "type='ResNetV1c'" in text
    assert "thermal=dict(kind='image', valid_range=(0, 255)" in text and "rgb=dict(kind='image', levels" in text


@pytest.mark.parametrize(("arguments", "words"), [
    (["segmentation", "x.py", "rgb=color"], "two or more modalities"),
    (["segmentation", "x.py", "rgb=color", "depth=metres"], "one of .*'image'\\], got {'depth': 'metres'}"),
    (["segmentation", "x.py", "rgb=color", "rgb=depth"], "named twice"),
    (["segmentation", "x.py", "rgb=color", "near-infrared=gray"], "Python names"),
    (["features", "x.py", "class=3", "b=4"], "Python names"), (["features", "x.py", "a=3", "label=4"], "not 'label'"),
    (["features", "x.py", "a=3", "b"], "number of channels"),
    (["features", "x.py", "a=3", "b=0"], "number of channels"),
    (["recognition", "x.py", "a=3", "b=4"], "takes no modalities"),
    (["recognition", "nowhere/x.py"], "cannot write nowhere/x.py"), (["recognition", "there.py"], "is there already")])
def test_wrong_arguments_write_nothing(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.py").write_text("mine")
    assert main(arguments) == 2
    assert re.search(words, capsys.readouterr().err)
    assert [p.name for p in tmp_path.iterdir()] == ["there.py"] and (tmp_path / "there.py").read_text() == "mine"


def test_it_needs_nothing_but_python(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    done = python(tmp_path, "-m", "mmfusion_plugin.starter", "recognition", str(work / "my.py"),
                  without=["torch", "numpy", "mmengine", "mmcv", "mmseg", "mmaction"])
    assert done.returncode == 0, done.stderr
    assert (work / "my.py").is_file()
