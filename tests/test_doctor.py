"""The doctor reports what is there, what clashes and the cure, whatever is missing."""
from __future__ import annotations

import pytest
from without import fake_wheel, python

from mmfusion_plugin import compat

DOCTOR = ("-m", "mmfusion_plugin.doctor")


def test_complete_environment_is_usable(tmp_path):
    run = python(tmp_path, *DOCTOR)
    assert run.returncode == 0, run.stdout + run.stderr
    for name in ("python", "torch", "numpy", "mmengine", "mmcv", "mmseg", "mmaction", "cv2", "CUDA"):
        assert any(line.startswith(name) for line in run.stdout.splitlines()), name
    assert "[cured] torch-load" in run.stdout
    assert "BLOCKS" not in run.stdout
    assert run.stdout.strip().endswith("usable")


@pytest.mark.parametrize(("missing", "cure"), [
    (["mmcv"], "pip install mmcv-lite==2.1.0"),
    (["mmengine"], "pip install 'mmengine>=0.10.4,<1'"),
    (["regex"], "pip install regex"),
    (["mmseg", "mmaction"], "pip install 'mmfusion_plugin[seg]'"),
    (["torch", "numpy", "mmengine", "mmcv", "mmseg", "mmaction", "cv2"], "pip install 'torch>=2.6'"),
])
def test_missing_library_blocks_and_has_a_cure(tmp_path, missing, cure):
    run = python(tmp_path, *DOCTOR, without=missing)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "BLOCKS" in run.stdout
    assert cure in run.stdout
    assert "NOT usable" in run.stdout
    assert "Traceback" not in run.stderr


def test_clashing_mmcv_is_named(tmp_path):
    run = python(tmp_path, *DOCTOR, path=[fake_wheel(tmp_path / "site", "mmcv", "2.2.0")])
    assert run.returncode == 1
    assert "mmsegmentation 1.2.2 refuses mmcv 2.2.0" in run.stdout


@pytest.mark.parametrize(("module", "note"), [
    ("pkg_resources", "mmengine imports pkg_resources"),
    ("ftfy", "mmsegmentation 1.2.2 imports ftfy without declaring it"),
])
def test_clash_says_whether_it_blocks(monkeypatch, module, note):
    there = compat.installed
    monkeypatch.setattr(compat, "installed", lambda name: name != module and there(name))
    clash, = compat.clashes()
    assert note in clash.symptom
    assert clash.blocks == (module == "ftfy")


def test_library_that_cannot_be_imported_is_reported(tmp_path):
    broken = tmp_path / "site"
    broken.mkdir()
    (broken / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')\n")
    run = python(tmp_path, *DOCTOR, path=[broken])
    assert run.returncode == 1
    assert "import cv2 fails: ImportError: libGL.so.1" in run.stdout
    assert "opencv-python-headless" in run.stdout
