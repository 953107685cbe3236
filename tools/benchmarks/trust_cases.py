"""Small trainings of both tasks, run in processes of their own that may be killed, and compared bit by bit."""
from __future__ import annotations

import faulthandler
import gc
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib.pyplot as plt  # noqa: F401  mmengine imports it with the first runner: once, before forks
import numpy as np
import torch
import torch._dynamo  # likewise, with the first optimiser
from mmaction.registry import DATASETS as ACTION_DATASETS
from mmaction.structures import ActionDataSample
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from mmengine.runner import Runner

import mmfusion_plugin  # noqa: F401

NECKS = ("SCFAE", "SumFusion", "ConcatFusion", "MLPFusion", "GatedFusion", "FiLMFusion", "CrossAttentionFusion", "UDML")
TASKS = ("recognition", "segmentation")
CLASSES, WIDTH, NUMBER, BATCH = 3, 8, 14, 4
NAMES = {"recognition": ["visual", "audio"], "segmentation": ["rgb", "depth"]}
SIZE = (32, 48)
HOOK = dict(type="SafeCheckpointHook", max_keep_ckpts=2)
STEPS = 12  # of a training
STAGES = dict(noise=0.3, weights=0.6)  # shares of training at which noise and UDML's weights begin


@ACTION_DATASETS.register_module(force=True)
class DrawnVectors(BaseDataset):
    """Vectors of a class, with noise from all three generators: what augmentation would draw."""

    def __init__(self, names: list[str], number: int = NUMBER, width: int = WIDTH, **kwargs) -> None:
        self.names, self.number, self.width = list(names), number, width
        super().__init__(metainfo=dict(classes=[str(k) for k in range(CLASSES)]), pipeline=[], serialize_data=False,
                         **kwargs)

    def load_data_list(self) -> list[dict]:
        return [dict(row=row, label=row % CLASSES) for row in range(self.number)]

    def prepare_data(self, idx: int) -> dict:
        info = self.get_data_info(idx)
        generator = torch.Generator().manual_seed(info["row"])
        inputs = {}
        for m in self.names:
            x = torch.randn(self.width, generator=generator) + info["label"]
            noise = torch.randn(self.width) + float(np.random.standard_normal()) + random.gauss(0, 1)
            inputs[m] = x + 0.1 * noise
        sample = ActionDataSample().set_gt_label(info["label"])
        sample.set_metainfo(dict(filename=f"{idx}.npy", available=dict.fromkeys(self.names, True)))
        return dict(inputs=inputs, data_samples=sample)


@METRICS.register_module(force=True)
class CountSamples(BaseMetric):
    """Draws numbers, as a validation with chance in it would, and rates each validation better than the last."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        torch.rand(3), np.random.rand(2), random.random()
        self.results += [1] * len(data_samples)

    def compute_metrics(self, results: list) -> dict:
        self.calls = getattr(self, "calls", 0) + 1
        return dict(samples=len(results))


def write_frames(root: Path, number: int = NUMBER) -> Path:
    """RGB, Depth in millimetres and Label of small scenes, in the layout of NYU Depth v2."""
    rng = np.random.default_rng(0)
    for folder in ("RGB", "Depth", "Label"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = [f"{i:02d}" for i in range(number)]
    for name in names:
        label = rng.integers(1, CLASSES + 1, (SIZE[0] // 8, SIZE[1] // 8)).repeat(8, 0).repeat(8, 1)
        pictures = {
            "RGB": rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8),
            "Depth": (1000 + 500 * label + rng.integers(0, 50, SIZE)).astype(np.uint16),
            "Label": label.astype(np.uint8)}
        for folder, picture in pictures.items():
            cv2.imwrite(str(root / folder / f"{name}.png"), picture)
    (root / "train.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def drawn_frames(number: int) -> list[dict]:
    """What the pipeline gives for scenes as :func:`write_frames` writes them."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    generator, found = torch.Generator().manual_seed(0), []
    for i in range(number):
        label = torch.randint(CLASSES, (1, *SIZE), generator=generator)
        inputs = dict(rgb=torch.randint(256, (3, *SIZE), generator=generator).float(),
                      depth=1.0 + 0.5 * label + 0.05 * torch.rand(1, *SIZE, generator=generator))
        sample = SegDataSample(gt_sem_seg=PixelData(data=label), metainfo=dict(
            img_path=f"{i}.png", ori_shape=SIZE, img_shape=SIZE, available=dict(rgb=True, depth=True)))
        found.append(dict(inputs=inputs, data_samples=sample))
    return found


def neck_cfg(kind: str, names: list[str], widths: Any) -> dict:
    """A neck with modality dropout; UDML around ConcatFusion, its weights from a share of training on."""
    cfg: dict[str, Any] = dict(type=kind, modalities=names, in_channels={m: widths for m in names})
    if kind == "UDML":
        return cfg | dict(weights_from=STAGES["weights"], preset="released", dependency_every=2, inner=dict(
            type="ConcatFusion", out_channels=widths, modality_dropout=0.3))
    return cfg | dict(out_channels=widths, modality_dropout=0.3)


def recognition_model(neck: str) -> dict:
    names = NAMES["recognition"]
    noise = {m: dict(kind="vector", levels=(1, 3), scale=dict(gaussian=0.1)) for m in names}
    return dict(
        type="FusionRecognizer",
        data_preprocessor=dict(type="MultimodalActionDataPreProcessor", modalities=names,
                               train_noise=dict(noise=noise, start=STAGES["noise"])),
        backbone=dict(type="MultimodalBackbone", modalities=names, in_channels=dict.fromkeys(names, WIDTH),
                      backbones={m: dict(type="FeatureEncoder") for m in names}),
        neck=neck_cfg(neck, names, WIDTH),
        cls_head=dict(type="FusionHead", num_classes=CLASSES, in_channels=WIDTH, dropout=0.3, aux_weight=0.5,
                      modality_in_channels=dict.fromkeys(names, WIDTH)))


def segmentation_model(neck: str) -> dict:
    names, widths = NAMES["segmentation"], [4, 8]
    encoder = dict(type="ResNet", depth=18, base_channels=4, num_stages=2, strides=(1, 2), dilations=(1, 1),
                   out_indices=(0, 1))
    noise = dict(rgb=dict(kind="image", levels=(1, 11), scale=dict(gaussian=10.0)),
                 depth=dict(kind="depth", valid_range=(0.1, 10.0), levels=(1, 11), scale=dict(gaussian=0.1)))
    aux = dict(type="FCNHead", in_channels=8, in_index=1, channels=4, num_convs=1, num_classes=CLASSES,
               concat_input=False, norm_cfg=dict(type="BN"), align_corners=False)
    return dict(
        type="FusionEncoderDecoder",
        data_preprocessor=dict(
            type="MultimodalSegDataPreProcessor", modalities=names, mean=dict(rgb=[120.0] * 3, depth=[2.0]),
            std=dict(rgb=[60.0] * 3, depth=[1.0]), bgr_to_rgb=["rgb"], invalid=dict(depth=0), size=SIZE,
            train_noise=dict(noise=noise, start=STAGES["noise"])),
        backbone=dict(type="MultimodalBackbone", modalities=names, in_channels=dict(rgb=3, depth=1),
                      backbones={m: dict(encoder) for m in names}),
        neck=neck_cfg(neck, names, widths), modality_heads={m: dict(aux) for m in names},
        decode_head=dict(type="SegformerHead", in_channels=widths, in_index=[0, 1], channels=8, num_classes=CLASSES,
                         norm_cfg=dict(type="BN"), align_corners=False, dropout_ratio=0.1),
        train_cfg=dict(), test_cfg=dict(mode="whole"))


def dataset_cfg(task: str, data: Path) -> dict:
    if task == "recognition":
        return dict(type="DrawnVectors", names=NAMES[task])
    sensors = dict(rgb=dict(kind="color"), depth=dict(kind="depth", dtype="uint16", scale=0.001))
    return dict(
        type="NYUDepthV2Dataset", data_root=str(data), metainfo=dict(classes=("wall", "floor", "cabinet")),
        pipeline=[
            dict(type="LoadModalities", modalities=NAMES[task], sensors=sensors), dict(type="LoadSegLabel"),
            dict(type="RandomFlip", prob=0.5), dict(type="RandomCrop", crop_size=(24, 32)),
            dict(type="PackModalities", modalities=NAMES[task])])


def training(task: str, work_dir: str | Path, data: str | Path, neck: str = "UDML", by_epoch: bool = True,
             workers: int = 0, steps: int = STEPS, hook: Mapping | None = None, **options: Any) -> Config:
    """Config of ``steps`` optimiser steps, checkpoints after every third, four to an epoch, with EMA and momentum.

    Epoch-based runs save within epochs too. Validation after every fourth step.
    """
    data = Path(data)
    loader = dict(
        batch_size=BATCH, num_workers=workers, persistent_workers=bool(workers), dataset=dataset_cfg(task, data),
        sampler=dict(type="DefaultSampler" if by_epoch else "InfiniteSampler", shuffle=True))
    quiet = dict(loader, num_workers=0, persistent_workers=False, sampler=dict(type="DefaultSampler", shuffle=False))
    loop = dict(type="EpochBasedTrainLoop", max_epochs=steps // 4) if by_epoch else dict(
        type="IterBasedTrainLoop", max_iters=steps, val_interval=4)
    cfg = dict(
        default_scope=dict(recognition="mmaction", segmentation="mmseg")[task], work_dir=str(work_dir),
        model=(recognition_model if task == "recognition" else segmentation_model)(neck),
        train_dataloader=loader, val_dataloader=quiet, val_evaluator=dict(type="CountSamples"), val_cfg=dict(),
        train_cfg=loop, randomness=dict(seed=7), log_level="ERROR",
        optim_wrapper=dict(type="GuardedOptimWrapper", optimizer=dict(type="SGD", lr=0.05, momentum=0.9)),
        param_scheduler=[dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=6),
                         dict(type="MultiStepLR", milestones=[2], by_epoch=by_epoch)],
        default_hooks=dict(
            checkpoint=dict(HOOK, by_epoch=False, interval=3) | dict(hook or {}),
            logger=dict(type="LoggerHook", interval=100, ignore_last=False)),
        custom_hooks=[dict(type="FusionScheduleHook"), dict(type="EMAHook", momentum=0.1)],
        log_processor=dict(by_epoch=by_epoch, window_size=1))
    return Config(cfg | options)


def start(work: Callable[[], Any], log: Path, limits: Callable[[], None] = lambda: None) -> int:
    """Do ``work`` in a forked process, which has everything imported; its id. It exits with 1 after an error."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush(), sys.stderr.flush()
    gc.freeze()  # else each child's first collection copies all that was imported
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        os.chdir(log.parent.parent)  # where mmengine collects results of several processes, and leaves a folder
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1), os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        faulthandler.enable()
        _leave_out_reports()
        limits()
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush(), sys.stderr.flush()
        finally:  # whatever happens: past this line it would go on as a second parent
            os._exit(code)


def _leave_out_reports() -> None:
    """Not under test, and most of the time of so short a training: compilers found, the config formatted by yapf."""
    Runner._log_env = lambda self, env_cfg: None
    Config.pretty_text = property(lambda cfg: repr(cfg.to_dict()))


def train(cfg: Config, resume: bool = False, load_from: str | None = None) -> None:
    cfg.resume, cfg.load_from = resume, load_from
    Runner.from_cfg(cfg).train()


def finish(child: int, patience: float = 300) -> int:
    """Exit code of a process, negative for a signal; -SIGALRM if it had to be killed after ``patience`` s."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGALRM


def kill_after(child: int, seconds: float) -> bool:
    """SIGKILL a process; whether it was still running."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.waitstatus_to_exitcode(status):
                raise RuntimeError(f"the training failed by itself with {os.waitstatus_to_exitcode(status)}")
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def final(work_dir: Path) -> dict:
    """The last checkpoint of a finished run, without what depends on the clock."""
    path = Path(Path(work_dir, "last_checkpoint").read_text())
    stored = torch.load(path, map_location="cpu", weights_only=True)
    keys = ("state_dict", "optimizer", "ema_state_dict", "param_schedulers", "resume_state")
    kept = {key: stored.get(key) for key in keys}
    kept["counters"] = {key: stored["meta"][key] for key in ("epoch", "iter")}
    scalars = stored["message_hub"]["log_scalars"]
    kept["logs"] = {name: buffer.data[0].tolist() for name, buffer in scalars.items()
                    if "loss" in name or "fusion." in name}
    return kept


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two nested structures differ, bit for bit; NaN equals NaN."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and torch.equal(
            one.contiguous().view(-1).view(torch.uint8) if one.numel() else one,
            other.contiguous().view(-1).view(torch.uint8) if other.numel() else other)
        if not same:
            yield where
    elif isinstance(one, Mapping) and isinstance(other, Mapping):
        yield from (f"{where}.{key}" for key in set(one) ^ set(other))
        for key in set(one) & set(other):
            yield from differences(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            yield f"{where} (lengths {len(one)}, {len(other)})"
        for i, pair in enumerate(zip(one, other)):
            yield from differences(*pair, f"{where}[{i}]")
    elif one != other and not (one != one and other != other):
        yield where


def die_before(moment: int | str) -> None:
    """Have this process kill itself before a training step (counted from 0), or within the first ``'validation'``."""
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS

    @HOOKS.register_module(name="Death", force=True)
    class Death(Hook):
        priority = "VERY_HIGH"

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        def after_val_epoch(self, runner, metrics=None):
            if moment == "validation":
                os.kill(os.getpid(), signal.SIGKILL)

    real = Runner.from_cfg

    def with_death(cfg: Config) -> Runner:
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type="Death")]
        return real(cfg)

    Runner.from_cfg = with_death


class Row(NamedTuple):
    """One line of the table."""

    case: str
    count: str
    found: str
    holds: bool
