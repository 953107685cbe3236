"""No file that a stranger wrote may run code: what the source calls, and what hostile files do."""
from __future__ import annotations

import ast
import io
import os
import pickle
import re
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import checkpoint
from test_tools import refused, toy  # noqa: F401  a fixture
from without import ROOT

SOURCES = sorted(path for folder in ("mmfusion_plugin", "tools", "configs") for path in (ROOT / folder).rglob("*.py"))
# call, by the name that it has where it is defined -> keyword that has to be there with this value; None: not to be
# called at all
RULES = {
    "torch.load": ("weights_only", True), "torch.serialization.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False), "numpy.lib.format.read_array": ("allow_pickle", False),
    "torch.hub.load_state_dict_from_url": ("weights_only", True),
    "torch.utils.model_zoo.load_url": ("weights_only", True),
    **dict.fromkeys([
        "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "joblib.load", "dill.load",
        "eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "torch.hub.load", "torch.jit.load",
        "mmengine.load", "mmengine.fileio.load", "pandas.read_pickle", "shutil.unpack_archive"]),
}
FORBIDDEN_METHODS = ("extractall", "extract")  # of archives: they may lead out of the target


def name_of(node: ast.expr) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id if isinstance(node, ast.Name) else "?", *reversed(parts)])


def imported(tree: ast.AST) -> dict[str, str]:
    """{name in the file: what it stands for}"""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def faults(text: str) -> list[str]:
    found, tree = [], ast.parse(text)
    names = imported(tree)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        first, dot, rest = name_of(call.func).partition(".")
        name = names.get(first, first) + dot + rest
        given = {keyword.arg: getattr(keyword.value, "value", "?") for keyword in call.keywords}
        if name in RULES and RULES[name] is None:
            found.append(f"line {call.lineno}: {name}")
        elif name in RULES and given.get(RULES[name][0], "absent") is not RULES[name][1]:
            found.append(f"line {call.lineno}: {name} without {RULES[name][0]}={RULES[name][1]}")
        elif isinstance(call.func, ast.Attribute) and call.func.attr in FORBIDDEN_METHODS:
            found.append(f"line {call.lineno}: {name}")
        elif given.get("shell") is True:
            found.append(f"line {call.lineno}: {name} with shell=True")
    return found


def test_nothing_in_the_source_loads_without_protection():
    assert len(SOURCES) > 100
    found = {str(path.relative_to(ROOT)): faults(path.read_text()) for path in SOURCES}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize("line", [
    "torch.load(p)", "torch.load(p, weights_only=False)", "torch.load(p, weights_only=flag)", "torch.load(p, **kwargs)",
    "import numpy as np; np.load(p)", "import numpy as np; np.load(p, allow_pickle=True)", "numpy.load(p)",
    "from torch import load; load(p)", "from torch import load as read; read(p)", "import pickle as p; p.load(f)",
    "from numpy.lib import format; format.read_array(f)", "from mmengine import fileio; fileio.load(p)",
    "pickle.loads(b)", "eval(x)", "archive.extractall(d)", "run(c, shell=True)"])
def test_the_scan_sees(line):
    assert faults(line)


def test_downloads_are_loaded_as_weights(tmp_path, monkeypatch):
    """torch.hub's own default runs pickles; file:// stands for an address."""
    class Touch:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    torch.save(dict(state_dict=Touch()), tmp_path / "bad.pth")
    torch.save(dict(state_dict={}, meta=dict(config="1")), tmp_path / "good.pth")
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load_url(f"file://{tmp_path}/bad.pth", progress=False)
    assert not (tmp_path / "ran").exists()

    monkeypatch.setattr(checkpoint, "load_from_http", lambda address, **_: checkpoint.load_url(
        address.replace("https://", "file://"), progress=False))
    load = checkpoint.CheckpointLoader.load_checkpoint
    with pytest.raises(ValueError, match=r"https://.*bad\.pth is refused"):
        load(f"https://{tmp_path}/bad.pth")
    assert load(f"https://{tmp_path}/good.pth") == dict(state_dict={}, meta={})


@pytest.mark.parametrize("ending", [".npz", ".mat"])
def test_features_that_would_not_fit_the_memory_are_refused(tmp_path, ending):
    pytest.importorskip("mmaction")
    from mmaction.registry import DATASETS
    from mmengine.registry import init_default_scope

    init_default_scope("mmaction")
    path, arrays = tmp_path / f"a{ending}", dict(x=np.zeros((100, 2000)), label=np.zeros(100))
    if ending == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        from scipy.io import savemat

        savemat(path, arrays, do_compression=True)
    assert path.stat().st_size < 20_000
    cfg = dict(type="FeatureDataset", ann_file=str(path), arrays=dict(x="x"), num_classes=1, pipeline=[])
    assert len(DATASETS.build(cfg)) == 100
    with pytest.raises(ValueError, match=r"unpack to 0\.00149 GiB, dataset\.max_gib allows 0\.001"):
        DATASETS.build(dict(cfg, max_gib=0.001))


def test_a_header_that_claims_any_size_is_refused(tmp_path):
    pytest.importorskip("mmaction")
    from mmfusion_plugin.recognition.datasets import _read_arrays

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, dict(descr="<f8", fortran_order=False, shape=(2**50,)))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    with pytest.raises(ValueError, match=r"a\.npz: its arrays ask for more memory than there is"):
        _read_arrays(tmp_path / "a.npz", ["x"], 1.0)


def test_an_archive_with_paths_that_lead_out_writes_nothing(tmp_path):
    pytest.importorskip("mmaction")
    from mmfusion_plugin.recognition.datasets import _read_arrays

    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../escaped.npy", b"x")
        link = zipfile.ZipInfo("x.npy")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match=r"a\.npz: 'x' is bytes .*expected an array of real numbers"):
        _read_arrays(path, ["x"], 1.0)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["in", "in/a.npz"]


@pytest.mark.parametrize(("tool", "arguments"), [
    ("test", ["config.py", "bad.pth"]), ("train", ["config.py", "--resume", "bad.pth"])])
@pytest.mark.usefixtures("toy")
def test_a_hostile_checkpoint_given_to_a_tool_is_one_line_and_exit_2(monkeypatch, capsys, tool, arguments):
    mark = Path("ran").absolute()

    class Touch:
        def __reduce__(self):
            return os.mkdir, (str(mark),)

    torch.save(dict(state_dict={}, meta=Touch()), "bad.pth")
    # the switch with which torch.load's own default is to run pickles
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    # mmengine names its logger by the second: two runs of one process within it would share a closed stream
    arguments = [*arguments, "--cfg-options", f"experiment_name=hostile_{tool}"]
    assert re.search(r"error: bad\.pth cannot be loaded as weights .*mkdir", refused(
        monkeypatch, capsys, tool, *arguments).splitlines()[-1])
    assert not mark.exists()
