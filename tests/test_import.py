"""What ``import mmfusion_plugin`` does with and without the libraries around it."""
from __future__ import annotations

import sys

import pytest
from without import fake_wheel, python

LIBRARIES = ("mmengine", "mmcv", "mmseg", "mmaction")
SHOW = "import mmfusion_plugin, sys; print([m for m in sys.modules if m.startswith('mmfusion_plugin.')])"


def test_version_is_text():
    import mmfusion_plugin

    assert mmfusion_plugin.__version__.count(".") == 2


def test_torch_alone_is_enough_for_fusion(tmp_path):
    run = python(tmp_path, "-W", "ignore", "-c", "import mmfusion_plugin.fusion", without=LIBRARIES)
    assert run.returncode == 0, run.stderr


def test_without_either_task_library_a_warning_says_what_to_install(tmp_path):
    run = python(tmp_path, "-c", SHOW, without=LIBRARIES)
    assert run.returncode == 0, run.stderr
    assert "UserWarning: mmfusion_plugin: neither mmsegmentation nor mmaction2" in run.stderr
    for wish in ("mmfusion_plugin[seg]", "mmfusion_plugin[action]", "mmcv-lite==2.1.0"):
        assert wish in run.stderr
    assert "segmentation" not in run.stdout


def test_works_without_mmaction(tmp_path):
    run = python(tmp_path, "-W", "error::UserWarning:mmfusion_plugin", "-c", SHOW, without=["mmaction"])
    assert run.returncode == 0, run.stderr
    for room in ("models", "engine", "segmentation"):
        assert f"'mmfusion_plugin.{room}'" in run.stdout
    assert "recognition" not in run.stdout


def test_works_without_mmseg(tmp_path):
    run = python(tmp_path, "-W", "error::UserWarning:mmfusion_plugin", "-c", SHOW, without=["mmseg"])
    assert run.returncode == 0, run.stderr
    for room in ("models", "engine", "recognition"):
        assert f"'mmfusion_plugin.{room}'" in run.stdout
    assert "segmentation" not in run.stdout


def test_missing_mmcv_names_the_wheel(tmp_path):
    run = python(tmp_path, "-c", "import mmfusion_plugin", without=["mmcv"])
    assert run.returncode == 1
    assert "ImportError: mmfusion_plugin: mmsegmentation" in run.stderr
    assert "pip install mmcv-lite==2.1.0" in run.stderr


def test_mmcv_2_2_is_refused_with_both_names(tmp_path):
    wheel = fake_wheel(tmp_path / "site", "mmcv", "2.2.0")
    run = python(tmp_path, "-c", "import mmfusion_plugin", path=[wheel])
    assert run.returncode == 1
    assert "mmsegmentation 1.2.2 refuses mmcv 2.2.0: it wants mmcv >=2.0.0rc4,<2.2.0" in run.stderr
    assert "pip uninstall -y mmcv && pip install mmcv-lite==2.1.0" in run.stderr


@pytest.mark.parametrize("module", ["ftfy", "importlib_metadata"])
def test_undeclared_dependency_is_named(tmp_path, module):
    run = python(tmp_path, "-c", "import mmfusion_plugin", without=[module])
    assert run.returncode == 1
    assert f"pip install {module}" in run.stderr


def test_this_process_holds_no_blocked_library():
    assert all(sys.modules.get(name, True) is not None for name in LIBRARIES)
