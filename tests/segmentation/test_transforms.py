from __future__ import annotations

import numpy as np
import pytest
from mmcv.transforms import Compose
from mmseg.registry import TRANSFORMS
from segmentation.scene import LOAD, PACK, SENSORS, SIZE, write_frames

from mmfusion_plugin.segmentation.sensors import SensorReadError
from mmfusion_plugin.segmentation.transforms import LoadSegLabel


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


def jitter(image, seed, available=True):
    np.random.seed(seed)
    step = TRANSFORMS.build(dict(type="ColorJitter", modality="rgb"))
    return step(dict(img=image, img_slices=dict(rgb=(0, 3)), available=dict(rgb=available)))["img"]


def test_colour_jitter_is_the_stock_one_bit_for_bit():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    stock, states = TRANSFORMS.build(dict(type="PhotoMetricDistortion")), set()
    for seed in range(40):
        ours = jitter(image.copy(), seed)
        state = np.random.get_state()[2]
        np.random.seed(seed)
        assert np.array_equal(ours, stock(dict(img=image.copy()))["img"])
        assert np.random.get_state()[2] == state, "and leaves the generator where the stock one does"
        states.add(state)
    assert len(states) > 4, "every combination of steps draws another number of times"


def test_a_cache_changes_nothing_but_the_reading(frames, monkeypatch):
    from mmfusion_plugin.segmentation import sensors

    def cached(mb):
        return [dict(LOAD[0], cache_mb=mb), dict(LOAD[1], cache_mb=mb)]

    read, decoded = sensors._decode_file, []
    monkeypatch.setattr(sensors, "_decode_file", lambda path, *rest: (decoded.append(path), read(path, *rest))[1])
    plain = [load(frames) for _ in range(2)]
    assert len(decoded) == 6
    steps = Compose([TRANSFORMS.build(step) for step in cached(17)])
    for _ in range(3):
        found = steps(sample(frames))
        for key in ("img", "depth", "gt_seg_map"):
            assert np.array_equal(found[key], plain[0][key]) and found[key].flags.writeable
            found[key][:] = 0  # as transforms may
    assert len(decoded) == 9, "each file once"
    import cv2

    cv2.imwrite(str(frames / "Label" / "1.png"), np.full(SIZE, 2, np.uint8))
    assert set(np.unique(steps(sample(frames))["gt_seg_map"])) == {1}, "a file written anew is read anew"
    for step in cached(-1):
        with pytest.raises(ValueError, match=rf"{step['type']}\.cache_mb must not be negative"):
            TRANSFORMS.build(step)


def test_labels_of_sixteen_bits_decode_as_those_of_eight(frames):
    import cv2

    eight = {offset: load(frames, label_offset=offset, num_classes=4)["gt_seg_map"] for offset in (0, 1)}
    path = str(frames / "Label" / "1.png")
    cv2.imwrite(path, cv2.imread(path, -1).astype(np.uint16))
    for offset, label in eight.items():
        assert np.array_equal(load(frames, label_offset=offset, num_classes=4)["gt_seg_map"], label)
    cv2.imwrite(path, np.full(SIZE, 256, np.uint16))
    with pytest.raises(ValueError, match="holds 256"):
        load(frames)


def test_colour_jitter_is_the_same_beside_a_16_bit_sensor(frames):
    """Such a neighbour makes the stack float32, of which OpenCV's HSV expects 0..1."""
    image = load(frames)["img"]
    for seed in range(8):
        floats = jitter(image.astype(np.float32), seed)
        assert floats.dtype == np.float32
        assert np.array_equal(floats, jitter(image, seed))


def test_interpolated_colours_are_rounded(monkeypatch):
    monkeypatch.setattr(np.random, "randint", lambda *_: 0)  # nothing is jittered
    stack = np.array([[[99.6, 255.4, -0.3]]], np.float32)
    assert jitter(stack, 0).tolist() == [[[100, 255, 0]]]


def test_a_missing_colour_image_is_not_jittered():
    assert not any(jitter(np.zeros((4, 4, 3), np.uint8), seed, available=False).any() for seed in range(8))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("offset", [0, 1])
def test_the_first_number_after_the_classes_is_refused(dtype, offset):
    last = np.array([[3 + offset]], dtype)
    assert LoadSegLabel._decode(last, offset, 4, "l.png").tolist() == [[3]]
    with pytest.raises(ValueError, match=rf"l\.png holds {4 + offset};"):
        LoadSegLabel._decode(last + 1, offset, 4, "l.png")


@pytest.mark.parametrize(
    "step",
    [
        dict(type="RandomRotate", prob=1.0, degree=30),
        dict(type="RandomCutOut", prob=1.0, n_holes=3, cutout_shape=(8, 8), seg_fill_in=255),
    ],
)
def test_what_a_transform_uncovers_is_no_reading(frames, step):
    """Stock transforms fill seg_fields with 255, which is a label's "ignore" and 255 metres."""
    before = set(np.unique(load(frames)["depth"]))
    assert run([*LOAD, step], frames)["depth"].max() == 255
    np.random.seed(0)
    packed = run([*LOAD, step, PACK], frames)
    depth, label = packed["inputs"]["depth"][0].numpy(), packed["data_samples"].gt_sem_seg.data[0].numpy()
    assert set(np.unique(depth)) <= before
    assert ((depth == 0) & (label == 255)).any()


def test_a_transform_that_forgets_the_depth_is_named(frames):
    with pytest.raises(ValueError, match=r"'depth' is 48x64, the image 96x96.*seg_fields.*data_preprocessor\.size"):
        run([*LOAD, dict(type="Pad", size=(96, 96)), PACK], frames)


def test_resize_to_a_multiple_moves_everything(frames):
    import cv2

    for folder in ("RGB", "Depth", "Label"):
        image = cv2.imread(str(frames / folder / "1.png"), -1)
        cv2.imwrite(str(frames / folder / "1.png"), image[:41, :59])
    before = np.unique(load(frames)["depth"])
    results = run([*LOAD, dict(type="ResizeToMultiple", size_divisor=32)], frames)
    assert results["img"].shape[:2] == results["depth"].shape == results["gt_seg_map"].shape == (64, 64)
    assert set(np.unique(results["depth"])) <= set(before)


def test_time_augmentation_turns_every_sensor_and_leaves_the_label(frames):
    steps = [LOAD[0], dict(type="TestTimeAug", transforms=[
        [dict(type="Resize", scale_factor=r, keep_ratio=True) for r in (1.0, 0.5)],
        [dict(type="RandomFlip", prob=p, direction="horizontal") for p in (0.0, 1.0)],
        [LOAD[1]], [PACK]])]
    packed = run(steps, coded(frames))
    plain, flipped, small, _ = packed["inputs"]
    for m in ("rgb", "depth"):
        assert np.array_equal(plain[m].numpy()[..., ::-1], flipped[m].numpy())
        assert small[m].shape[1:] == (24, 32)
    assert set(small["depth"].unique().tolist()) <= set(plain["depth"].unique().tolist())
    labels = [sample.gt_sem_seg.data for sample in packed["data_samples"]]
    assert all(np.array_equal(label, labels[0]) for label in labels)


def test_a_missing_encoded_image_has_its_own_channels(frames):
    sensors = dict(depth=SENSORS["depth"], thermal=dict(kind="image", channels=4))
    step = dict(type="LoadModalities", modalities=["depth", "thermal"], sensors=sensors)
    paths = dict(depth=str(frames / "Depth" / "1.png"), thermal=None)
    assert TRANSFORMS.build(step)(sample(frames, modality_paths=paths))["img"].shape == (*SIZE, 4)


@pytest.mark.parametrize(
    ("names", "words"),
    [(["rgb", "rgb"], "list of different names"), (["rgb", "img"], r"names \['img'\], which mmsegmentation uses")],
)
def test_names_that_cannot_be_used(names, words):
    with pytest.raises(ValueError, match=words):
        TRANSFORMS.build(dict(type="LoadModalities", modalities=names, sensors={m: dict(kind="gray") for m in names}))


def test_what_says_that_a_sensor_is_missing_is_always_packed(frames):
    paths = {**sample(frames)["modality_paths"], "depth": None}
    steps = Compose([*LOAD, {**PACK, "meta_keys": ("img_path",)}])
    meta = steps(sample(frames, modality_paths=paths, dataset_classes=3))["data_samples"].metainfo
    assert meta["available"] == dict(rgb=True, depth=False)
    assert meta["modality_paths"] == paths
    assert meta["dataset_classes"] == 3


def test_a_reading_of_255_metres_is_kept_and_a_fill_of_255_is_none():
    """Stock transforms fill what they uncover with the label's "ignore"."""
    sensors = dict(d=dict(kind="depth", scale=1.0, valid_range=(1, 60000)))
    results = TRANSFORMS.build(dict(type="LoadModalities", modalities=["d"], sensors=sensors))(
        dict(modality_paths=dict(d=np.array([[254, 255, 256, 300]], np.uint16)), seg_fields=[]))
    results["d"][0, 0] = 255
    packed = TRANSFORMS.build(dict(type="PackModalities", modalities=["d"]))(results)["inputs"]["d"]
    np.testing.assert_allclose(packed[0, 0], [0, 255, 256, 300], rtol=1e-6)


def test_sensors_of_more_than_eight_bits_are_told(frames):
    names = ["rgb", "thermal", "depth"]
    sensors = {**SENSORS, "thermal": dict(kind="gray", dtype="uint16")}
    paths = {**sample(frames)["modality_paths"], "thermal": str(frames / "Depth" / "1.png")}
    steps = Compose([dict(type="LoadModalities", modalities=names, sensors=sensors),
                     dict(type="PackModalities", modalities=names)])
    assert steps(sample(frames, modality_paths=paths))["data_samples"].metainfo["not_8_bit"] == ["thermal"]


@pytest.mark.parametrize("step", [dict(type="ColorJitter"), PACK])
def test_stock_loading_is_answered_with_what_to_use(frames, step):
    with pytest.raises(ValueError, match="LoadModalities instead of LoadImageFromFile"):
        run([dict(type="LoadImageFromFile"), step], frames)
