from __future__ import annotations

import pytest
from mmcv.transforms import Compose
from mmseg.registry import DATASETS
from segmentation.scene import LOAD, PACK, SIZE, dataset_cfg

from mmfusion_plugin.segmentation.datasets import CWFIDDataset, DemoRoomsDataset, NYUDepthV2Dataset
from mmfusion_plugin.segmentation.transforms import check_pipeline


def build(root, **options):
    return DATASETS.build(dataset_cfg(root, [*LOAD, PACK], **options))


def test_a_frame_lists_every_file(frames):
    dataset = build(frames)
    info = dataset.get_data_info(0)
    assert len(dataset) == 4
    assert info["modality_paths"] == {"rgb": f"{frames}/RGB/1.png", "depth": f"{frames}/Depth/1.png"}
    assert info["seg_map_path"] == f"{frames}/Label/1.png"
    assert dataset[0]["data_samples"].metainfo["available"] == dict(rgb=True, depth=True)


@pytest.mark.parametrize("line", ["2", "RGB/2.png", "RGB/2.png Label/2.png"])
def test_lines_of_every_known_layout(frames, line):
    (frames / "train.txt").write_text(line + "\n\n")
    assert build(frames).get_data_info(0)["img_path"] == f"{frames}/RGB/2.png"


def test_a_suffix_may_have_alternatives(frames):
    suffixes = dict(rgb=[".jpg", ".png"], depth=".png", seg_map_path=".png")
    assert build(frames, suffixes=suffixes).get_data_info(0)["img_path"].endswith("1.png")


def test_an_absent_depth_file_is_an_error_that_names_it(frames):
    (frames / "Depth" / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"Depth/3\.png.*allow_missing"):
        build(frames)


def test_an_absent_depth_file_is_allowed_where_the_config_says_so(frames):
    (frames / "Depth" / "3.png").unlink()
    dataset = build(frames, allow_missing=["depth"])
    assert dataset.get_data_info(2)["modality_paths"]["depth"] is None
    packed = dataset[2]
    assert packed["data_samples"].metainfo["available"] == dict(rgb=True, depth=False)
    assert not packed["inputs"]["depth"].any()


def test_a_frame_without_any_sensor_is_named(frames):
    for folder in ("Depth", "RGB"):
        (frames / folder / "3.png").unlink()
    with pytest.raises(ValueError, match="frame '3'.*has none of"):
        build(frames, allow_missing=["depth", "rgb"])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda f: (f / "train.txt").write_text("\n"), ValueError, r"train\.txt lists no frame"),
        (lambda f: (f / "train.txt").unlink(), FileNotFoundError, r"train\.txt.*data_root"),
        (lambda f: (f / "train.txt").write_text("1\n2\n1\n"), ValueError, "more than once"),
        (lambda f: (f / "Label" / "2.png").unlink(), FileNotFoundError, r"Label/2\.png"),
    ],
)
def test_broken_lists(frames, change, error, words):
    change(frames)
    with pytest.raises(error, match=words):
        build(frames)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(modalities=["rgb", "thermal"]), r"dataset\.data_prefix has no entry for \['thermal'\]"),
        (dict(allow_missing=["thermal"]), r"dataset\.allow_missing names \['thermal'\]"),
        (dict(label_offset=2), r"dataset\.label_offset"),
    ],
)
def test_wrong_options_name_the_key(frames, options, words):
    with pytest.raises(ValueError, match=words):
        build(frames, **options)


def test_nyu_has_forty_distinct_colours():
    meta = NYUDepthV2Dataset.METAINFO
    assert len(meta["classes"]) == len({tuple(c) for c in meta["palette"]}) == 40


def test_nyu_classes_are_the_official_ones(shared_data):
    from scipy.io import loadmat

    official = loadmat(shared_data / "nyuv2_meta" / "classMapping40.mat")["className"].ravel()
    assert tuple(str(name[0]) for name in official) == NYUDepthV2Dataset.METAINFO["classes"]


def test_real_layouts_are_found(shared_data):
    half = NYUDepthV2Dataset(data_root=str(shared_data / "nyuv2_half"), ann_file="val.txt")
    field = CWFIDDataset(data_root=str(shared_data / "cwfid"))
    assert (len(half), len(field)) == (195, 30)
    assert half.label_offset == 1


def test_demo_classes_match_their_renderer():
    from mmfusion_plugin.segmentation import demo_rooms

    assert DemoRoomsDataset.METAINFO["classes"] == demo_rooms.CLASSES


def test_chosen_and_reordered_classes_reach_the_label(frames):
    """mmsegmentation's metainfo.classes: the numbers have to follow the names."""
    import cv2
    import numpy as np

    from mmfusion_plugin.segmentation.datasets import MultimodalSegDataset

    @DATASETS.register_module(force=True)
    class ThreeClasses(MultimodalSegDataset):
        METAINFO = dict(classes=("one", "two", "three"), palette=[[0, 0, 0], [99, 0, 0], [0, 99, 0]])

    dataset = build(frames, type="ThreeClasses", metainfo=dict(classes=("three", "one")))
    stored = cv2.imread(str(frames / "Label" / "1.png"), -1)
    label = dataset[0]["data_samples"].gt_sem_seg.data[0].numpy()
    for value, wanted in {0: 255, 1: 1, 2: 255, 3: 0}.items():
        assert (stored == value).any()
        assert np.array_equal(label == wanted, np.isin(stored, [0, 2] if wanted == 255 else [value]))


@pytest.mark.parametrize(
    ("line", "suffix"), [("room.2", ".png"), ("RGB/room.2.png", ".png"), ("room.2_rgb.png", "_rgb.png")]
)
def test_names_with_dots_and_endings_beyond_the_file_type(frames, line, suffix):
    for folder, ending in (("RGB", suffix), ("Depth", ".png"), ("Label", ".png")):
        (frames / folder / "2.png").rename(frames / folder / f"room.2{ending}")
    (frames / "train.txt").write_text(line)
    suffixes = dict(rgb=suffix, depth=".png", seg_map_path=".png")
    assert build(frames, suffixes=suffixes).get_data_info(0)["modality_paths"] == {
        "rgb": f"{frames}/RGB/room.2{suffix}", "depth": f"{frames}/Depth/room.2.png"}


def test_frames_without_labels_are_for_testing_only(frames):
    prefix = dict(rgb="RGB", depth="Depth")
    with pytest.raises(ValueError, match=r"dataset\.data_prefix has no entry for \['seg_map_path'\]"):
        build(frames, data_prefix=prefix)
    with pytest.raises(ValueError, match="LoadSegLabel out of the pipeline"):
        build(frames, data_prefix=prefix, test_mode=True)[0]
    dataset = DATASETS.build(dataset_cfg(frames, [LOAD[0], PACK], data_prefix=prefix, test_mode=True))
    assert "gt_sem_seg" not in dataset[0]["data_samples"]


def test_allow_missing_is_proposed_for_sensors_and_never_for_labels(frames):
    (frames / "Label" / "2.png").unlink()
    with pytest.raises(FileNotFoundError) as label:
        build(frames)
    assert "dataset.allow_missing" not in str(label.value)
    (frames / "Depth" / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"allow_missing=\['depth'\]"):
        build(frames)


def test_how_often_an_allowed_sensor_is_absent_is_told(frames, caplog):
    import logging

    from mmengine.logging import MMLogger

    (frames / "Depth" / "3.png").unlink()
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING):
            build(frames, allow_missing=["depth"])
    finally:
        logger.removeHandler(caplog.handler)
    assert "'depth' is absent in 1 of the 4 frames" in caplog.text


def test_files_are_looked_for_later_where_the_config_says_so(frames):
    (frames / "Depth" / "1.png").unlink()
    dataset = build(frames, check_files=False)
    with pytest.raises(OSError, match=r"Depth/1\.png"):
        dataset[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(reduce_zero_label=True), r"reduce_zero_label=True.*label_offset=1"),
        (dict(img_suffix=".tif"), r"img_suffix='\.tif'.*dataset\.suffixes"),
        (dict(ignore_index=0), r"ignore_index=0"),
        (dict(allow_missing="depth"), r"allow_missing must be a list such as \['depth'\]"),
        (dict(metainfo=None), r"metainfo=dict\(classes"),
        (dict(metainfo=dict(classes=[str(i) for i in range(256)])), "names 256 classes.*room for 255"),
    ],
)
def test_options_that_would_be_ignored_are_refused(frames, options, words):
    with pytest.raises(ValueError, match=words):
        build(frames, **options)


def test_nyu_colours_can_be_told_apart():
    import itertools

    import cv2
    import numpy as np

    rgb = np.float32([NYUDepthV2Dataset.METAINFO["palette"]]) / 255
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[0]
    # just noticeable side by side is 2.3; across a picture it takes several times that
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 20


def test_a_stock_suffix_is_answered_with_what_to_use(frames):
    cfg = dataset_cfg(frames, img_suffix=".jpg")
    cfg.pop("suffixes")
    with pytest.raises(ValueError, match=r"img_suffix='\.jpg'.*dataset\.suffixes"):
        DATASETS.build(cfg)
    cfg.pop("img_suffix")
    with pytest.raises(ValueError, match=r"dataset\.suffixes has no entry for \['depth', 'rgb', 'seg_map_path'\]"):
        DATASETS.build(cfg)


@pytest.mark.parametrize("offset", [0, 1])
def test_saved_predictions_are_numbered_as_the_labels(frames, offset, tmp_path):
    import cv2
    import numpy as np
    from mmseg.evaluation import IoUMetric

    label = np.arange(3).repeat(SIZE[0] // 3)[:, None].repeat(SIZE[1], 1).astype(np.uint8) + offset
    cv2.imwrite(str(frames / "Label" / "1.png"), label)
    dataset = build(frames, label_offset=offset)
    sample = dataset[0]["data_samples"]
    sample.pred_sem_seg = sample.gt_sem_seg
    metric = IoUMetric(output_dir=str(tmp_path / "saved"))
    metric.dataset_meta = dataset.metainfo
    metric.process({}, [sample.to_dict()])
    assert np.array_equal(cv2.imread(str(tmp_path / "saved" / "1.png"), -1), label)


@pytest.mark.parametrize("offset", [0, 1])
def test_saved_maps_of_chosen_classes_are_numbered_as_the_labels(frames, tmp_path, offset, monkeypatch):
    import cv2
    import numpy as np

    from mmfusion_plugin.segmentation.datasets import MultimodalSegDataset
    from mmfusion_plugin.segmentation.label_maps import SavedLabelMaps

    monkeypatch.setattr(MultimodalSegDataset, "METAINFO", dict(classes=("one", "two", "three"), palette=[[0] * 3] * 3))
    label = np.array([0, 2, 0]).repeat(SIZE[0] // 3)[:, None].repeat(SIZE[1], 1).astype(np.uint8) + offset
    cv2.imwrite(str(frames / "Label" / "1.png"), label)
    dataset = build(frames, label_offset=offset, metainfo=dict(classes=("three", "one")), indices=1)
    sample = dataset[0]["data_samples"]
    assert set(sample.gt_sem_seg.data.unique().tolist()) == {0, 1}
    sample.pred_sem_seg = sample.gt_sem_seg
    metric = SavedLabelMaps(str(tmp_path / "saved"))
    metric.dataset_meta = dataset.metainfo
    metric.process({}, [sample.to_dict()])
    assert np.array_equal(cv2.imread(str(tmp_path / "saved" / "1.png"), -1), label)
    metric.dataset_meta = dict(label_map={0: 1, 1: 255, 2: 1})
    with pytest.raises(ValueError, match=r"metainfo\.classes makes one class \(1\) of the stored numbers \[0, 2\]"):
        metric.process({}, [sample.to_dict()])


def test_frames_in_folders_keep_them(frames, tmp_path):
    import shutil

    for scene, name in (("scene1", "1"), ("scene2", "2")):
        for kind in ("RGB", "Depth", "Label"):
            (frames / kind / scene).mkdir()
            shutil.move(frames / kind / f"{name}.png", frames / kind / scene / "0001.png")
    (frames / "train.txt").write_text(f"scene1/0001\nRGB/scene2/0001.png Label/scene2/0001.png\n{frames}/RGB/3.png\n"
                                      "../RGB/4.png\n")
    dataset = build(frames)
    assert [dataset.get_data_info(i)["frame"] for i in range(4)] == ["scene1/0001", "scene2/0001", "3", "4"]
    assert dataset.get_data_info(1)["modality_paths"]["depth"] == str(frames / "Depth" / "scene2" / "0001.png")
    assert dataset[0]["data_samples"].metainfo["frame"] == "scene1/0001"


def test_names_with_blanks_are_answered_with_what_to_do(frames):
    (frames / "train.txt").write_text("room 1.png\nroom 2.png\n")
    with pytest.raises(ValueError, match=r"1 frames more than once, first \['room'\]; .*rename files with blanks"):
        build(frames)


def test_a_mosaic_is_refused(frames):
    """It goes round the pipeline's checks, leaves depth behind and asks the first frame alone what is missing."""
    inner = dataset_cfg(frames, LOAD)
    mixed = DATASETS.build(dict(type="MultiImageMixDataset", dataset=inner, pipeline=[
        dict(type="RandomMosaic", prob=1.0, img_scale=SIZE), PACK]))
    with pytest.raises(ValueError, match=r"MultimodalSegDataset's own pipeline ends before PackModalities.*mosaics"):
        mixed[0]


FLIP = dict(type="mmcv.RandomFlip", prob=0.5)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (FLIP, r"mmcv.RandomFlip moves image and label and leaves \['depth'\] behind"),
        (dict(type="RandomChoice", transforms=[[FLIP], []]), "mmcv.RandomFlip moves"),
        (dict(type="TestTimeAug", transforms=[[FLIP], [PACK]]), "mmcv.RandomFlip moves"),
        (dict(type="RandomResize", scale=SIZE, resize_type="mmcv.Resize", ratio_range=(1, 2)), "mmcv.Resize moves"),
        (dict(type="CenterCrop", crop_size=(8, 8)), "mmcv.CenterCrop moves"),
    ],
)
def test_stock_transforms_that_leave_the_depth_behind_are_refused(frames, step, words):
    with pytest.raises(ValueError, match=words):
        DATASETS.build(dataset_cfg(frames, [*LOAD, step, PACK]))


def test_albumentations_may_not_move_the_label_alone():
    from mmseg.datasets.transforms import Albu

    step = Albu.__new__(Albu)  # it would ask for a library that need not be installed
    step.keymap_to_albu = dict(img="image", gt_seg_map="mask")
    pipeline = Compose([LOAD[0], step])
    with pytest.raises(ValueError, match=r"mmseg.Albu moves.*keymap=dict\(img='image'\)"):
        check_pipeline(pipeline)
    del step.keymap_to_albu["gt_seg_map"]
    check_pipeline(pipeline)


def test_stock_jitter_is_for_one_colour_picture(frames):
    """With depth beside it, colour is all that is stacked; two stacked sensors would be jittered as one."""
    jitter = dict(type="PhotoMetricDistortion")
    DATASETS.build(dataset_cfg(frames, [*LOAD, jitter, PACK]))
    names = ["rgb", "nir"]
    load = dict(type="LoadModalities", modalities=names, sensors=dict(rgb=dict(kind="color"), nir=dict(kind="gray")))
    with pytest.raises(ValueError, match=r"channels \{'rgb': 3, 'nir': 1\}.*ColorJitter"):
        check_pipeline(Compose([load, jitter]))
