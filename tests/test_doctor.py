"""The doctor reports what is there, what clashes and the cure, whatever is missing."""
from __future__ import annotations

import py_compile
import sys
from importlib.machinery import PathFinder

import pytest
from without import fake_wheel, python

from mmfusion_plugin import compat, doctor

DOCTOR = ("-m", "mmfusion_plugin.doctor")


def test_complete_environment_is_usable(tmp_path):
    run = python(tmp_path, *DOCTOR)
    assert run.returncode == 0, run.stdout + run.stderr
    for name in ("python", "torch", "numpy", "mmengine", "mmcv", "mmseg", "mmaction", "cv2", "CUDA"):
        assert any(line.startswith(name) for line in run.stdout.splitlines()), name
    assert "[cured] torch-load" in run.stdout
    assert "BLOCKS" not in run.stdout
    assert run.stdout.strip().endswith("usable")


@pytest.mark.parametrize(("missing", "cures"), [
    (["mmcv"], ["pip install mmcv-lite==2.1.0"]),
    (["torch", "numpy", "mmengine", "mmcv", "mmseg", "mmaction", "cv2"],
     ["pip install 'torch>=2.6'", "pip install 'mmfusion_plugin[seg]'"]),
])
def test_missing_library_blocks_and_has_a_cure(tmp_path, missing, cures):
    run = python(tmp_path, *DOCTOR, without=missing)
    assert run.returncode == 1, run.stdout + run.stderr
    for cure in cures:
        assert cure in run.stdout
    assert "BLOCKS" in run.stdout
    assert "NOT usable" in run.stdout
    assert "Traceback" not in run.stderr


def test_clashing_mmcv_is_named(tmp_path):
    run = python(tmp_path, *DOCTOR, path=[fake_wheel(tmp_path / "site", "mmcv", "2.2.0")])
    assert run.returncode == 1
    assert "mmsegmentation 1.2.2 refuses mmcv 2.2.0" in run.stdout


@pytest.mark.parametrize(("module", "symptom", "cure", "blocks"), [
    ("pkg_resources", "mmengine imports pkg_resources", "pip install 'setuptools<81'", False),
    ("ftfy", "mmsegmentation 1.2.2 imports ftfy without declaring it", "pip install ftfy", True),
    ("mmengine", "needs mmengine, which is not installed", "pip install 'mmengine>=0.10.4,<1'", True),
])
def test_each_clash_says_its_cure_and_whether_it_blocks(monkeypatch, module, symptom, cure, blocks):
    there = compat.installed
    monkeypatch.setattr(compat, "installed", lambda name: name != module and there(name))
    clash, = compat.clashes()
    assert symptom in clash.symptom
    assert (clash.cure, clash.blocks) == (cure, blocks)


def test_library_that_cannot_be_imported_is_reported(tmp_path):
    broken = tmp_path / "site"
    broken.mkdir()
    (broken / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')\n")
    run = python(tmp_path, *DOCTOR, path=[broken])
    assert run.returncode == 1
    assert "import cv2 fails: ImportError: libGL.so.1" in run.stdout
    assert "opencv-python-headless" in run.stdout


@pytest.mark.parametrize(("unset", "kept", "noted"), [(False, False, True), (True, False, False), (False, True, False)])
def test_sources_that_are_compiled_at_every_start_are_noted(tmp_path, monkeypatch, unset, kept, noted):
    package = tmp_path / "torch/__init__.py"
    package.parent.mkdir()
    package.touch()
    if kept:
        py_compile.compile(str(package))
    monkeypatch.setattr(sys, "dont_write_bytecode", not unset)
    monkeypatch.setattr(doctor, "find_spec", lambda name: PathFinder.find_spec(name, [str(tmp_path)]))
    monkeypatch.setattr(doctor, "_import_all", lambda names: ("not available", "", ""))
    _, problems = doctor.examine()
    notes = [clash for clash in problems if "PYTHONDONTWRITEBYTECODE is set" in clash.symptom]
    assert len(notes) == noted
    assert all(not note.blocks and note.cure.endswith(f"compileall -q -j 0 {tmp_path}") for note in notes)
