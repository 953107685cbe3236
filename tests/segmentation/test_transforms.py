from __future__ import annotations

import numpy as np
import pytest
from mmcv.transforms import Compose
from mmseg.registry import TRANSFORMS
from segmentation.scene import LOAD, PACK, SENSORS, SIZE, write_frames

from mmfusion_plugin.segmentation.sensors import SensorReadError


def sample(root, name="1", **changes):
    paths = dict(rgb=str(root / "RGB" / f"{name}.png"), depth=str(root / "Depth" / f"{name}.png"))
    return dict(modality_paths=paths, seg_map_path=str(root / "Label" / f"{name}.png"), label_offset=1, num_classes=3,
                seg_fields=[], img_path=paths["rgb"]) | changes


def load(root, **changes):
    return Compose(LOAD)(sample(root, **changes))


def run(steps, root):
    return Compose([TRANSFORMS.build(t) for t in steps])(sample(root))


def coded(root):
    """One frame in which label, depth and colour all tell the pixel's column and row."""
    import cv2

    H, W = SIZE
    y, x = np.mgrid[0:H, 0:W]
    cv2.imwrite(str(root / "RGB" / "1.png"), np.stack([x * 2, y * 2, x * 0], 2).astype(np.uint8))
    depth = (1000 + 10 * x + y // 8).astype(np.uint16)
    depth[10:14, 20:30] = 0
    cv2.imwrite(str(root / "Depth" / "1.png"), depth)
    cv2.imwrite(str(root / "Label" / "1.png"), (1 + x // 22).astype(np.uint8))
    return root


def test_label_offset_one(frames):
    import cv2

    stored = cv2.imread(str(frames / "Label" / "1.png"), -1).astype(int)
    assert np.array_equal(load(frames)["gt_seg_map"], np.where(stored == 0, 255, stored - 1))


@pytest.mark.parametrize(
    ("offset", "value", "advice"), [(1, 4, "label_offset=0"), (1, 255, "label_offset=0"), (0, 3, "label_offset=1")]
)
def test_a_label_out_of_range_names_file_value_and_option(frames, offset, value, advice):
    import cv2

    cv2.imwrite(str(frames / "Label" / "1.png"), np.full(SIZE, value, np.uint8))
    with pytest.raises(ValueError, match=rf"1\.png holds {value}.*{advice}"):
        load(frames, label_offset=offset)


def test_offset_zero_keeps_255_as_ignore(frames):
    import cv2

    stored = np.full(SIZE, 2, np.uint8)
    stored[0] = 255
    cv2.imwrite(str(frames / "Label" / "1.png"), stored)
    assert np.array_equal(load(frames, label_offset=0)["gt_seg_map"], stored)


def test_sensors_of_different_sizes_are_named(frames):
    import cv2

    cv2.imwrite(str(frames / "Depth" / "1.png"), np.full((24, 32), 1000, np.uint16))
    with pytest.raises(ValueError, match=r"rgb 48x64 .*depth 24x32"):
        load(frames)


def test_a_label_of_another_size_is_named(frames):
    import cv2

    cv2.imwrite(str(frames / "Label" / "1.png"), np.ones((24, 32), np.uint8))
    with pytest.raises(ValueError, match="24x32, its image 48x64"):
        load(frames)


def test_a_missing_sensor_is_zeros_and_marked(frames):
    paths = sample(frames)["modality_paths"]
    results = load(frames, modality_paths={**paths, "depth": None})
    assert results["available"] == dict(rgb=True, depth=False)
    assert results["depth"].shape == SIZE
    assert not results["depth"].any()
    with pytest.raises(ValueError, match="has none of"):
        load(frames, modality_paths=dict(rgb=None, depth=None))


def test_an_absent_file_is_an_error(frames):
    (frames / "Depth" / "1.png").unlink()
    with pytest.raises(SensorReadError, match=r"depth.*1\.png"):
        load(frames)


@pytest.mark.parametrize(
    "geometric",
    [
        [dict(type="RandomResize", scale=(64, 48), ratio_range=(0.5, 1.75), keep_ratio=True)],
        [dict(type="RandomFlip", prob=1.0, direction="horizontal")],
        [dict(type="RandomFlip", prob=1.0, direction="vertical")],
        [dict(type="RandomCrop", crop_size=(24, 32), cat_max_ratio=0.9)],
        [dict(type="RandomResize", scale=(64, 48), ratio_range=(1.1, 1.75), keep_ratio=True),
         dict(type="RandomCrop", crop_size=(32, 32)), dict(type="RandomFlip", prob=0.5)],
    ],
)
def test_stock_geometric_transforms_move_everything_together(frames, geometric):
    np.random.seed(0)
    results = run([*LOAD, *geometric], coded(frames))
    depth, label, image = results["depth"], results["gt_seg_map"], results["img"]
    assert depth.shape == label.shape == image.shape[:2]
    column = image[..., 0] / 2
    known = depth > 0
    assert np.abs((depth[known] - 1) * 100 - column[known]).max() <= 3
    inner = np.abs(column % 22 - 11) < 8
    assert np.array_equal(label[inner], (column[inner] // 22).astype(int))


def test_depth_is_never_averaged_and_invalid_stays_invalid(frames):
    np.random.seed(0)
    before = np.unique(load(coded(frames))["depth"])
    after = run([*LOAD, dict(type="Resize", scale=(101, 77), keep_ratio=False)], frames)["depth"]
    assert 0 in after
    assert set(np.unique(after)) <= set(before)


def test_colour_jitter_touches_colour_alone(frames):
    np.random.seed(1)
    sensors = {**SENSORS, "nir": dict(kind="color")}
    step = dict(type="LoadModalities", modalities=["nir", "rgb", "depth"], sensors=sensors)
    data = sample(frames)
    data["modality_paths"]["nir"] = str(frames / "RGB" / "2.png")
    before = TRANSFORMS.build(step)(data)
    image, depth = before["img"].copy(), before["depth"].copy()
    after = TRANSFORMS.build(dict(type="ColorJitter", modality="rgb"))(before)
    assert np.array_equal(after["img"][..., :3], image[..., :3])
    assert not np.array_equal(after["img"][..., 3:], image[..., 3:])
    assert np.array_equal(after["depth"], depth)
    assert after["img"].dtype == np.uint8
    with pytest.raises(ValueError, match=r"ColorJitter\.modality is 'thermal'"):
        TRANSFORMS.build(dict(type="ColorJitter", modality="thermal"))(after)


def test_packing_gives_one_tensor_per_modality(frames):
    packed = run([*LOAD, PACK], frames)
    assert {m: (tuple(x.shape), str(x.dtype)) for m, x in packed["inputs"].items()} == dict(
        rgb=((3, *SIZE), "torch.uint8"), depth=((1, *SIZE), "torch.float32"))
    meta = packed["data_samples"].metainfo
    assert meta["available"] == dict(rgb=True, depth=True)
    assert meta["modality_paths"]["depth"].endswith("1.png")
    assert packed["data_samples"].gt_sem_seg.data.shape == (1, *SIZE)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_any_number_of_stacked_channels_survives_the_stock_transforms(frames, channels):
    names = [f"s{i}" for i in range(channels)]
    data = sample(frames, modality_paths={m: str(frames / "RGB" / "1.png") for m in names})
    steps = [dict(type="LoadModalities", modalities=names, sensors={m: dict(kind="gray") for m in names}), LOAD[1],
             dict(type="RandomResize", scale=(64, 48), ratio_range=(1.2, 1.5), keep_ratio=True),
             dict(type="RandomCrop", crop_size=(32, 32)), dict(type="RandomFlip", prob=1.0),
             dict(type="PackModalities", modalities=names)]
    packed = Compose([TRANSFORMS.build(t) for t in steps])(data)
    assert all(packed["inputs"][m].shape == (1, 32, 32) for m in names)


def test_depth_alone_needs_no_image(frames):
    step = dict(type="LoadModalities", modalities=["depth"], sensors=dict(depth=SENSORS["depth"]))
    packed = run([step, LOAD[1], dict(type="RandomFlip", prob=1.0), dict(type="PackModalities", modalities=["depth"])],
                 frames)
    assert packed["inputs"]["depth"].shape == (1, *SIZE)


def test_names_that_do_not_agree(frames):
    with pytest.raises(ValueError, match=r"LoadModalities\.sensors names"):
        TRANSFORMS.build(dict(type="LoadModalities", modalities=["rgb"], sensors=SENSORS))
    three = {**SENSORS, "nir": dict(kind="gray")}
    step = dict(type="LoadModalities", modalities=["rgb", "depth", "nir"], sensors=three)
    with pytest.raises(ValueError, match=r"the data set gives \['depth', 'rgb'\]"):
        TRANSFORMS.build(step)(sample(frames))
    with pytest.raises(ValueError, match="'nir', which LoadModalities did not load"):
        run([*LOAD, dict(type="PackModalities", modalities=["rgb", "nir"])], frames)


def test_the_real_half_size_frames_are_plausible(shared_data):
    root = shared_data / "nyuv2_half"
    sensors = dict(rgb=dict(kind="color"), depth=dict(kind="depth", dtype="uint8", scale=1 / 25.5, offset=0.5 / 25.5,
                                                      invalid=None, valid_range=(0.1, 10.1)))
    step = dict(type="LoadModalities", modalities=["rgb", "depth"], sensors=sensors)
    data = dict(modality_paths=dict(rgb=str(root / "RGB/0003.jpg"), depth=str(root / "Depth/0003.png")), seg_fields=[],
                seg_map_path=str(root / "Label/0003.png"), label_offset=1, num_classes=40)
    results = Compose([TRANSFORMS.build(t) for t in (step, LOAD[1])])(data)
    assert results["img"].shape == (240, 320, 3)
    assert 1 < np.median(results["depth"]) < 6
    assert set(np.unique(results["gt_seg_map"])) <= {*range(40), 255}


def test_write_frames_is_deterministic(tmp_path):
    one, two = write_frames(tmp_path / "a"), write_frames(tmp_path / "b")
    assert (one / "Depth/1.png").read_bytes() == (two / "Depth/1.png").read_bytes()
