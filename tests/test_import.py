"""What ``import mmfusion_plugin`` does with and without the libraries around it."""
from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from without import fake_wheel, python

LIBRARIES = ("mmengine", "mmcv", "mmseg", "mmaction")
ROOT = Path(__file__).resolve().parents[1]
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


# torch's own names that may change without a word; each is there from torch 2.6, the oldest supported, to 2.13 at least
TORCH_2_6 = {
    "torch._C._are_functorch_transforms_active", "torch._C._autograd", "torch._C._current_graph_task_id",
    "torch._foreach_copy_", "torch._foreach_mul", "torch._foreach_norm", "torch.autograd.forward_ad._current_level",
    "torch.nn.modules.batchnorm._BatchNorm", "torch.nn.modules.batchnorm._NormBase", "torch.nn.modules.conv._ConvNd",
    "torch.nn.utils.parametrize._cache_enabled", "torch.optim.optimizer._global_optimizer_post_hooks",
    "torch.optim.optimizer._global_optimizer_pre_hooks", "torch.utils._python_dispatch.TorchDispatchMode",
    "torch.utils._python_dispatch._get_current_dispatch_mode", "torch.utils._pytree.tree_leaves",
}


def private_names_of_torch(source: str) -> set[str]:
    """What a module takes from torch by a name with an underscore in front, as a dotted path."""
    nodes, names = list(ast.walk(ast.parse(source))), {}
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {a.asname or "torch": a.name if a.asname else "torch" for a in node.names if a.name[:5] == "torch"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    found = set(names.values())
    for node in nodes:
        path = []
        while isinstance(node, ast.Attribute):
            path.insert(0, node.attr)
            node = node.value
        if path and isinstance(node, ast.Name) and node.id in names:
            found.add(".".join([names[node.id], *path]))
    return {name for name in found if "._" in name and name not in ("torch.__version__", "torch._C")}


def test_private_names_of_torch_are_as_old_as_the_oldest_torch():
    used = set().union(*(
        private_names_of_torch(path.read_text(encoding="utf-8")) for path in (ROOT / "mmfusion_plugin").rglob("*.py")))
    assert used == TORCH_2_6
