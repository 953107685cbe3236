"""From a command line to a Runner: what ``tools/train.py`` and ``tools/test.py`` share.

The functions change a config the way the stock tools of mmsegmentation 1.2.2 and mmaction2 1.2.0 do,
for a config of either library.
"""
from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.utils import ProgressBar
from torch.utils.data import Dataset

from .checkpoint_files import CheckpointError
from .memory import ConstantWeightsHook, keep_freed_memory

__all__ = [
    "FittingWeightsHook", "UsageError", "add_channels_last_argument", "add_common_arguments",
    "add_evidence_arguments", "add_launcher_arguments", "build_runner", "check_optimizer", "check_remaining",
    "draw_predictions", "dump_predictions", "existing", "load_checkpoint", "load_config", "load_weights",
    "progress", "run_tool", "save_label_maps", "type_name", "use_amp", "use_channels_last", "use_pinned_memory",
    "use_tta", "withhold",
]


LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
DECAY = ("LearningRateDecayOptimizerConstructor", "LayerDecayOptimizerConstructor")
LABEL_STEPS = ("LoadSegLabel", "LoadAnnotations")


class UsageError(ValueError):
    """The command line cannot be carried out. Tools print the message alone and exit with 2."""


def run_tool(main: Callable[[], None], *errors: type[Exception]) -> None:
    """Run a tool's ``main``. A :class:`UsageError`, a bad checkpoint or one of ``errors``: a line on stderr, exit 2."""
    keep_freed_memory()
    try:
        main()
    except (UsageError, CheckpointError, *errors) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that all tools with a config share, named as in the stock tools."""
    parser.add_argument(
        "--work-dir",
        help="folder for logs, metrics and checkpoints (default: work_dir in the config, or work_dirs/NAME)")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE",
        help="replace settings of the config; lists as key='[a,b]' or key=a,b, without blanks")
    parser.set_defaults(launcher="none", local_rank=0)


def add_launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the tools that run in several processes: training and testing."""
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none",
                        help="job launcher (tools/dist_train.sh sets it)")
    # torch.distributed.launch passes it with a hyphen since torch 2.0.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def add_channels_last_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--channels-last", action="store_true",
                        help="lay convolutions out channels-last: on a processor about 0.9 of the time a step")


def add_evidence_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the tools that ask a checkpoint something and write the answer beside it."""
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--out", metavar="DIR",
                        help="folder for json, markdown and picture (default: evidence/ beside the checkpoint, where "
                             "tools/report.py looks)")
    add_common_arguments(parser)


def load_checkpoint(args: argparse.Namespace) -> tuple[Config, torch.nn.Module, Path]:
    """(config, model with the checkpoint's weights, folder for results) of :func:`add_evidence_arguments`.

    Logs go below that folder, so that the training's own stay apart.

    Raises: UsageError if a file is missing, or the weights are another model's.
    """
    existing(args.checkpoint, "checkpoint")
    out = Path(args.out) if args.out else Path(args.checkpoint).parent / "evidence"
    args.work_dir = args.work_dir or str(out / "logs")
    cfg = load_config(args)
    runner = build_runner(cfg)
    load_weights(runner.model, args.checkpoint)
    return cfg, runner.model, out


def load_weights(model: torch.nn.Module, path: str) -> None:
    """Load a checkpoint for an evaluation; what it holds beside the model's state is a warning.

    Raises: UsageError if the weights are another model's.
    """
    unexpected = _fit(model, CheckpointLoader.load_checkpoint(path, map_location="cpu"), path)
    if unexpected:
        print_log(f"{path} holds {len(unexpected)} entries that the model has not: {', '.join(unexpected[:3])}",
                  logger="current", level=logging.WARNING)


class FittingWeightsHook(Hook):
    """What mmengine's Runner loads for a test has to be this model's: it would warn, and test random weights.

    Raises: UsageError if the weights are another model's.
    """

    priority = "VERY_HIGH"

    def after_load_checkpoint(self, runner: Runner, checkpoint: Mapping) -> None:
        _fit(runner.model, checkpoint, runner._load_from)


def _fit(model: torch.nn.Module, checkpoint: Mapping, path: str) -> list[str]:
    """Load ``checkpoint``. Returns the names of what the model has not."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    state = checkpoint.get("state_dict", checkpoint)
    try:
        found = model.load_state_dict({name.removeprefix("module."): x for name, x in state.items()}, strict=False)
        # training alone reads the preprocessor's state and whole numbers: counters and seeds
        own = {name for name, x in model.state_dict().items()
               if x.is_floating_point() and not name.startswith("data_preprocessor.")}
        wrong = [f"no {name}" for name in found.missing_keys if name in own]
    except RuntimeError as error:  # a line for each weight of another shape
        wrong = [line.strip() for line in str(error).splitlines()[1:]]
    if wrong:
        raise UsageError(f"{path} does not fit the model in {len(wrong)} weights: {'; '.join(wrong[:3])}; give the "
                         "config, and the --cfg-options, of its training")
    return found.unexpected_keys


def progress() -> Callable[[int, int], None]:
    """A bar on the terminal, told (done, all) again and again; the first call may already have something done."""
    bar: list[ProgressBar] = []

    def report(done: int, total: int) -> None:
        if not bar:
            bar.append(ProgressBar(total, file=sys.stdout))
            bar[0].completed = done
        elif done > bar[0].completed:
            bar[0].update(done - bar[0].completed)
        if done >= total:
            print()

    return report


def existing(path: str, what: str) -> str:
    """``path``, checked. Addresses with ``://`` are left to mmengine.

    Raises: UsageError if there is no such file.
    """
    if "://" not in path and not Path(path).is_file():
        raise UsageError(f"{what} not found: {path} (looked from {Path.cwd()})")
    return path


def load_config(args: argparse.Namespace) -> Config:
    """Read ``args.config`` and apply the common arguments.

    Raises: UsageError if the file is missing or no config, and for an option without effect.
    """
    existing(args.config, "config")
    if Path(args.config).suffix not in (".py", ".json", ".yaml", ".yml"):
        raise UsageError(f"config has to end in .py, .json or .yaml: {args.config}")
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        if "data_root" in args.cfg_options and "data_root" in cfg:
            loaders = [f"{name}.dataset.data_root" for name in LOADERS if cfg.get(name)]
            raise UsageError("--cfg-options data_root has no effect: the config's loaders hold a copy of it; give "
                             f"{', '.join(loaders)}")
        cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or str(Path("work_dirs") / Path(args.config).stem)
    return cfg


def type_name(cfg: Mapping, default: str = "") -> str:
    """Class name of what a config's ``type`` says: a class, or its name with or without scope or module."""
    kind = cfg.get("type", default)
    return kind.split(".")[-1] if isinstance(kind, str) else kind.__name__


def use_channels_last(cfg: Config) -> None:
    """Add ChannelsLastHook, once."""
    hooks = cfg.get("custom_hooks") or []
    if not any(type_name(hook) == "ChannelsLastHook" for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type="ChannelsLastHook")]


def check_optimizer(cfg: Config) -> None:
    """Before a training.

    Raises: UsageError for mmsegmentation's decay by layers, which knows the layers of one encoder.
    """
    constructor = type_name(dict(type=cfg.optim_wrapper.get("constructor") or ""))
    if constructor in DECAY and type_name(cfg.model.get("backbone") or {}) == "MultimodalBackbone":
        raise UsageError(
            f"optim_wrapper.constructor={constructor!r} knows the layers of one ConvNeXt, BEiT or MAE, not those of "
            "MultimodalBackbone; take it away and set optim_wrapper.paramwise_cfg=dict(custom_keys={"
            "'backbone.encoders.<modality>': dict(lr_mult=0.1)})")


def use_amp(cfg: Config) -> None:
    """Train with automatic mixed precision: float16 on a GPU; with ``GuardedOptimWrapper`` bfloat16 on a CPU too.

    Raises: UsageError for another optimiser wrapper, or for mmengine's own without an accelerator.
    """
    wrapper = type_name(cfg.optim_wrapper, "OptimWrapper")
    if wrapper in ("GuardedOptimWrapper", "GuardedAmpOptimWrapper"):
        cfg.optim_wrapper.type = "GuardedAmpOptimWrapper"
        cfg.optim_wrapper.setdefault("dtype", "bfloat16" if get_device() == "cpu" else "float16")
        return
    if wrapper not in ("OptimWrapper", "AmpOptimWrapper"):
        raise UsageError(f"--amp works with optim_wrapper.type 'OptimWrapper' or 'GuardedOptimWrapper', the config "
                         f"has {wrapper!r}")
    if get_device() == "cpu":
        raise UsageError("--amp needs a GPU: mmengine's AmpOptimWrapper refuses the CPU; train without it, or set "
                         "optim_wrapper.type='GuardedOptimWrapper' for bfloat16 on the CPU")
    cfg.optim_wrapper.type = "AmpOptimWrapper"
    cfg.optim_wrapper.setdefault("loss_scale", "dynamic")


def use_tta(cfg: Config) -> None:
    """Test with the config's test-time augmentation.

    Raises: UsageError if the config defines none.
    """
    missing = [key for key in ("tta_model", "tta_pipeline") if key not in cfg]
    if missing:
        raise UsageError(f"--tta needs {' and '.join(missing)} in the config")
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    if cfg.model.get("data_preprocessor") and "data_preprocessor" in cfg:
        cfg.data_preprocessor = None  # tta_model, handed it by mmengine's Runner, would put it in place of the model's
    cfg.tta_model.module = cfg.model
    cfg.model = cfg.tta_model


def use_pinned_memory(cfg: Config) -> None:
    """Batches in pinned memory, copied to the GPU while the host goes on; what the config says itself stays.

    Preprocessors of other libraries are left as they are: not all of them copy without waiting.
    """
    for name in LOADERS:
        if cfg.get(name):
            cfg[name].setdefault("pin_memory", True)
    preprocessor = cfg.model.get("data_preprocessor") or {}
    if type_name(preprocessor) in ("MultimodalSegDataPreProcessor", "MultimodalActionDataPreProcessor"):
        preprocessor.setdefault("non_blocking", True)


def withhold(cfg: Config, modalities: Sequence[str]) -> None:
    """Test as if ``modalities`` were absent in every sample. Call it before :func:`use_tta`.

    Raises: UsageError for an unknown modality, if none is left, or if the model has one input only.
    """
    preprocessor = cfg.model.get("data_preprocessor") or {}
    known = preprocessor.get("modalities")
    if known is None:
        raise UsageError("--missing needs model.data_preprocessor.modalities in the config; this model has "
                         f"{preprocessor.get('type', 'no data_preprocessor')}")
    unknown = [modality for modality in modalities if modality not in known]
    if unknown:
        raise UsageError(f"--missing {' '.join(unknown)}: the config knows {', '.join(known)}")
    if set(modalities) == set(known):
        raise UsageError(f"--missing {' '.join(modalities)}: one of {', '.join(known)} has to remain")
    preprocessor.test_missing = list(modalities)


def check_remaining(dataset: Dataset, modalities: Sequence[str]) -> None:
    """Before a test without ``modalities``. What a list or table does not tell shows when a sample is read.

    Raises: UsageError if samples have nothing else.
    """
    bare = []
    for i in range(len(dataset) if hasattr(dataset, "get_data_info") else 0):
        info = dataset.get_data_info(i)
        there = info.get("modality_paths") or info.get("media") or info.get("available") or {}
        if there and not any(value not in (None, False) for m, value in there.items() if m not in modalities):
            bare.append(info.get("frame") or info.get("filename"))
    if bare:
        raise UsageError(f"--missing {' '.join(modalities)}: {len(bare)} of the {len(dataset)} samples have nothing "
                         f"else, first {bare[:3]}; take them out of test_dataloader.dataset.ann_file, or use "
                         "tools/evaluate_missing.py, which leaves them out and says so")


def draw_predictions(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Have mmsegmentation's visualization hook draw every prediction, or those at its own ``interval``.

    Raises: UsageError for a config of mmaction2, whose hook reads one clip where a pipeline packs several,
        and if the config has no such hook.
    """
    if cfg.get("default_scope") == "mmaction":
        raise UsageError("--show and --show-dir draw label maps, which a config of mmaction2 has none of; use --dump "
                         "FILE.pkl for predictions, tools/browse_dataset.py --split test for what the model gets")
    hook = cfg.get("default_hooks", {}).get("visualization")
    if hook is None:
        raise UsageError("--show and --show-dir need default_hooks.visualization in the config")
    hook.draw = True
    if show_dir:
        cfg.visualizer.save_dir = show_dir
    hook.setdefault("interval", 1)  # the library's own is 50 batches
    if show:
        hook.show, hook.wait_time = True, wait_time


def save_label_maps(cfg: Config, folder: str) -> None:
    """Save predicted label maps below ``folder`` (mmsegmentation's ``--out``); without labels to test by, that alone.

    Raises: UsageError for a config of mmaction2.
    """
    if cfg.get("default_scope") == "mmaction":
        raise UsageError("--out saves label maps, which a config of mmaction2 has none of; use --dump FILE.pkl")
    labelled = any(name in LABEL_STEPS for name in _type_names(cfg.test_dataloader.dataset))
    if not labelled:
        print_log(f"--out: no step of the test pipeline is one of {', '.join(LABEL_STEPS)}: maps are saved, nothing is "
                  "scored", logger="current", level=logging.WARNING)
    cfg.test_evaluator = [*(_metrics(cfg) if labelled else ()), dict(type="SavedLabelMaps", folder=folder)]


def _type_names(node: object) -> Iterator[str]:
    """Of everything below ``node``."""
    if isinstance(node, Mapping) and "type" in node:
        yield type_name(node)
    for part in node.values() if isinstance(node, Mapping) else node if isinstance(node, (list, tuple)) else ():
        yield from _type_names(part)


def _metrics(cfg: Config) -> list:
    return list(cfg.test_evaluator) if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]


def dump_predictions(cfg: Config, file: str) -> None:
    """Write all predictions to one pickle file (mmaction2's ``--dump``).

    Raises: UsageError if the name does not end in .pkl or .pickle.
    """
    if Path(file).suffix not in (".pkl", ".pickle"):
        raise UsageError(f"--dump has to end in .pkl or .pickle: {file}")
    cfg.test_evaluator = [*_metrics(cfg), dict(type="DumpResults", out_file_path=file)]


def build_runner(cfg: Config) -> Runner:
    """The runner that ``cfg`` describes, with ConstantWeightsHook; on a GPU with pinned memory, several processes
    without one with gloo. What mmsegmentation's hook would draw of sensors' files, SensorVisualizationHook draws."""
    hook = (cfg.get("default_hooks") or {}).get("visualization") or {}
    if type_name(hook) == "SegVisualizationHook" and hook.get("draw") and "LoadModalities" in _type_names(
            [cfg.get(name) for name in LOADERS]):
        hook.type = "SensorVisualizationHook"
    if torch.cuda.is_available():
        use_pinned_memory(cfg)
    notes = _prepare_cpu_processes(cfg) if cfg.launcher in ("pytorch", "slurm") and get_device() == "cpu" else []
    if "runner_type" in cfg:
        init_default_scope(cfg.get("default_scope", "mmengine"))
        runner = RUNNERS.build(cfg)
    else:
        runner = Runner.from_cfg(cfg)
    if not any(isinstance(hook, ConstantWeightsHook) for hook in runner.hooks):
        runner.register_hook(ConstantWeightsHook())
    for note in notes:
        runner.logger.warning(note)
    return runner


def _prepare_cpu_processes(cfg: Config) -> list[str]:
    """mmengine's own set-up calls ``torch.cuda.set_device`` and gives DDP the id of a GPU."""
    notes = ["no GPU: processes talk through gloo"]
    if cfg.launcher == "slurm":
        _ranks_from_slurm()
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    wrapper = cfg.get("model_wrapper_cfg") or dict(
        type="MMDistributedDataParallel", broadcast_buffers=False,
        find_unused_parameters=cfg.get("find_unused_parameters", False))
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
    if _replace_sync_bn(cfg.model):
        notes.append("no GPU: SyncBN replaced by BN, so each process normalises by its own batch")
    return notes


def _ranks_from_slurm() -> None:
    """Set what torch reads from what srun sets, as mmengine does where there are GPUs.

    Raises: UsageError outside srun.
    """
    env = os.environ
    if missing := [name for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST") if name not in env]:
        raise UsageError(f"--launcher slurm expects {', '.join(missing)}, which srun sets; start it with "
                         "tools/slurm_train.sh, or take --launcher none")
    env.update(RANK=env["SLURM_PROCID"], WORLD_SIZE=env["SLURM_NTASKS"], LOCAL_RANK=env.get("SLURM_LOCALID", "0"))
    env.setdefault("MASTER_PORT", "29500")
    if "MASTER_ADDR" not in env:
        hosts = subprocess.run(["scontrol", "show", "hostnames", env["SLURM_NODELIST"]], check=True, text=True,
                               stdout=subprocess.PIPE).stdout
        env["MASTER_ADDR"] = hosts.split()[0]


def _replace_sync_bn(node: object) -> bool:
    """SyncBN to BN, in place, everywhere below ``node``. Returns whether there was any."""
    if isinstance(node, dict):
        found = node.get("type") == "SyncBN"
        if found:
            node["type"] = "BN"
        return any([found, *map(_replace_sync_bn, node.values())])
    if isinstance(node, (list, tuple)):
        return any([_replace_sync_bn(item) for item in node])
    return False
