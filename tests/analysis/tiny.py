"""Small data sets of both tasks for evaluations: (model, dataloader config, evaluator config)."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from running import run_tool
from torch.utils.data import Dataset

ACCURACY = dict(type="AccMetric", metric_list=("top_k_accuracy",), metric_options=dict(top_k_accuracy=dict(topk=(1,))))


class Items(Dataset):
    """Items of a batch as pseudo_collate gives it, one by one."""

    def __init__(self, batch: dict, metainfo: dict | None = None) -> None:
        self.batch, self.metainfo = batch, metainfo or {}

    def __len__(self) -> int:
        return len(self.batch["data_samples"])

    def __getitem__(self, i: int) -> dict:
        return dict(
            inputs={m: x[i] for m, x in self.batch["inputs"].items()}, data_samples=self.batch["data_samples"][i])


def loader(dataset: Dataset, batch_size: int = 4) -> dict:
    return dict(batch_size=batch_size, num_workers=0, dataset=dataset, sampler=dict(type="DefaultSampler"))


def recognition(cfg=None, number: int = 10, missing=(), **batch_options):
    from recognition.model import batch, build

    model = build(cfg)
    # untrained scores are nearly the same in every class: spread them, so that a wrong feature changes a prediction
    torch.manual_seed(3)
    for p in model.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return model, loader(Items(batch(number=number, missing=missing, **batch_options))), ACCURACY


def segmentation(frames, model=None, batch_size: int = 1):
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS
    from segmentation.scene import LOAD, PACK, dataset_cfg, write_frames
    from segmentation.test_segmentor import build

    init_default_scope("mmseg")
    write_frames(frames)
    dataset = DATASETS.build(dataset_cfg(frames, [*LOAD, PACK]))
    model = build() if model is None else model
    return model, loader(dataset, batch_size), dict(type="IoUMetric", iou_metrics=["mIoU"])


def state(model: torch.nn.Module) -> dict:
    return {name: x.clone() for name, x in model.state_dict().items()}


def trained_features(folder: Path, monkeypatch, steps: int = 2, **options) -> tuple[Path, Path]:
    """(config, checkpoint) of three ready-made modalities a, b, c, trained by tools/train.py in ``folder``/run."""
    from recognition.model import feature_cfg

    widths, labels, rng = dict(a=3, b=4, c=5), np.arange(12) % 3, np.random.default_rng(0)
    views = {m: (rng.normal(size=(12, C)) + 3 * labels[:, None]).astype(np.float32) for m, C in widths.items()}
    np.savez(folder / "data.npz", label=labels, **views)
    dataset = dict(type="FeatureDataset", data_root=str(folder), ann_file="data.npz", arrays={m: m for m in widths},
                   label="label", num_classes=3, pipeline=[dict(type="PackFeatures", modalities=list(widths))])
    batches = dict(batch_size=4, num_workers=0, dataset=dataset, sampler=dict(type="DefaultSampler", shuffle=False))
    model = feature_cfg(widths)
    model["cls_head"]["num_classes"] = 3
    names = dict(
        default_scope="mmaction", custom_imports=dict(imports=["mmfusion_plugin"]), model=model,
        train_dataloader=batches, test_dataloader=batches, test_evaluator=ACCURACY, test_cfg=dict(type="TestLoop"),
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=steps), randomness=dict(seed=7),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.01)),
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=steps, by_epoch=False),
                           logger=dict(type="LoggerHook", interval=1))) | options
    config = folder / "config.py"
    config.write_text("".join(f"{name} = {value!r}\n" for name, value in names.items()))
    run_tool(monkeypatch, "train", config, "--work-dir", folder / "run")
    return config, folder / "run" / f"iter_{steps}.pth"
