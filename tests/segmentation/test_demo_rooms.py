from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from mmfusion_plugin.segmentation import demo_rooms
from mmfusion_plugin.segmentation.demo_rooms import (
    BALL,
    BOX,
    CABINET,
    CLASSES,
    FLOOR,
    POSTER,
    RUG,
    WALL,
    generate,
    render,
)


@pytest.fixture(scope="module")
def rooms():
    return [render(np.random.default_rng([5, i]), (60, 80)) for i in range(12)]


def test_formats(rooms):
    for frame in rooms:
        assert (frame.rgb.shape, frame.rgb.dtype) == ((60, 80, 3), np.uint8)
        assert (frame.depth.shape, frame.depth.dtype) == ((60, 80), np.uint16)
        assert frame.label.max() <= len(CLASSES)


def test_every_class_appears(rooms):
    seen = set(np.unique(np.stack([frame.label for frame in rooms])))
    assert {c + 1 for c in (WALL, FLOOR, CABINET, POSTER, RUG, BOX, BALL)} <= seen


def test_depth_has_range_limits_holes_and_noise_that_grows(rooms):
    depth = np.stack([frame.depth for frame in rooms]).astype(float) / 1000
    known = depth[depth > 0]
    assert 0.39 < known.min()
    assert known.max() < 8.01
    assert 0.005 < (depth == 0).mean() < 0.2
    near, far = [], []
    for frame, metres in zip(rooms, depth):
        smooth = cv2.medianBlur(frame.depth, 5) / 1000
        flat = (metres > 0) & (frame.label == WALL + 1) & (np.abs(metres - smooth) < 0.1)
        near += (metres - smooth)[flat & (metres < 2)].tolist()
        far += (metres - smooth)[flat & (metres > 4)].tolist()
    assert np.std(far) > 2 * np.std(near)


def test_flat_things_have_the_depth_of_what_they_lie_on():
    """A poster cannot be told from its wall by depth: one plane fits both."""
    for i in range(40):
        frame = render(np.random.default_rng([1, i]), (60, 80))
        y, x = np.nonzero((frame.label == RUG + 1) & (frame.depth > 0))
        if len(y) > 150:
            break
    floor = np.nonzero((frame.label == FLOOR + 1) & (frame.depth > 0))

    def rows(y, x):
        return np.stack([x, y, np.ones_like(x)], 1)

    inverse = 1000 / frame.depth[floor].astype(float)  # a plane is linear in inverse depth
    plane = np.linalg.lstsq(rows(*floor), inverse, rcond=None)[0]
    error = np.abs(rows(y, x) @ plane - 1000 / frame.depth[y, x])
    assert np.median(error) < 0.01


def test_same_seed_same_files_other_seed_others(tmp_path):
    one, two, three = (generate(tmp_path / n, 2, 1, (32, 40), seed) for n, seed in (("a", 0), ("b", 0), ("c", 1)))
    for name in ("RGB/0001.png", "Depth/0003.png", "Label/0002.png", "train.txt"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert (one / "RGB/0001.png").read_bytes() != (three / "RGB/0001.png").read_bytes()
    assert (one / "train.txt").read_text() == "RGB/0001.png\nRGB/0002.png\n"
    assert json.loads((one / "spec.json").read_text())["classes"] == list(CLASSES)


def test_a_finished_folder_is_kept_and_another_is_never_overwritten(tmp_path):
    out = generate(tmp_path / "a", 2, 1, (32, 40))
    stamp = (out / "RGB/0001.png").stat().st_mtime_ns
    assert generate(out, 2, 1, (32, 40)) == out
    assert (out / "RGB/0001.png").stat().st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match="another data set"):
        generate(out, 3, 1, (32, 40))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError):
        generate(tmp_path / "mine", 2, 1, (32, 40))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_an_interrupted_rendering_leaves_nothing_under_the_final_name(tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(demo_rooms, "render", die)
        generate(tmp_path / "a", 2, 1, (32, 40))
    assert list(tmp_path.iterdir()) == []
    assert cv2.imread(str(generate(tmp_path / "a", 2, 1, (32, 40)) / "RGB/0001.png")) is not None


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(FileExistsError, match="is a file"):
        generate(tmp_path / "a", 2, 1)


def test_impossible_numbers():
    with pytest.raises(ValueError, match="train >= 1"):
        generate("nowhere", 0, 1)
