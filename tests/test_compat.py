"""Each cure of a released wheel: the symptom without it, its absence with it."""
from __future__ import annotations

import ast
import io
import pickle
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from without import fake_wheel, python

from mmfusion_plugin import compat

CURES = {cure.name: cure for cure in compat.CURES}


def need(name: str) -> None:
    if not CURES[name].needed():
        pytest.skip(f"this environment has no symptom of {name}")


def test_apply_is_idempotent_and_reports_what_is_needed():
    first = compat.apply()
    modules = {name: sys.modules.get(name) for name in ("mmcv._ext", "mmaction.models.localizers.drn")}
    allowed = set(torch.serialization.get_safe_globals())
    assert compat.apply() == first == [cure for cure in compat.CURES if cure.needed()]
    assert all(sys.modules.get(name) is module for name, module in modules.items())
    assert set(torch.serialization.get_safe_globals()) == allowed


# --- mmcv._ext


def test_mmcv_ops_cannot_be_imported_without_the_cure(tmp_path):
    need("mmcv-ext")
    run = python(tmp_path, "-c", "import mmcv.ops")
    assert "No module named 'mmcv._ext'" in run.stderr


def test_operator_imports_and_says_what_to_install_when_called():
    need("mmcv-ext")
    from mmcv.ops import nms

    with pytest.raises(RuntimeError, match=r"nms.*install full mmcv"):
        nms(torch.rand(3, 4), torch.rand(3), 0.5)


def test_stand_in_does_not_pretend_to_be_full_mmcv():
    need("mmcv-ext")
    from mmengine.utils.dl_utils import mmcv_full_available

    assert not mmcv_full_available()


def test_full_mmcv_is_left_alone(tmp_path):
    (tmp_path / "site/mmcv").mkdir(parents=True)
    (tmp_path / "site/mmcv/__init__.py").touch()
    (tmp_path / "site/mmcv/_ext.py").touch()
    code = ("from mmfusion_plugin import compat; import mmcv._ext; "
            "print(compat.CURES[0].needed(), mmcv._ext.__file__)")
    run = python(tmp_path, "-W", "ignore", "-c", code, without=["mmengine", "mmseg", "mmaction"],
                 path=[tmp_path / "site"])
    assert run.stdout.split() == ["False", str(tmp_path / "site/mmcv/_ext.py")], run.stderr


# --- mmaction.models.localizers.drn


def test_mmaction_models_cannot_be_imported_without_the_cure(tmp_path):
    need("mmaction-drn")
    # the other cures alone: importing the whole plugin would import mmaction.models before it can be spoilt
    cure = (
        "import importlib.util as u, sys; spec = u.spec_from_file_location('cures', sys.argv[1]); "
        "cures = sys.modules['cures'] = u.module_from_spec(spec); spec.loader.exec_module(cures); cures.apply()")
    remove = "[sys.modules.pop(m) for m in list(sys.modules) if '.drn' in m]"
    run = python(tmp_path, "-c", f"{cure}; {remove}; import mmaction.models", compat.__file__)
    assert "No module named 'mmaction.models.localizers.drn'" in run.stderr


def test_mmaction_models_can_be_imported_and_drn_says_what_is_missing():
    need("mmaction-drn")
    from mmaction.models.localizers import DRN

    with pytest.raises(RuntimeError, match="DRN is not part of the installed mmaction2 wheel"):
        DRN()


# --- transformers


def transformers_of(folder, number: str, *words: str):
    """A made-up transformers wheel whose modules hold these words and nothing else."""
    site = fake_wheel(folder / "site", "transformers", number)
    models = site / "transformers/models/beit"
    models.mkdir(parents=True)
    text = f"names = {words!r}\n"
    for name in ("__init__", "activations", "configuration_utils", "file_utils", "modeling_outputs", "modeling_utils",
                 "models/__init__", "models/beit/__init__", "models/beit/modeling_beit"):
        (site / f"transformers/{name}.py").write_text(text)
    return site


def vindlu_imports() -> list[str]:
    source = find_spec("mmaction").submodule_search_locations[0]
    trees = [ast.parse(path.read_bytes()) for path in Path(source, "models/multimodal/vindlu").glob("*.py")]
    return [alias.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith("transformers.") for alias in node.names]


def test_a_transformers_without_what_vindlu_needs_stops_mmaction_without_the_cure(tmp_path):
    site = transformers_of(tmp_path, "5.1.0")
    code = ("from mmfusion_plugin import compat; "
            "from mmaction.utils import dependency; dependency.WITH_MULTIMODAL = True; import mmaction.models")
    # the other cures alone: importing the whole plugin would apply this one
    code = "import sys; sys.orig_argv[:] = ['-m', 'mmfusion_plugin.doctor']; " + code.replace(
        "compat; ", "compat; [c.apply() for c in compat.CURES if c.needed() and c.name != 'mmaction-transformers']; ")
    run = python(tmp_path, "-W", "ignore", "-c", code, path=[site])
    assert "ImportError" in run.stderr and "transformers" in run.stderr, run.stderr[-2000:]


def test_vindlu_is_left_out_and_says_what_it_misses(tmp_path):
    site = transformers_of(tmp_path, "5.1.0", *(set(vindlu_imports()) - {"prune_linear_layer"}))
    code = ("import mmfusion_plugin; from mmaction.registry import MODELS; print(MODELS.get('VindLUVQA') is not None); "
            "MODELS.build(dict(type='VindLUVQA'))")
    run = python(tmp_path, "-W", "ignore", "-c", code, path=[site])
    assert run.stdout.split() == ["True"], run.stderr[-2000:]
    assert ("RuntimeError" in run.stderr and "modeling_utils.prune_linear_layer, which" in run.stderr
            and "transformers 5.1.0 does not have" in run.stderr), run.stderr[-2000:]


def cure_alone(name: str) -> str:
    """``cure``, in a process that imports neither torch nor the rest of the plugin."""
    return ("import sys; sys.orig_argv[:] = ['-m', 'mmfusion_plugin.doctor']; from mmfusion_plugin import compat; "
            f"cure = {{c.name: c for c in compat.CURES}}[{name!r}]; ")


@pytest.mark.parametrize("number, whole", [("4.40.0", True), ("4.27.0", False)])
def test_a_fit_transformers_and_one_too_old_to_be_asked_for_are_left_alone(tmp_path, number, whole):
    site = transformers_of(tmp_path, number, *(vindlu_imports() if whole else ()))
    code = f"{cure_alone('mmaction-transformers')}print(cure.needed())"
    run = python(tmp_path, "-W", "ignore", "-c", code, path=[site])
    assert run.stdout.split() == ["False"], run.stderr


def mmpretrain_of(site) -> None:
    """A made-up mmpretrain that imports, where its own switch says so, what transformers has dropped."""
    fake_wheel(site, "mmpretrain", "1.2.0")
    models = site / "mmpretrain/models/multimodal"
    for folder in (models, site / "mmpretrain/utils", site / "pycocotools"):
        folder.mkdir(parents=True)
    for folder in (site / "mmpretrain", site / "mmpretrain/utils", site / "pycocotools", models.parent):
        (folder / "__init__.py").touch()
    (site / "mmpretrain/utils/dependency.py").write_text("WITH_MULTIMODAL = True\n")
    (models / "__init__.py").write_text(
        "from mmpretrain.utils.dependency import WITH_MULTIMODAL\nif WITH_MULTIMODAL:\n    from . import blip\n")
    (models / "blip.py").write_text(
        "try:\n    from transformers.modeling_utils import PreTrainedModel, prune_linear_layer\nexcept ImportError:\n"
        "    PreTrainedModel = None\n\n\nclass Blip(PreTrainedModel):\n    pass\n")


@pytest.mark.parametrize("without, needed", [([], True), (["pycocotools"], False)])
def test_mmpretrain_does_without_its_multimodal_models(tmp_path, without, needed):
    site = transformers_of(tmp_path, "5.1.0", "PreTrainedModel")
    mmpretrain_of(site)
    code = (f"{cure_alone('mmpretrain-transformers')}print(cure.needed()); cure.needed() and cure.apply(); "
            "import mmpretrain.models.multimodal")
    run = python(tmp_path, "-W", "ignore", "-c", code, path=[site], without=without)
    assert run.stdout.split() == [str(needed)], run.stderr[-2000:]
    if needed:
        assert run.returncode == 0, run.stderr[-2000:]
    else:  # this made-up one does not ask for pycocotools, as the real one does: left alone, it fails
        assert "NoneType takes no arguments" in run.stderr, run.stderr[-2000:]


# --- torch.load

TRAIN = """
import sys
if 'cured' in sys.argv:
    import mmfusion_plugin
import numpy as np, torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner

class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(2, 1)
    def forward(self, x, mode='tensor'):
        y = self.line(torch.stack(x))
        return dict(loss=y.square().mean()) if mode == 'loss' else [y]

class Score(BaseMetric):
    def process(self, batch, outputs):
        self.results.append(1)
    def compute_metrics(self, results):
        return dict(score=np.float64(0.5), count=np.int64(3))

data = [dict(x=torch.ones(2)) for _ in range(4)]
loader = dict(dataset=data, batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False))
runner = Runner(
    model=Model(), work_dir='work', resume='resume' in sys.argv,
    train_dataloader=loader, train_cfg=dict(by_epoch=True, max_epochs=3 if 'resume' in sys.argv else 2),
    val_dataloader=loader, val_cfg=dict(), val_evaluator=[Score()],
    optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01)),
    param_scheduler=[dict(type='OneCycleLR', eta_max=0.1, total_steps=10), dict(type='PolyLR', end=9)],
    default_hooks=dict(logger=dict(type='LoggerHook', interval=1),
                       checkpoint=dict(type='CheckpointHook', interval=1, save_best='score', rule='greater')),
    custom_hooks=[dict(type='EMAHook')])
runner.train()
print('HISTORY', len(runner.message_hub.get_scalar('train/loss').data[0]))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A work folder after two epochs of two iterations: EMA, two schedules, a best score from numpy."""
    folder = tmp_path_factory.mktemp("trained")
    run = python(folder, "-c", TRAIN)
    assert run.returncode == 0, run.stderr
    return folder


def test_checkpoint_is_refused_without_the_cure(trained):
    need("torch-load")
    run = python(trained, "-c", "import torch; torch.load('work/epoch_2.pth', weights_only=True)")
    assert run.returncode == 1
    assert "UnpicklingError: Weights only load failed" in run.stderr


def test_resume_goes_on_with_the_history(trained):
    run = python(trained, "-c", TRAIN, "resume", "cured")
    assert run.returncode == 0, run.stderr
    assert "resumed epoch: 2, iter: 4" in run.stdout + run.stderr
    assert "HISTORY 6" in run.stdout


def test_every_checkpoint_of_the_runner_loads_with_weights_only(trained):
    files = sorted((trained / "work").glob("*.pth"))
    assert any(file.name.startswith("best_score") for file in files)
    for file in files:
        stored = torch.load(file, map_location="cpu", weights_only=True)
        loss = stored["message_hub"]["log_scalars"]["train/loss"]
        assert isinstance(loss, HistoryBuffer)
        assert loss.mean() == loss.data[0].mean()


def test_a_file_of_the_other_numpy_loads(tmp_path):
    """numpy 1 writes its own module as numpy.core, numpy 2 as numpy._core."""
    need("torch-load")
    torch.save({"best": np.float64(0.25), "history": np.arange(3.0)}, tmp_path / "own.pth")
    names = {"1": b"numpy.core.", "2": b"numpy._core."}
    own = names.pop(np.__version__[0])
    (others, ) = names.values()
    assert own + b"multiarray" in (tmp_path / "own.pth").read_bytes()
    other = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "own.pth") as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(own, others))
    other.seek(0)
    stored = torch.load(other, weights_only=True)
    assert stored["best"] == 0.25
    assert stored["history"].tolist() == [0.0, 1.0, 2.0]


class Reach:
    """Pickles as getattr(owner, name)."""

    def __init__(self, owner, name):
        self.what = (owner, name)

    def __reduce__(self):
        return getattr, self.what


@pytest.mark.parametrize("name", ["__init__", "register_statistics", "__class__"])
def test_stored_getattr_reaches_no_other_attribute(tmp_path, name):
    torch.save({"x": Reach(HistoryBuffer, name)}, tmp_path / "bad.pth")
    with pytest.raises(pickle.UnpicklingError, match="never stores"):
        torch.load(tmp_path / "bad.pth", weights_only=True)


def test_other_types_stay_refused(tmp_path):
    torch.save({"x": compat.Clash("a", "b")}, tmp_path / "bad.pth")
    with pytest.raises(pickle.UnpicklingError, match="Unsupported global"):
        torch.load(tmp_path / "bad.pth", weights_only=True)
