"""The converter on a small file with the official one's keys, types and axis order."""
from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from mmfusion_plugin.segmentation import nyuv2_convert
from mmfusion_plugin.segmentation.nyuv2_convert import ConversionError, Options, convert

h5py = pytest.importorskip("h5py")
FRAMES = 4


def frame(i):
    """RGB, in-filled and raw depth in metres, label 0..894, all (480, 640): what MATLAB users see."""
    rng = np.random.default_rng(i)
    rgb = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    depth = np.full((480, 640), 1.0 + i, np.float32) + np.arange(640, dtype=np.float32) / 640
    raw = np.where(rng.random((480, 640)) < 0.25, 0, depth).astype(np.float32)
    label = np.zeros((480, 640), np.uint16)
    label[100:200, 50:350] = np.arange(1, 301)
    return rgb, depth, raw, label


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("official")
    with h5py.File(root / "labeled.mat", "w") as file:
        stacks = [np.stack(part) for part in zip(*(frame(i) for i in range(FRAMES)))]
        file["images"] = stacks[0].transpose(0, 3, 2, 1)
        for key, part in zip(("depths", "rawDepths", "labels"), stacks[1:]):
            file[key] = part.transpose(0, 2, 1)
        file["instances"] = np.zeros((FRAMES, 640, 480), np.uint8)
        names = file.create_dataset("names", (1, 894), dtype=h5py.ref_dtype)
        for i in range(894):
            codes = file.create_dataset(f"#refs#/{i}", data=np.array([[ord(c)] for c in f"name{i}"], np.uint16))
            names[0, i] = codes.ref
    savemat(root / "splits.mat", dict(trainNdxs=np.array([[3], [1]]), testNdxs=np.array([[2], [4]])))
    to40 = np.random.default_rng(0).integers(1, 41, (1, 894)).astype(np.uint8)
    savemat(root / "mapping.mat", dict(mapClass=to40))
    return root


def run(sources, out, **options):
    return convert(sources / "labeled.mat", sources / "splits.mat", sources / "mapping.mat", out, Options(**options))


def read(out, folder, i):
    return cv2.imread(str(out / folder / f"{i:04d}.png"), -1)


def test_frames_stand_upright_with_the_right_values(sources, tmp_path):
    report = run(sources, tmp_path / "out")
    to40 = loadmat(sources / "mapping.mat")["mapClass"][0]
    for i in range(FRAMES):
        rgb, depth, _, label = frame(i)
        assert np.array_equal(read(tmp_path / "out", "RGB", i + 1)[..., ::-1], rgb)
        stored = read(tmp_path / "out", "Depth", i + 1)
        assert stored.dtype == np.uint16
        assert np.abs(stored / 1000 - depth).max() < 0.0006
        expected = [[0 if v == 0 else to40[v - 1] for v in row] for row in label[95:205, 45:355]]
        assert np.array_equal(read(tmp_path / "out", "Label", i + 1)[95:205, 45:355], expected)
    assert (tmp_path / "out" / "train.txt").read_text() == "RGB/0001.png\nRGB/0003.png\n"
    assert (tmp_path / "out" / "test.txt").read_text() == "RGB/0002.png\nRGB/0004.png\n"
    assert (report.frames, report.train, report.test, report.written) == (4, 2, 2, 4)
    assert sum(report.class_pixels) == 4 * 480 * 640
    assert report.invalid_share == 0


def test_raw_depth_keeps_its_holes(sources, tmp_path):
    report = run(sources, tmp_path / "out", depth="raw")
    assert np.array_equal(read(tmp_path / "out", "Depth", 2) == 0, frame(1)[2] == 0)
    assert report.invalid_share == pytest.approx(0.25, abs=0.01)


def test_standard_crop(sources, tmp_path):
    run(sources, tmp_path / "out", crop="standard")
    assert np.array_equal(read(tmp_path / "out", "RGB", 1)[..., ::-1], frame(0)[0][45:471, 41:601])


def test_an_interrupted_conversion_goes_on(sources, tmp_path):
    def die_at_third(frames):
        for i in frames:
            if i == 2:
                raise KeyboardInterrupt
            yield i

    arguments = (sources / "labeled.mat", sources / "splits.mat", sources / "mapping.mat", tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        convert(*arguments, progress=die_at_third)
    kept = tmp_path / "out" / "RGB" / "0001.png"
    stamp = kept.stat().st_mtime_ns
    broken = tmp_path / "out" / "Depth" / "0002.png"
    broken.write_bytes(broken.read_bytes()[:40])
    assert not (tmp_path / "out" / "train.txt").exists()
    assert convert(*arguments).written == 3
    assert kept.stat().st_mtime_ns == stamp
    assert read(tmp_path / "out", "Depth", 2) is not None
    assert convert(*arguments).written == 0


def test_one_frame_at_a_time(sources, tmp_path, monkeypatch):
    read_rows = []
    original = h5py.Dataset.__getitem__

    def counting(self, key, *rest):
        value = original(self, key, *rest)
        if self.name in ("/images", "/depths", "/labels"):
            read_rows.append(value.size)
        return value

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counting)
    run(sources, tmp_path / "out")
    assert max(read_rows) == 3 * 480 * 640


def test_another_conversion_is_never_overwritten(sources, tmp_path):
    run(sources, tmp_path / "out")
    before = (tmp_path / "out" / "Depth" / "0001.png").read_bytes()
    with pytest.raises(ConversionError, match="holds another conversion"):
        run(sources, tmp_path / "out", depth="raw")
    assert (tmp_path / "out" / "Depth" / "0001.png").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("a")
    with pytest.raises(ConversionError, match="no conversion of ours"):
        run(sources, tmp_path / "mine")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("splits.mat", dict(trainNdxs=[[1]], testNdxs=[[1]]), "both parts"),
        ("splits.mat", dict(trainNdxs=[[1]], testNdxs=[[9]]), r"names frames 1\.\.9"),
        ("splits.mat", dict(trainNdxs=[[1]]), "holds no testNdxs"),
        ("mapping.mat", dict(mapClass=[[1, 41]]), r"1\.\.40"),
        ("mapping.mat", dict(mapClass=[[1, 2]]), r"holds label 300, classMapping40\.mat maps 1\.\.2"),
        ("mapping.mat", b"no matlab", "no readable"),
        ("labeled.mat", b"no hdf5", "no HDF5"),
        ("labeled.mat", dict(images=np.zeros((1, 3, 640, 480), np.uint8)), r"lacks \['depths', 'labels'\]"),
        ("labeled.mat", dict(images=np.zeros((1, 480, 640, 3), np.uint8), depths=np.zeros((1, 640, 480)),
                             labels=np.zeros((1, 640, 480))), "images has shape"),
        ("labeled.mat", dict(images=np.zeros((2, 3, 640, 480), np.uint8), depths=np.zeros((1, 640, 480)),
                             labels=np.zeros((1, 640, 480))), "different numbers"),
    ],
)
def test_wrong_sources_say_what_is_wrong(sources, tmp_path, name, content, words):
    for path in sources.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / name).unlink()
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif name == "labeled.mat":
        with h5py.File(tmp_path / name, "w") as file:
            for key, value in content.items():
                file[key] = value
    else:
        savemat(tmp_path / name, {key: np.array(value) for key, value in content.items()})
    with pytest.raises(ConversionError, match=words):
        run(tmp_path, tmp_path / "out")


def test_absent_sources_are_named(sources, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mat"):
        convert(tmp_path / "nowhere.mat", sources / "splits.mat", sources / "mapping.mat", tmp_path / "out")


def test_unknown_options():
    with pytest.raises(ConversionError, match="depth must be one of"):
        Options(depth="hha")


def test_the_official_split_and_mapping(shared_data):
    meta = shared_data / "nyuv2_meta"
    train, test = nyuv2_convert._read_splits(meta / "splits.mat")
    nyuv2_convert._check_splits(train, test, 1449, "splits.mat")
    assert (len(train), len(test)) == (795, 654)
    to40 = nyuv2_convert._read_mapping(meta / "classMapping40.mat")
    assert (len(to40), to40[0], set(to40[1:])) == (895, 0, set(range(1, 41)))


def test_report_is_written(sources, tmp_path):
    run(sources, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["frames"] == FRAMES
