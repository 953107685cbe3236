"""What reaches the neck: each encoder's features with their labels, for probes and plots."""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmfusion_plugin.fusion.contract import channel_axis

from .calibration import IGNORE
from .conditions import in_order

__all__ = [
    "Sample", "caught", "label_of", "neck_inputs", "pick_positions", "pooled", "stacked_levels", "without_augmentation",
]


@dataclass
class Sample:
    """One sample: its label (1,) or (H, W), the levels of each available modality without batch axis (views first)."""

    index: int
    label: Tensor
    levels: dict[str, tuple[Tensor, ...]]

    @property
    def dense(self) -> bool:
        return self.label.ndim == 2


def neck_inputs(
    model: nn.Module, loader: Mapping[str, Any], dataset: Dataset, report: Callable[[int, int], None] | None = None
) -> Iterator[Sample]:
    """Samples in the order of ``dataset``, as the encoders see them in evaluation.

    Raises: ValueError for a sample without one label, and where the preprocessor pads pictures.
    """
    if not hasattr(model, "fusion_output"):
        raise ValueError(f"{type(model).__name__} is no FusionEncoderDecoder or FusionRecognizer")
    done = 0
    model.eval()
    for batch in in_order(loader, dataset):
        data = model.data_preprocessor(copy.deepcopy(batch), False)
        samples = data["data_samples"]
        with caught(model.neck) as calls, torch.no_grad():
            model.fusion_output(data["inputs"], samples)
        feats = calls[-1][0]
        for b, sample in enumerate(samples):
            available = sample.metainfo.get("available", {})
            levels = {}
            for m, x in feats.items():
                maps = (x,) if isinstance(x, Tensor) else tuple(x)
                if available.get(m, True):
                    views = len(maps[0]) // len(samples)
                    levels[m] = tuple(level[b * views : (b + 1) * views] for level in maps)
            yield Sample(done + b, label_of(sample), levels)
        done += len(samples)
        if report is not None:
            report(done, len(dataset))


@contextmanager
def caught(module: nn.Module) -> Iterator[list[tuple]]:
    """Positional arguments of every call."""
    calls: list[tuple] = []
    handle = module.register_forward_pre_hook(lambda _, args: calls.append(args))
    try:
        yield calls
    finally:
        handle.remove()


def label_of(sample: Any) -> Tensor:
    if "gt_sem_seg" in sample:
        if any(sample.metainfo.get("padding_size", ())) or any(sample.metainfo.get("img_padding_size", ())):
            raise ValueError(
                "the data preprocessor pads pictures in evaluation, so features and labels do not cover the same area; "
                "leave data_preprocessor.test_cfg out")
        return sample.gt_sem_seg.data[0].cpu()
    if "gt_label" in sample and len(sample.gt_label) == 1:
        return sample.gt_label.cpu()
    raise ValueError(f"the sample holds {sorted(sample.keys())}, expected gt_sem_seg or one gt_label")


def pooled(levels: Sequence[Tensor]) -> Tensor:
    """Last level (V, C, ...) of V views -> (C,): the mean over views and positions, as the recognizer's heads read."""
    x = levels[-1]
    return x.mean([axis for axis in range(x.ndim) if axis != channel_axis(x)])


def stacked_levels(levels: Sequence[Tensor]) -> Tensor:
    """(1, C_i, h_i, w_i) of a pyramid -> (sum C_i, h, w) on its finest grid, bilinear."""
    grid = max((level.shape[-2:] for level in levels), key=lambda size: size[0] * size[1])
    return torch.cat([
        level if level.shape[-2:] == grid else F.interpolate(level, grid, mode="bilinear", align_corners=False)
        for level in levels], 1)[0]


def pick_positions(label: Tensor, grid: Sequence[int], number: int, index: int, seed: int) -> tuple[Tensor, Tensor]:
    """((P,) places in the flat grid, (P,) labels): up to ``number`` labelled places, drawn from (seed, index) alone.

    A place has the label of the pixel at its centre.
    """
    small = F.interpolate(label[None, None].double(), tuple(grid), mode="nearest-exact")[0, 0].long().flatten()
    known = (small != IGNORE).nonzero().flatten()
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    places = known[torch.randperm(len(known), generator=generator)[:number]]
    return places, small[places]


def without_augmentation(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """``train_dataloader`` with the test pipeline and test batch size: training samples as evaluation would see them.

    Raises: ValueError where either dataset has no ``pipeline`` of its own (a wrapped one).
    """
    train, test = copy.deepcopy(cfg["train_dataloader"]), cfg["test_dataloader"]
    for key, loader in (("train_dataloader", train), ("test_dataloader", test)):
        if "pipeline" not in loader["dataset"]:
            raise ValueError(
                f"{key}.dataset ({loader['dataset'].get('type')}) has no pipeline of its own; name the data set itself "
                "instead of a wrapper")
    train["dataset"]["pipeline"] = copy.deepcopy(test["dataset"]["pipeline"])
    train["batch_size"] = test.get("batch_size", 1)
    return train
