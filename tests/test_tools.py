"""Arguments and errors of tools/train.py and tools/test.py, and one run through both on a toy model."""
from __future__ import annotations

import ast
import copy
import importlib.util
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from without import ROOT, python

from mmfusion_plugin.engine import GuardedOptimWrapper, launch

TOY = '''
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseDataPreprocessor, BaseModel, BaseTTAModel
from mmengine.registry import DATASETS, METRICS, MODELS

@DATASETS.register_module(force=True)
class ToySet(BaseDataset):
    def load_data_list(self):
        return [dict(x=torch.full((2,), float(i))) for i in range(4)]

@MODELS.register_module(force=True)
class ToyPreprocessor(BaseDataPreprocessor):
    def __init__(self, modalities, test_missing=()):
        super().__init__()
        self.modalities, self.test_missing = modalities, test_missing

@MODELS.register_module(force=True)
class ToyModel(BaseModel):
    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.line = torch.nn.Linear(2, 1)
    def forward(self, x, mode='tensor', **meta):
        y = self.line(torch.stack(x))
        withheld = len(self.data_preprocessor.test_missing)
        return dict(loss=y.square().mean()) if mode == 'loss' else [withheld] * len(x)

@METRICS.register_module(force=True)
class Withheld(BaseMetric):
    def process(self, batch, outputs):
        self.results += outputs
    def compute_metrics(self, results):
        return dict(samples=len(results), withheld=max(results))
'''
CONFIG = '''
custom_imports = dict(imports=['mmfusion_plugin', 'toy'], allow_failed_imports=False)
model = dict(type='ToyModel', data_preprocessor=dict(
    type='ToyPreprocessor', modalities=['rgb', 'depth', 'nir']))
train_dataloader = dict(
    batch_size=2, dataset=dict(type='ToySet'), sampler=dict(type='DefaultSampler', shuffle=True))
test_dataloader = dict(
    batch_size=2, dataset=dict(type='ToySet'), sampler=dict(type='DefaultSampler', shuffle=False))
val_dataloader = test_dataloader
val_evaluator = dict(type='Withheld')
test_evaluator = dict(type='Withheld')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False))
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An empty folder to stand in, with toy.py and config.py."""
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "config.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def tool(monkeypatch, name: str, *arguments: str) -> None:
    """Run tools/NAME.py in this process."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", *arguments])
    launch.run_tool(module.main)


def shell(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a shell tool, wait for it."""
    return subprocess.run(["bash", str(ROOT / "tools" / script), *arguments], capture_output=True, text=True)


def refused(monkeypatch, capsys, name: str, *arguments: str) -> str:
    """The one line with which the tool refuses these arguments."""
    with pytest.raises(SystemExit) as stop:
        tool(monkeypatch, name, *arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0
    return said


# --- bad input: one line, exit code 2


@pytest.mark.parametrize("name", ["train", "test"])
def test_missing_config_is_named(toy, monkeypatch, capsys, name):
    (toy / "c.pth").touch()
    said = refused(monkeypatch, capsys, name, "nowhere.py", *(["c.pth"] if name == "test" else []))
    assert f"{name}.py: error: config not found: nowhere.py" in said


def test_config_of_another_kind_is_refused(toy, monkeypatch, capsys):
    (toy / "weights.pth").touch()
    assert "config has to end in .py" in refused(monkeypatch, capsys, "train", "weights.pth")


def test_missing_checkpoint_is_named(toy, monkeypatch, capsys):
    said = refused(monkeypatch, capsys, "test", "config.py", "nowhere.pth")
    assert "checkpoint not found: nowhere.pth" in said
    said = refused(monkeypatch, capsys, "train", "config.py", "--resume", "nowhere.pth")
    assert "checkpoint not found: nowhere.pth" in said
    assert not (toy / "work_dirs").exists()


def test_addresses_are_left_to_mmengine():
    assert launch.existing("https://example.org/a.pth", "checkpoint") == "https://example.org/a.pth"


@pytest.mark.parametrize(("missing", "complaint"), [
    (["sonar"], "--missing sonar: the config knows rgb, depth, nir"),
    (["rgb", "nir", "depth"], "one of rgb, depth, nir has to remain"),
])
def test_impossible_missing_is_refused(toy, monkeypatch, capsys, missing, complaint):
    (toy / "c.pth").touch()
    assert complaint in refused(monkeypatch, capsys, "test", "config.py", "c.pth", "--missing", *missing)


def test_missing_needs_a_multimodal_model():
    cfg = Config(dict(model=dict(data_preprocessor=dict(type="SegDataPreProcessor"))))
    with pytest.raises(launch.UsageError, match=r"data_preprocessor\.modalities.*SegDataPreProcessor"):
        launch.withhold(cfg, ["depth"])


@pytest.mark.parametrize("config, kind", [
    ("segmentation/scfae_r18-segformer_nyuv2-480x640.py", "MultimodalSegDataPreProcessor"),
    ("recognition/scfae_r18_kinetics-sound.py", "MultimodalActionDataPreProcessor")])
def test_a_gpu_gets_its_batches_from_pinned_memory(config, kind, repository, monkeypatch):
    cfg = Config.fromfile(str(repository / "configs" / config))
    cfg.launcher, cfg.val_dataloader.pin_memory = "none", False
    monkeypatch.setattr(launch.Runner, "from_cfg", lambda cfg: mock.Mock(cfg=cfg, hooks=[]))
    monkeypatch.setattr(launch.torch.cuda, "is_available", lambda: False)
    assert "pin_memory" not in launch.build_runner(copy.deepcopy(cfg)).cfg.train_dataloader
    monkeypatch.setattr(launch.torch.cuda, "is_available", lambda: True)
    found = launch.build_runner(cfg).cfg
    assert found.train_dataloader.pin_memory is found.test_dataloader.pin_memory is True
    assert found.val_dataloader.pin_memory is False, "what the config says stays"
    assert found.model.data_preprocessor.type == kind and found.model.data_preprocessor.non_blocking is True
    init_default_scope(cfg.default_scope)
    assert MODELS.build(found.model.data_preprocessor)._non_blocking is True


@pytest.mark.parametrize(("option", "wrong", "right"), [
    ("--sensor", "nonsense", "audio.kind=spectrogram"), ("--sweep", "nonsense", "audio:gaussian=1,2")])
def test_an_option_given_twice_adds_to_the_first(monkeypatch, capsys, option, wrong, right):
    said = refused(monkeypatch, capsys, "evaluate_noise", "config.py", "c.pth", option, wrong, option, right)
    assert f"{option} nonsense: expected" in said


def test_no_list_without_a_default_is_replaced_by_a_second_one():
    for script in ROOT.glob("tools/*.py"):
        for call in ast.walk(ast.parse(script.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument":
                given = {key.arg: ast.unparse(key.value) for key in call.keywords}
                option = ast.unparse(call.args[0]).startswith("'--")
                if option and given.get("nargs") == "'+'" and given.get("default", "[]") == "[]":
                    assert given.get("action") == "'extend'", (script, call.lineno)


def test_tta_needs_its_keys(toy, monkeypatch, capsys):
    (toy / "c.pth").touch()
    said = refused(monkeypatch, capsys, "test", "config.py", "c.pth", "--tta")
    assert "--tta needs tta_model and tta_pipeline in the config" in said


def test_show_needs_its_hook(toy, monkeypatch, capsys):
    (toy / "c.pth").touch()
    said = refused(monkeypatch, capsys, "test", "config.py", "c.pth", "--show-dir", "drawn")
    assert "default_hooks.visualization" in said


def test_dump_needs_a_pickle_name(toy, monkeypatch, capsys):
    (toy / "c.pth").touch()
    said = refused(monkeypatch, capsys, "test", "config.py", "c.pth", "--dump", "a.txt")
    assert "--dump has to end in .pkl" in said


def test_amp_without_gpu_is_refused(toy, monkeypatch, capsys):
    monkeypatch.setattr(launch, "get_device", lambda: "cpu")
    assert "--amp needs a GPU" in refused(monkeypatch, capsys, "train", "config.py", "--amp")


def test_amp_refuses_other_wrappers(monkeypatch):
    monkeypatch.setattr(launch, "get_device", lambda: "cuda")
    with pytest.raises(launch.UsageError, match="'MyWrapper'"):
        launch.use_amp(Config(dict(optim_wrapper=dict(type="MyWrapper"))))


# --- what the arguments do to the config


def arguments(**given) -> Namespace:
    usual = dict(config="config.py", work_dir=None, cfg_options=None, launcher="none", local_rank=0)
    return Namespace(**{**usual, **given})


def test_work_dir_comes_from_argument_then_config_then_name(toy):
    assert launch.load_config(arguments()).work_dir == str(Path("work_dirs/config"))
    options = dict(work_dir="from_config")
    assert launch.load_config(arguments(cfg_options=options)).work_dir == "from_config"
    assert launch.load_config(arguments(cfg_options=options, work_dir="mine")).work_dir == "mine"


def test_cfg_options_are_merged(toy):
    cfg = launch.load_config(arguments(cfg_options={"optim_wrapper.optimizer.lr": 0.5}))
    assert cfg.optim_wrapper.optimizer == dict(type="SGD", lr=0.5)


def test_amp_switches_the_wrapper(monkeypatch):
    monkeypatch.setattr(launch, "get_device", lambda: "cuda")
    cfg = Config(dict(optim_wrapper=dict(type="OptimWrapper")))
    launch.use_amp(cfg)
    assert cfg.optim_wrapper == dict(type="AmpOptimWrapper", loss_scale="dynamic")
    for kind in (GuardedOptimWrapper, "mmengine.GuardedOptimWrapper"):
        cfg = Config(dict(optim_wrapper=dict(type=kind)))
        launch.use_amp(cfg)
        assert cfg.optim_wrapper == dict(type="GuardedAmpOptimWrapper", dtype="float16")


def test_a_data_root_that_nothing_reads_is_refused(toy):
    with (toy / "config.py").open("a") as file:
        file.write("data_root = 'data'\n")
    with pytest.raises(launch.UsageError, match="no effect.*train_dataloader.dataset.data_root"):
        launch.load_config(arguments(cfg_options=dict(data_root="elsewhere")))


def test_missing_reaches_the_model_inside_tta():
    preprocessor = dict(modalities=["rgb", "depth"])
    cfg = Config(dict(model=dict(type="M", data_preprocessor=preprocessor), tta_model=dict(type="T"),
                      tta_pipeline=[dict(type="P")], test_dataloader=dict(dataset=dict(pipeline=[]))))
    launch.withhold(cfg, ["depth"])
    launch.use_tta(cfg)
    assert cfg.model.type == "T"
    assert cfg.model.module.data_preprocessor.test_missing == ["depth"]
    assert cfg.test_dataloader.dataset.pipeline == [dict(type="P")]


@pytest.mark.parametrize(("own", "left"), [(dict(type="Multimodal"), None), (None, dict(type="OfTheBase"))])
def test_tta_takes_no_preprocessor_of_a_stock_base_for_the_models(own, left):
    cfg = Config(dict(model=dict(type="M", data_preprocessor=own), data_preprocessor=dict(type="OfTheBase"),
                      tta_model=dict(type="T"), tta_pipeline=[], test_dataloader=dict(dataset=dict(pipeline=[]))))
    launch.use_tta(cfg)
    assert cfg.data_preprocessor == left and cfg.model.module.data_preprocessor == own


@pytest.mark.parametrize(("hook", "expected"), [
    (dict(type="SegVisualizationHook"), dict(draw=True, interval=1)),
    (dict(type="SegVisualizationHook", interval=7), dict(draw=True)),
])
def test_show_dir_draws_at_the_hooks_own_interval_or_all(hook, expected):
    cfg = Config(dict(default_hooks=dict(visualization=hook), visualizer=dict()))
    launch.draw_predictions(cfg, show=False, show_dir="drawn", wait_time=2)
    assert cfg.default_hooks.visualization == {**hook, **expected}
    assert cfg.visualizer.save_dir == "drawn"


@pytest.mark.parametrize(("tool", "options"), [("test", ["--show-dir", "drawn"]),
                                               ("show_predictions", ["--out", "drawn"])])
def test_label_maps_of_a_recognition_config_are_refused(toy, monkeypatch, capsys, tool, options):
    (toy / "c.pth").touch()
    (toy / "recognition.py").write_text("default_scope = 'mmaction'\nmodel = dict()\n")
    said = refused(monkeypatch, capsys, tool, "recognition.py", "c.pth", *options)
    assert "label maps, which a config of mmaction2 has none of; use" in said and "--dump FILE.pkl" in said


@pytest.mark.parametrize(("step", "hook"), [("LoadModalities", "SensorVisualizationHook"),
                                            ("LoadImageFromFile", "SegVisualizationHook")])
def test_sensors_are_drawn_by_a_hook_that_reads_them(monkeypatch, step, hook):
    monkeypatch.setattr(launch.Runner, "from_cfg", lambda cfg: mock.Mock(cfg=cfg, hooks=[]))
    for draw, expected in ((True, hook), (False, "SegVisualizationHook")):
        cfg = Config(dict(launcher="none", test_dataloader=dict(dataset=dict(pipeline=[dict(type=step)])), model=dict(),
                          default_hooks=dict(visualization=dict(type="SegVisualizationHook", draw=draw))))
        assert launch.build_runner(cfg).cfg.default_hooks.visualization.type == expected


def test_out_and_dump_change_the_metric():
    for steps, metric in ((["LoadModalities", "LoadSegLabel"], dict(type="IoUMetric")), (["LoadAnnotations"], [
            dict(type="IoUMetric")])):
        data = dict(dataset=dict(type="ConcatDataset", datasets=[dict(pipeline=[dict(type=step) for step in steps])]))
        cfg = Config(dict(test_evaluator=metric, test_dataloader=data))
        launch.save_label_maps(cfg, "maps")
        assert cfg.test_evaluator == [dict(type="IoUMetric"), dict(type="SavedLabelMaps", folder="maps")]
    launch.dump_predictions(cfg, "all.pkl")
    assert [metric["type"] for metric in cfg.test_evaluator] == ["IoUMetric", "SavedLabelMaps", "DumpResults"]
    cfg.test_dataloader.dataset.datasets[0].pipeline.pop()
    launch.save_label_maps(cfg, "maps")
    assert [metric["type"] for metric in cfg.test_evaluator] == ["SavedLabelMaps"], "nothing to score by"
    with pytest.raises(launch.UsageError, match="mmaction2 has none of; use --dump"):
        launch.save_label_maps(Config(dict(default_scope="mmaction", test_evaluator=dict(type="AccMetric"))), "maps")


def test_missing_names_the_samples_that_would_have_nothing_left():
    infos = [dict(modality_paths=dict(rgb="a", depth="b"), frame="1"),
             dict(modality_paths=dict(rgb=None, depth="b"), frame="2"),
             dict(media=dict(rgb="a", depth=None), filename="3"),
             dict(available=dict(rgb=False, depth=True), filename="4")]
    dataset = mock.MagicMock(__len__=lambda self: 4, get_data_info=infos.__getitem__)
    launch.check_remaining(dataset, ["sound"])
    with pytest.raises(launch.UsageError, match=r"--missing depth: 2 of the 4 samples.*\['2', '4'\].*evaluate_missing"):
        launch.check_remaining(dataset, ["depth"])


@pytest.mark.parametrize("name", ["evaluate_missing", "evaluate_noise", "evaluate_branches", "plot_embeddings",
                                  "encoder_damage", "browse_dataset", "show_predictions"])
def test_tools_of_one_process_take_no_launcher(toy, monkeypatch, capsys, name):
    with pytest.raises(SystemExit):
        tool(monkeypatch, name, "config.py", "c.pth", "--out", "x", "--launcher", "pytorch")
    assert "--launcher" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", launch.DECAY)
def test_decay_by_layers_of_one_encoder_is_answered_with_what_to_set(toy, monkeypatch, capsys, name):
    options = (f"optim_wrapper.constructor=mmseg.{name}", "model.backbone.type=MultimodalBackbone")
    said = refused(monkeypatch, capsys, "train", "config.py", "--cfg-options", *options)
    assert f"optim_wrapper.constructor='{name}'" in said and "'backbone.encoders.<modality>': dict(lr_mult=0.1)" in said


def test_browse_dataset_names_a_split_that_the_config_leaves_out(toy, monkeypatch, capsys):
    said = refused(monkeypatch, capsys, "browse_dataset", "config.py", "--out", "x", "--split", "test", "--cfg-options",
                   "test_dataloader=None")
    assert "--split test: the config has no test_dataloader" in said


def test_sync_bn_is_replaced_everywhere():
    cfg = Config(dict(model=dict(norm_cfg=dict(type="SyncBN"), heads=[dict(norm_cfg=dict(type="SyncBN"))])))
    assert launch._replace_sync_bn(cfg.model)
    assert "SyncBN" not in cfg.pretty_text
    assert not launch._replace_sync_bn(cfg.model)


# --- the tools themselves


def test_train_resume_and_test(toy, monkeypatch):
    run = python(toy, str(ROOT / "tools/train.py"), "config.py")
    assert run.returncode == 0, run.stderr
    last, log = run.stdout.splitlines()[-2:]
    checkpoint = toy / "work_dirs/config/iter_4.pth"
    assert last.endswith(f"checkpoint: {checkpoint}")
    assert Path(log.split("log: ")[1]).is_file()

    tool(monkeypatch, "train", "config.py", "--resume", "--cfg-options", "train_cfg.max_iters=6")
    logs = sorted((toy / "work_dirs/config").rglob("*.log"))
    assert "resumed epoch: 0, iter: 4" in logs[-1].read_text()
    assert torch.load(toy / "work_dirs/config/iter_6.pth", weights_only=True)["meta"]["iter"] == 6

    tool(monkeypatch, "test", "config.py", str(checkpoint), "--work-dir=tested", "--missing", "depth", "nir")
    said = next((toy / "tested").rglob("*.log")).read_text()
    assert "tested without: depth, nir" in said
    assert "withheld: 2" in said


@pytest.mark.parametrize(("state", "said"), [
    ({"line.weight": torch.ones(1, 2)}, "in 1 weights: no line.bias"),
    ({"line.weight": torch.ones(1, 3), "line.bias": torch.ones(1)}, "in 1 weights: size mismatch for line.weight"),
    ({"another.weight": torch.ones(1)}, "in 2 weights: no line.weight; no line.bias")])
def test_weights_of_another_model_are_refused(toy, monkeypatch, capsys, state, said):
    torch.save(dict(state_dict=state), "c.pth")
    # mmengine keeps loggers by name, and names runs by the second
    found = refused(monkeypatch, capsys, "test", "config.py", "c.pth", "--cfg-options", f"experiment_name={toy.name}")
    assert f"c.pth does not fit the model {said}" in found
    with pytest.raises(launch.UsageError, match=said):
        launch.load_checkpoint(arguments(checkpoint="c.pth", out="x", cfg_options=dict(experiment_name=toy.name)))


def test_what_a_checkpoint_holds_beside_the_models_weights_is_told(toy, capsys):
    torch.save(dict(state_dict={"line.weight": torch.ones(1, 2), "module.line.bias": torch.ones(1),
                                "head.bias": torch.ones(1)}), "c.pth")
    # EMAHook knows no model before a run
    options = dict(experiment_name=toy.name, custom_hooks=[dict(type="EMAHook")])
    _, model, _ = launch.load_checkpoint(arguments(checkpoint="c.pth", out="evidence", cfg_options=options))
    assert model.line.bias.item() == 1 and "1 entries that the model has not: head.bias" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_without_gpu(toy, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(toy))
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("PORT", "29611")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    run = shell("dist_train.sh", "config.py", "2")
    assert run.returncode == 0, run.stderr
    assert "Distributed training: True" in run.stdout
    checkpoint = toy / "work_dirs/config/iter_4.pth"
    run = shell("dist_test.sh", "config.py", str(checkpoint), "2", "--missing", "rgb")
    assert run.returncode == 0, run.stderr
    assert "samples: 4" in run.stdout


@pytest.mark.parametrize(("script", "usage"), [
    ("dist_train.sh", "CONFIG GPUS"), ("dist_test.sh", "CONFIG CHECKPOINT GPUS"),
    ("slurm_train.sh", "PARTITION JOB_NAME CONFIG"),
])
def test_shell_tools_say_how_to_use_them(script, usage):
    for words in ((), ("config.py", "--amp", "--resume", "x")):
        run = shell(script, *words[:0 if script.startswith("slurm") else 4])
        assert run.returncode == 2 and usage in run.stderr


def test_slurm_train_asks_for_what_it_was_given(tmp_path, monkeypatch):
    fake = tmp_path / "srun"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("GPUS", "2")
    run = shell("slurm_train.sh", "part", "job", "a b.py", "--amp")
    asked = run.stdout.splitlines()
    assert asked[:6] == ["-p", "part", "--job-name=job", "--gres=gpu:2", "--ntasks=2", "--ntasks-per-node=2"]
    assert asked[-4:] == ["a b.py", "--launcher", "slurm", "--amp"]


def test_slurm_train_hands_environment_and_port_to_each_task(tmp_path, monkeypatch):
    srun, interpreter = tmp_path / "srun", tmp_path / "interpreter"
    srun.write_text('#!/bin/sh\nwhile [ "$1" != "$PYTHON" ]; do shift; done\n'
                    'for i in 0 1; do SLURM_PROCID=$i SLURM_NTASKS=2 "$@"; done\n')
    interpreter.write_text('#!/bin/sh\necho "$SLURM_PROCID of $SLURM_NTASKS|$MASTER_PORT|$PYTHONPATH|$*"\n')
    srun.chmod(0o755), interpreter.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name, value in dict(PYTHON=str(interpreter), PYTHONPATH="mine", PORT="29712", GPUS="2").items():
        monkeypatch.setenv(name, value)
    run = shell("slurm_train.sh", "part", "job", "config.py")
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        f"{i} of 2|29712|{ROOT}:mine|-u {ROOT}/tools/train.py config.py --launcher slurm" for i in range(2)]


def test_dist_train_names_this_machine_and_the_first(tmp_path, monkeypatch):
    interpreter = tmp_path / "interpreter"
    interpreter.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    interpreter.chmod(0o755)
    for name, value in dict(PYTHON=str(interpreter), NNODES="2", NODE_RANK="1", MASTER_ADDR="first",
                            PORT="29712").items():
        monkeypatch.setenv(name, value)
    assert shell("dist_train.sh", "a b.py", "3", "--amp").stdout.splitlines() == [
        "-m", "torch.distributed.run", "--nnodes=2", "--node_rank=1", "--master_addr=first", "--master_port=29712",
        "--nproc_per_node=3", f"{ROOT}/tools/train.py", "a b.py", "--launcher", "pytorch", "--amp"]


@pytest.mark.slow
def test_two_machines_of_one_process(toy, monkeypatch):
    """Two shells as on two machines, here both on this one."""
    for name, value in dict(PYTHONPATH=str(toy), PYTHON=sys.executable, PORT="29612", NNODES="2",
                            CUDA_VISIBLE_DEVICES="-1").items():
        monkeypatch.setenv(name, value)
    command = ["bash", str(ROOT / "tools/dist_train.sh"), "config.py", "1"]
    nodes = [subprocess.Popen(command, env={**os.environ, "NODE_RANK": str(rank)}, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) for rank in range(2)]
    said = [node.communicate(timeout=600)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "GPU number: 2" in said[0]
    assert (toy / "work_dirs/config/iter_4.pth").is_file()


def test_slurm_without_gpu_takes_ranks_from_srun(tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    with pytest.raises(launch.UsageError, match="SLURM_PROCID.*slurm_train.sh"):
        launch._ranks_from_slurm()
    os.environ.update(SLURM_PROCID="3", SLURM_NTASKS="4", SLURM_LOCALID="1", SLURM_NODELIST="n[1-2]")
    launch._ranks_from_slurm()
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")] == [
        "3", "4", "1", "n1", "29500"]
