from __future__ import annotations

import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest

from mmfusion_plugin.engine.file_cache import FileCache
from mmfusion_plugin.segmentation.sensors import DepthFormatError, Sensor, SensorReadError, read_label


def png(path, image):
    cv2.imwrite(str(path), image)
    return path


def test_millimetres_become_metres_and_zero_stays_invalid(tmp_path):
    stored = np.array([[0, 500, 2345], [9999, 10001, 50]], np.uint16)
    metres = Sensor("depth", "depth").read(png(tmp_path / "d.png", stored))
    np.testing.assert_allclose(metres, [[0, 0.5, 2.345], [9.999, 0, 0]], rtol=1e-6)
    assert metres.dtype == np.float32


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_table_of_depths_holds_what_is_computed_for_other_formats(dtype):
    """Formats beyond 16 bits have no table."""
    stored = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (30, 40)).astype(dtype)
    for options in (dict(), dict(invalid=None), dict(invalid=7, scale=0.05, offset=-0.2), dict(valid_range=(0, 2.5))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = Sensor("depth", "depth", dtype=dtype, **options).read(stored)
            expected = Sensor("depth", "depth", dtype="int32", **options).read(stored.astype(np.int32))
        assert np.array_equal(found, expected) and found.dtype == np.float32


def test_eight_bit_depth_of_the_half_size_set(tmp_path):
    sensor = Sensor("depth", "depth", dtype="uint8", scale=1 / 25.5, offset=0.5 / 25.5, invalid=None,
                    valid_range=(0.0, 10.1))
    stored = np.array([[0, 1, 255]], np.uint8)
    np.testing.assert_allclose(sensor.read(png(tmp_path / "d.png", stored)), (stored + 0.5) / 25.5, rtol=1e-6)


def test_eight_bit_where_sixteen_is_expected_names_file_and_key(tmp_path):
    path = png(tmp_path / "d.png", np.full((4, 4), 100, np.uint8))
    with pytest.raises(DepthFormatError, match=r"d\.png is uint8, sensors\.depth\.dtype says uint16"):
        Sensor("depth", "depth").read(path)


def test_a_header_that_claims_too_many_pixels_is_no_readable_image(tmp_path, huge_jpeg):
    path = tmp_path / "c.jpg"
    path.write_bytes(huge_jpeg)
    with pytest.raises(SensorReadError, match=r"c\.jpg is no readable image"):
        Sensor("rgb", "color").read(path)


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


def test_a_unit_that_is_changed_counts_from_the_next_file_on(tmp_path):
    sensor, path = Sensor("depth", "depth"), png(tmp_path / "d.png", np.full((2, 2), 2000, np.uint16))
    for changed, metres in ((dict(), 2.0), (dict(scale=0.002), 4.0), (dict(offset=0.5), 4.5), (dict(invalid=2000), 0)):
        vars(sensor).update(changed)
        assert (sensor.read(path) == np.float32(metres)).all()


def test_a_kept_picture_is_that_of_its_reader_and_cannot_be_written_to(tmp_path):
    path, cache = png(tmp_path / "x.png", np.full((2, 3, 3), 7, np.uint8)), FileCache(1 << 20)
    for _ in range(2):
        assert Sensor("rgb", "color").read(path, cache).shape == (2, 3, 3)
        grey = Sensor("nir", "gray").read(path, cache)
        assert grey.shape == (2, 3, 1)
        with pytest.raises(ValueError, match="read-only"):
            grey[:] = 0


def test_a_float_array_is_taken_as_metres():
    metres = Sensor("depth", "depth").read(np.array([[1.5, np.nan, -1, 0]]))
    np.testing.assert_allclose(metres, [[1.5, 0, 0, 0]])


def test_float_millimetres_are_answered_with_what_a_float_array_is():
    with pytest.warns(UserWarning, match="A float array is taken as metres"):
        Sensor("depth", "depth").read(np.full((4, 4), 2500.0))


def test_grey_images_keep_sixteen_bits(tmp_path):
    image = Sensor("nir", "gray", dtype="uint16").read(png(tmp_path / "n.png", np.full((2, 3), 4000, np.uint16)))
    assert image.shape == (2, 3, 1)
    assert image.dtype == np.float32
    assert (image == 4000).all()


@pytest.mark.parametrize(("kind", "stored"), [
    ("gray", np.full((2, 3), 28000, np.uint16)), ("gray", np.full((2, 3), 21.5, np.float32)),
    ("image", np.full((2, 3, 3), 4000, np.uint16))])
def test_more_than_eight_bits_have_to_be_named(tmp_path, kind, stored):
    """Mean 128 and standard deviation 64 would make 435 of a thermal camera's 28000."""
    path = png(tmp_path / "t.tiff", stored)
    with pytest.raises(SensorReadError, match=rf"is {stored.dtype}, .*thermal\.dtype.*mean\.thermal and std\.thermal.*"
                                              "valid_range"):
        Sensor("thermal", kind).read(path)
    assert (Sensor("thermal", kind, dtype=str(stored.dtype)).read(path) == stored.max()).all()


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_unreadable_files_are_named(tmp_path, content):
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SensorReadError, match=r"rgb.*broken\.png"):
        Sensor("rgb", "color").read(path)
    with pytest.raises(SensorReadError, match=r"label.*broken\.png"):
        read_label(path)


def test_a_header_that_claims_any_size_is_a_broken_file(tmp_path):
    """OpenCV refuses it with an error of its own, which no data set would take for a broken sample."""
    content = bytearray(cv2.imencode(".bmp", np.zeros((4, 4, 3), np.uint8))[1].tobytes())
    content[18:22] = (1 << 21).to_bytes(4, "little")  # the width
    (tmp_path / "c.bmp").write_bytes(content)
    for read in (Sensor("rgb", "color").read, read_label):
        with pytest.raises(SensorReadError, match=r"c\.bmp is no readable image .*MAX_IMAGE_WIDTH"):
            read(tmp_path / "c.bmp")


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


def test_a_float_file_is_no_sixteen_bit_depth(tmp_path):
    """Taken for metres, millimetres stored as floats would be dropped as out of range."""
    path = png(tmp_path / "d.tiff", np.full((4, 4), 2500, np.float32))
    with pytest.raises(DepthFormatError, match=r"float32, sensors\.depth\.dtype says uint16"):
        Sensor("depth", "depth").read(path)
    metres = Sensor("depth", "depth", dtype="float32", scale=0.001).read(path)
    np.testing.assert_allclose(metres, 2.5)


def test_float_depth_of_a_float_sensor_is_scaled_and_not_a_number_is_invalid():
    metres = Sensor("depth", "depth", dtype="float32", scale=0.001).read(np.float32([[2500, np.nan, 0, np.inf]]))
    np.testing.assert_allclose(metres, [[2.5, 0, 0, 0]])


@pytest.mark.parametrize(
    ("options", "array", "words"),
    [
        (dict(kind="gray"), np.zeros((4, 4, 3), np.uint8),
         r"3 channels, sensors\.s with kind='gray' has 1.*sensors\.s\.kind"),
        (dict(kind="color"), np.zeros((4, 4, 3), np.float32), "float32.*expects uint8"),
        (dict(kind="color"), np.zeros((4, 4), np.uint8), "1 channels"),
        (dict(kind="gray", dtype="uint16"), np.zeros((4, 4), np.uint8), r"uint8, sensors\.s.*expects uint16"),
        (dict(kind="image"), np.zeros((4, 4, 4), np.uint8), r"4 channels.*change sensors\.s\.channels"),
    ],
)
def test_images_that_are_not_what_the_config_says(options, array, words):
    with pytest.raises(SensorReadError, match=words):
        Sensor("s", **options).read(array)


@pytest.mark.parametrize("options", [dict(dtype="uint17"), dict(channels=3)])
def test_impossible_formats_name_the_key(options):
    with pytest.raises(ValueError, match=rf"sensors\.depth\.{next(iter(options))}"):
        Sensor("depth", "depth", **options)


def test_a_file_is_read_as_stored_whatever_its_exif_tag_says(tmp_path):
    """Turning one of several registered sensors by its tag would undo the registration."""
    from PIL import Image

    picture = np.zeros((8, 16, 3), np.uint8)
    picture[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(picture).save(tmp_path / "rgb.jpg", exif=exif, quality=95)
    for kind in ("color", "gray"):
        image = Sensor("rgb", kind).read(tmp_path / "rgb.jpg")
        assert image[:, :6].min() > 200
        assert image[:, 10:].max() < 50


def test_a_label_with_a_palette_is_read_by_number(tmp_path):
    from PIL import Image

    numbers = np.array([[0, 1, 2], [40, 255, 7]], np.uint8)
    image = Image.fromarray(numbers).convert("P")
    image.putdata(numbers.ravel().tolist())
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    image.save(tmp_path / "label.png")
    assert np.array_equal(read_label(tmp_path / "label.png"), numbers)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_grey_label_of_few_bits_is_read_by_number(tmp_path, bits):
    """OpenCV spreads them over 0..255, and the highest would be "ignore"."""
    numbers = np.random.default_rng(0).integers(0, 2**bits, (5, 8)).astype(np.uint8)
    per_bit = np.unpackbits(numbers[..., None], axis=2)[..., -bits:]
    rows = b"".join(b"\0" + np.packbits(row.ravel()).tobytes() for row in per_bit)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8, 5, bits, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows)),
              (b"IEND", b"")]
    content = b"".join(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
                       for name, body in chunks)
    (tmp_path / "label.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert np.array_equal(read_label(tmp_path / "label.png"), numbers)


@pytest.mark.parametrize("ending", ["tif", "bmp", "png"])
def test_a_label_of_one_bit_is_read_by_number_from_any_format(tmp_path, ending):
    from PIL import Image

    numbers = np.random.default_rng(0).integers(0, 2, (5, 9)).astype(bool)
    Image.fromarray(numbers).save(tmp_path / f"label.{ending}")
    assert np.array_equal(read_label(tmp_path / f"label.{ending}"), numbers)
    whole = np.random.default_rng(0).integers(0, 256, (5, 9)).astype(np.uint8)
    assert np.array_equal(read_label(png(tmp_path / f"whole.{ending}", whole)), whole)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3)])
def test_sixteen_bits_are_no_colour_picture(tmp_path, shape):
    """OpenCV would keep the high byte alone."""
    path = png(tmp_path / "depth.png", np.full(shape, 2500, np.uint16))
    with pytest.raises(SensorReadError, match=r"depth\.png is uint16.*kind='color'.*change sensors\.rgb\.kind"):
        Sensor("rgb", "color").read(path)


def test_a_label_in_colours_is_refused(tmp_path):
    with pytest.raises(SensorReadError, match=r"label\.png.*one channel of class numbers"):
        read_label(png(tmp_path / "label.png", np.full((4, 4, 3), 9, np.uint8)))


def test_real_frames_hold_plausible_depth(shared_data):
    sensor = Sensor("depth", "depth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in sorted((shared_data / "rgbd_frames").glob("*-depth.png")):
            metres = sensor.read(path)
            assert 0.4 < np.median(metres[metres > 0]) < 3
            assert (metres == 0).any()
