from __future__ import annotations

import warnings

import cv2
import numpy as np
import pytest

from mmfusion_plugin.segmentation.sensors import DepthFormatError, Sensor, SensorReadError, read_label


def png(path, image):
    cv2.imwrite(str(path), image)
    return path


def test_millimetres_become_metres_and_zero_stays_invalid(tmp_path):
    stored = np.array([[0, 500, 2345], [9999, 10001, 50]], np.uint16)
    metres = Sensor("depth", "depth").read(png(tmp_path / "d.png", stored))
    np.testing.assert_allclose(metres, [[0, 0.5, 2.345], [9.999, 0, 0]], rtol=1e-6)
    assert metres.dtype == np.float32


def test_eight_bit_depth_of_the_half_size_set(tmp_path):
    sensor = Sensor("depth", "depth", dtype="uint8", scale=1 / 25.5, offset=0.5 / 25.5, invalid=None,
                    valid_range=(0.0, 10.1))
    stored = np.array([[0, 1, 255]], np.uint8)
    np.testing.assert_allclose(sensor.read(png(tmp_path / "d.png", stored)), (stored + 0.5) / 25.5, rtol=1e-6)


def test_eight_bit_where_sixteen_is_expected_names_file_and_key(tmp_path):
    path = png(tmp_path / "d.png", np.full((4, 4), 100, np.uint8))
    with pytest.raises(DepthFormatError, match=r"d\.png is uint8, sensors\.depth\.dtype says uint16"):
        Sensor("depth", "depth").read(path)


def test_three_channels_are_no_depth(tmp_path):
    path = png(tmp_path / "hha.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DepthFormatError, match="kind='image'"):
        Sensor("depth", "depth").read(path)
    assert Sensor("hha", "image").read(path).shape == (4, 4, 3)


def test_a_wrong_unit_is_a_loud_warning_once(tmp_path):
    path = png(tmp_path / "d.png", np.full((4, 4), 2500, np.uint16))
    sensor = Sensor("depth", "depth", scale=1.0)
    with pytest.warns(UserWarning, match=r"100% of the depth readings.*sensors\.depth\.scale"):
        assert not sensor.read(path).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sensor.read(path)


def test_a_float_array_is_taken_as_metres():
    metres = Sensor("depth", "depth").read(np.array([[1.5, np.nan, -1, 0]]))
    np.testing.assert_allclose(metres, [[1.5, 0, 0, 0]])


def test_grey_images_keep_sixteen_bits(tmp_path):
    image = Sensor("nir", "gray").read(png(tmp_path / "n.png", np.full((2, 3), 4000, np.uint16)))
    assert image.shape == (2, 3, 1)
    assert image.dtype == np.float32
    assert (image == 4000).all()


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_unreadable_files_are_named(tmp_path, content):
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SensorReadError, match=r"rgb.*broken\.png"):
        Sensor("rgb", "color").read(path)
    with pytest.raises(SensorReadError, match=r"label.*broken\.png"):
        read_label(path)


def test_a_truncated_png_is_unreadable(tmp_path):
    path = png(tmp_path / "rgb.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(SensorReadError, match="no readable image"):
        Sensor("rgb", "color").read(path)


@pytest.mark.parametrize(
    "options", [dict(kind="lidar"), dict(kind="depth", scale=0), dict(kind="depth", valid_range=(3, 1))]
)
def test_wrong_options_name_the_key(options):
    with pytest.raises(ValueError, match=r"sensors\.depth"):
        Sensor("depth", **options)
