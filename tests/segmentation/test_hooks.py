from __future__ import annotations

from unittest import mock

import cv2
import numpy as np
import pytest
from mmseg.registry import DATASETS, HOOKS
from PIL import Image
from segmentation.scene import LOAD, PACK, SIZE, dataset_cfg

NAMES = ["tf", "rgb"]


def drawn(tmp_path, frames, **options):
    """The pictures that the hook hands to the visualiser for one frame with a float sensor first."""
    from mmseg.visualization import SegLocalVisualizer

    (frames / "T").mkdir()
    cv2.imwrite(str(frames / "T" / "1.tiff"), np.linspace(-5, 30, SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE))
    Image.open(frames / "RGB" / "1.png").save(frames / "T" / "1.jpg", exif=turned())
    load = dict(type="LoadModalities", modalities=NAMES, sensors=dict(
        tf=dict(kind="gray", dtype="float32"), rgb=dict(kind="color")))
    cfg = dataset_cfg(frames, [load, LOAD[1], dict(PACK, modalities=NAMES)], modalities=NAMES, indices=1,
                      data_prefix=dict(tf="T", rgb="T", seg_map_path="Label"), test_mode=True,
                      suffixes=dict(tf=".tiff", rgb=".jpg", seg_map_path=".png"), **options)
    (frames / "train.txt").write_text("1\n")
    dataset = DATASETS.build(dict(type="ConcatDataset", datasets=[cfg]))
    SegLocalVisualizer.get_instance("hook", save_dir=str(tmp_path))
    hook = HOOKS.build(dict(type="SensorVisualizationHook", draw=True, interval=1))
    hook._visualizer, runner = mock.Mock(), mock.Mock()
    runner.test_loop.dataloader.dataset = dataset
    hook.after_test_iter(runner, 0, {}, [dataset[0]["data_samples"]])
    return hook._visualizer.add_datasample.call_args.args


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    return exif


def test_the_colour_sensor_is_drawn_as_it_is_read(frames, tmp_path):
    name, picture = drawn(tmp_path, frames)
    stored = cv2.imread(str(frames / "T" / "1.jpg"), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    assert name == "test_1" and np.array_equal(picture, stored[..., ::-1])


def test_without_colour_any_sensor_is_drawn(frames, tmp_path):
    (frames / "gone").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmfusion_plugin.segmentation.datasets.Path.is_file", lambda p: not str(p).endswith(".jpg")
                      and p.exists())
        _, picture = drawn(tmp_path, frames, allow_missing=["rgb"])
    assert picture.shape == (*SIZE, 3) and picture.dtype == np.uint8
    assert picture[0, 0, 0] == 0 and picture[-1, -1, 0] == 255
