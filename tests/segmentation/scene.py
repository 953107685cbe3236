"""Small RGB-D frames on disk, and a small model for them."""
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

SIZE = (48, 64)
SENSORS = dict(rgb=dict(kind="color"), depth=dict(kind="depth", dtype="uint16", scale=0.001))
LOAD = [dict(type="LoadModalities", modalities=["rgb", "depth"], sensors=SENSORS), dict(type="LoadSegLabel")]
PACK = dict(type="PackModalities", modalities=["rgb", "depth"])


def write_frames(root: Path, names=("1", "2", "3", "4"), size=SIZE, classes=3, seed=0) -> Path:
    """RGB, Depth (millimetres, an eighth invalid), Label (1..classes, 0 unlabelled), train.txt, val.txt."""
    rng = np.random.default_rng(seed)
    for folder in ("RGB", "Depth", "Label"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        label = rng.integers(0, classes + 1, (size[0] // 8, size[1] // 8)).repeat(8, 0).repeat(8, 1)
        depth = (1000 + 500 * label + rng.integers(0, 50, size)).astype(np.uint16)
        depth[rng.random(size) < 0.125] = 0
        cv2.imwrite(str(root / "RGB" / f"{name}.png"), rng.integers(0, 256, (*size, 3)).astype(np.uint8))
        cv2.imwrite(str(root / "Depth" / f"{name}.png"), depth)
        cv2.imwrite(str(root / "Label" / f"{name}.png"), label.astype(np.uint8))
    for part in ("train.txt", "val.txt"):
        (root / part).write_text("".join(f"RGB/{name}.png\n" for name in names))
    return root


def dataset_cfg(root: Path, pipeline=(), **options) -> dict:
    return dict(
        type="MultimodalSegDataset", data_root=str(root), modalities=["rgb", "depth"], ann_file="train.txt",
        data_prefix=dict(rgb="RGB", depth="Depth", seg_map_path="Label"),
        suffixes=dict(rgb=".png", depth=".png", seg_map_path=".png"), label_offset=1,
        metainfo=dict(classes=("one", "two", "three"), palette=[[0, 0, 0], [99, 0, 0], [0, 99, 0]]),
        pipeline=list(pipeline)) | options


def model_cfg(**options) -> dict:
    """Two thin ResNet-18, SCFAE, SegFormer head."""
    encoder = dict(type="ResNet", depth=18, base_channels=8, num_stages=4, out_indices=(0, 1, 2, 3))
    widths = [8, 16, 32, 64]
    return dict(
        type="FusionEncoderDecoder",
        data_preprocessor=dict(
            type="MultimodalSegDataPreProcessor", modalities=["rgb", "depth"], mean=dict(rgb=[120.0] * 3, depth=[2.0]),
            std=dict(rgb=[60.0] * 3, depth=[1.0]), bgr_to_rgb=["rgb"], invalid=dict(depth=0), size=SIZE),
        backbone=dict(type="MultimodalBackbone", modalities=["rgb", "depth"], in_channels=dict(rgb=3, depth=1),
                      backbones=dict(rgb=dict(encoder), depth=dict(encoder))),
        neck=dict(type="SCFAE", modalities=["rgb", "depth"], in_channels=dict(rgb=widths, depth=widths),
                  out_channels=widths, width=0.5),
        decode_head=dict(type="SegformerHead", in_channels=widths, in_index=[0, 1, 2, 3], channels=16, num_classes=3,
                         norm_cfg=dict(type="BN"), align_corners=False),
        train_cfg=dict(), test_cfg=dict(mode="whole")) | options
