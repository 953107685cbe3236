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


def link(sources, target):
    for path in sources.iterdir():
        (target / path.name).symlink_to(path)


def copy_with(sources, target, key, change):
    """The same sources in ``target``, with one array of the .mat changed in place."""
    link(sources, target)
    (target / "labeled.mat").unlink()
    (target / "labeled.mat").write_bytes((sources / "labeled.mat").read_bytes())
    with h5py.File(target / "labeled.mat", "r+") as file:
        array = file[key][()]
        change(array)
        file[key][...] = array


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
    broken.write_bytes(broken.read_bytes()[:-400])
    assert not (tmp_path / "out" / "train.txt").exists()
    resumed = convert(*arguments)
    assert resumed.written == 3
    assert kept.stat().st_mtime_ns == stamp
    whole = run(sources, tmp_path / "whole")
    for folder in ("RGB", "Depth", "Label"):
        for i in range(1, FRAMES + 1):
            assert np.array_equal(read(tmp_path / "out", folder, i), read(tmp_path / "whole", folder, i))
    assert (resumed.invalid_share, resumed.class_pixels) == (whole.invalid_share, whole.class_pixels)
    report = (tmp_path / "out" / "report.json").read_bytes()
    assert convert(*arguments).written == 0
    assert (tmp_path / "out" / "report.json").read_bytes() == report


@pytest.mark.parametrize("strange", [np.zeros((480, 640), np.uint8), np.zeros((240, 320), np.uint16)])
def test_a_finished_file_of_another_kind_is_made_anew(sources, tmp_path, strange):
    run(sources, tmp_path / "out")
    cv2.imwrite(str(tmp_path / "out" / "Depth" / "0002.png"), strange)
    assert run(sources, tmp_path / "out").written == 1
    assert read(tmp_path / "out", "Depth", 2).shape == (480, 640)


def test_depth_without_meaning_becomes_zero_and_what_is_too_far_is_counted(sources, tmp_path):
    values = [np.nan, np.inf, -1.0, 0.0, 65.535, 65.54, 9.9996, 0.0004]
    copy_with(sources, tmp_path, "depths", lambda depths: depths[2].__setitem__((slice(0, 8), 0), values))
    report = run(tmp_path, tmp_path / "out")
    assert read(tmp_path / "out", "Depth", 3)[0, :8].tolist() == [0, 0, 0, 0, 65535, 0, 10000, 0]
    assert report.too_far == 1
    assert report.invalid_share == pytest.approx(6 / (FRAMES * 480 * 640))


def test_depth_in_millimetres_is_refused(sources, tmp_path):
    copy_with(sources, tmp_path, "depths", lambda depths: depths.__imul__(1000))
    with pytest.raises(ConversionError, match="frame 1: every reading of depths is beyond 65.535 m"):
        run(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("share", [0.3, 0.999])
def test_a_download_cut_short_is_named(sources, tmp_path, share):
    link(sources, tmp_path)
    whole = (sources / "labeled.mat").read_bytes()
    (tmp_path / "labeled.mat").unlink()
    (tmp_path / "labeled.mat").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ConversionError, match="not wholly downloaded"):
        run(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_chunk_is_named_by_frame(sources, tmp_path):
    link(sources, tmp_path)
    (tmp_path / "labeled.mat").unlink()
    with h5py.File(sources / "labeled.mat") as old, h5py.File(tmp_path / "labeled.mat", "w") as new:
        for key in ("images", "depths", "labels"):
            new.create_dataset(key, data=old[key], chunks=(1, *old[key].shape[1:]), compression="gzip")
        spot = new["depths"].id.get_chunk_info(2)
    with open(tmp_path / "labeled.mat", "r+b") as file:
        file.seek(spot.byte_offset + spot.size // 2)
        file.write(bytes(64))
    with pytest.raises(ConversionError, match="frame 3 is damaged"):
        run(tmp_path, tmp_path / "out")
    assert read(tmp_path / "out", "Depth", 2) is not None
    assert not (tmp_path / "out" / "train.txt").exists()


def test_chunks_across_frames_are_unpacked_once(sources, tmp_path, monkeypatch):
    """Against HDF5's own cache of 1 MiB, which unpacks a chunk of four frames four times."""
    link(sources, tmp_path)
    (tmp_path / "labeled.mat").unlink()
    with h5py.File(sources / "labeled.mat") as old, h5py.File(tmp_path / "labeled.mat", "w") as new:
        for key in ("images", "depths", "labels"):
            new.create_dataset(key, data=old[key], chunks=(FRAMES, *old[key].shape[1:]), compression="gzip")
    bytes_read = []
    original = h5py.File

    class Counting:
        """A file that counts what HDF5 asks of it."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def readinto(self, buffer):
            got = self.file.readinto(buffer)
            bytes_read.append(got)
            return got

    monkeypatch.setattr(h5py, "File", lambda path, mode, **caches: original(Counting(open(path, "rb")), mode, **caches))
    run(tmp_path, tmp_path / "out")
    assert sum(bytes_read) < 1.5 * (tmp_path / "labeled.mat").stat().st_size


def test_a_mapping_of_an_unknown_kind_is_no_readable_mat(sources, tmp_path):
    """scipy 1.17 stumbles over its own missing branch there: an UnboundLocalError."""
    link(sources, tmp_path)
    (tmp_path / "mapping.mat").unlink()
    damaged = bytearray((sources / "mapping.mat").read_bytes())
    damaged[144] = 0  # the array's class
    (tmp_path / "mapping.mat").write_bytes(damaged)
    with pytest.raises(ConversionError, match=r"mapping\.mat is no readable \.mat file"):
        run(tmp_path, tmp_path / "out")


def test_a_changed_mapping_is_another_conversion(sources, tmp_path):
    link(sources, tmp_path)
    run(tmp_path, tmp_path / "out")
    to40 = loadmat(sources / "mapping.mat")["mapClass"]
    to40[0, 5] = to40[0, 5] % 40 + 1
    (tmp_path / "mapping.mat").unlink()
    savemat(tmp_path / "mapping.mat", dict(mapClass=to40))
    with pytest.raises(ConversionError, match=r"differs in \['mapping_crc32'\]"):
        run(tmp_path, tmp_path / "out")


def test_training_reads_what_was_written(sources, tmp_path):
    pytest.importorskip("mmseg")
    from mmfusion_plugin.segmentation.datasets import NYUDepthV2Dataset

    run(sources, tmp_path / "out")
    depth = dict(kind="depth", dtype="uint16", scale=0.001, invalid=0, valid_range=(0.1, 10.0))
    pipeline = [
        dict(type="LoadModalities", modalities=["rgb", "depth"], sensors=dict(rgb=dict(kind="color"), depth=depth)),
        dict(type="LoadSegLabel"),
    ]
    test = NYUDepthV2Dataset(data_root=str(tmp_path / "out"), ann_file="test.txt", pipeline=pipeline)
    to40 = loadmat(sources / "mapping.mat")["mapClass"][0]
    assert len(test) == 2
    rgb, metres, _, label = frame(3)
    sample = test[1]
    assert np.array_equal(sample["img"][..., ::-1], rgb)
    np.testing.assert_allclose(sample["depth"], metres, atol=0.0006)
    assert sample["gt_seg_map"][150, 50] == to40[label[150, 50] - 1] - 1
    assert sample["gt_seg_map"][0, 0] == 255


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
    with pytest.raises(ConversionError, match="is a file"):
        run(sources, tmp_path / "mine" / "a.txt")
    (tmp_path / "out" / "spec.json").write_text("{")
    with pytest.raises(ConversionError, match="is no JSON"):
        run(sources, tmp_path / "out")


def arrays(**other):
    """One well-formed frame, but for ``other``."""
    good = dict(images=np.zeros((1, 3, 640, 480), np.uint8), depths=np.ones((1, 640, 480), np.float32),
                labels=np.zeros((1, 640, 480), np.uint16))
    return {**good, **other}


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
        ("mapping.mat", dict(classMapping13=[[1, 2]]), "holds no mapClass"),
        ("splits.mat", dict(trainNdxs=[[1, 1]], testNdxs=[[2]]), "lists a frame twice"),
        ("splits.mat", dict(trainNdxs=[[0]], testNdxs=[[2]]), r"names frames 0\.\.2, the \.mat file holds 1\.\.4"),
        ("labeled.mat", dict(images=np.zeros((1, 3, 640, 480), np.uint8)), r"lacks the arrays \['depths', 'labels'\]"),
        ("labeled.mat", arrays(images=np.zeros((1, 480, 640, 3), np.uint8)), "images has shape"),
        ("labeled.mat", arrays(images=np.zeros((1, 3, 640, 480))), "images is float64, expected uint8"),
        ("labeled.mat", arrays(labels=np.zeros((1, 640, 480))), "labels is float64, expected unsigned"),
        ("labeled.mat", arrays(depths=np.zeros((1, 640, 480), np.uint16)), "depths is uint16, expected float metres"),
        ("labeled.mat", arrays(images=np.zeros((2, 3, 640, 480), np.uint8)), "different numbers"),
        ("labeled.mat", {f"{key}/inner": np.zeros(1) for key in ("images", "depths", "labels")}, "lacks the arrays"),
    ],
)
def test_wrong_sources_say_what_is_wrong(sources, tmp_path, name, content, words):
    link(sources, tmp_path)
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
    held = sorted(int(path.stem) for path in (shared_data / "nyuv2_half" / "Label").glob("*.png"))
    assert held == train


def test_the_official_mapping_agrees_with_the_official_names(shared_data):
    """A class that carries its name among the 894 maps to itself: no index is off by one."""
    path = shared_data / "nyuv2_meta" / "classMapping40.mat"
    stored = loadmat(path)
    names40, names894 = ([str(cell[0]) for cell in stored[key].ravel()] for key in ("className", "allClassName"))
    to40 = nyuv2_convert._read_mapping(path)
    same = [(names40[to40[i + 1] - 1], name) for i, name in enumerate(names894) if name in names40]
    assert len(same) > 30
    assert all(mapped == name for mapped, name in same)


def test_report_is_written(sources, tmp_path):
    run(sources, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["frames"] == FRAMES
