"""NYU Depth v2's labelled ``.mat`` to the folders that training reads.

``nyu_depth_v2_labeled.mat`` is HDF5 (MATLAB v7.3), whose axes come out reversed: ``images`` reads as
(frames, 3, 640, 480), ``depths``/``rawDepths`` as (frames, 640, 480) metres, ``labels`` as (frames,
640, 480) with 0 unlabelled and 1..894 an index into ``names``. One frame is held in memory at a time,
beside HDF5's cache of at most ``CACHE`` bytes per array.
"""
from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np

from mmfusion_plugin.engine.mat_files import MatFile, MatFileError
from mmfusion_plugin.engine.whole_files import replace_file

__all__ = ["ConversionError", "Options", "Report", "convert"]

DEPTHS = {"filled": "depths", "raw": "rawDepths"}
CROPS = {"none": (0, 480, 0, 640), "standard": (45, 471, 41, 601)}  # the border left by rectification
FOLDERS = ("RGB", "Depth", "Label")
CLASSES = 40
MILLIMETRES = 65535
LISTED = 1 << 20  # bytes: more than any split or mapping of classes has
CACHE = 64 << 20  # a compressed chunk may span many frames; HDF5's own 1 MiB would unpack it for each of them


class ConversionError(ValueError):
    """The source files are not what NYU Depth v2 publishes, or the target holds something else."""


@dataclass(frozen=True)
class Options:
    """What to write: in-filled or raw depth, and the border crop (``none`` or ``standard``)."""

    depth: str = "filled"
    crop: str = "none"

    def __post_init__(self) -> None:
        if self.depth not in DEPTHS or self.crop not in CROPS:
            raise ConversionError(
                f"depth must be one of {list(DEPTHS)} and crop one of {list(CROPS)}, got {self.depth!r}, {self.crop!r}"
            )


@dataclass
class Report:
    """What the folder holds. ``invalid_share``: depth pixels without a reading; ``class_pixels``: pixels
    of unlabelled and of each class 1..40, both over all frames. ``written``: frames written in this call,
    the others were there already; ``too_far``: readings beyond 65.535 m among the frames of this call, which
    16 bits of millimetres cannot hold: stored as 0."""

    frames: int
    train: int
    test: int
    written: int = 0
    too_far: int = 0
    invalid_share: float = 0.0
    class_pixels: list[int] = field(default_factory=list)


def convert(mat: str | Path, splits: str | Path, mapping: str | Path, out: str | Path,
            options: Options = Options(), progress: Callable[[Iterable], Iterable] = lambda frames: frames) -> Report:
    """Convert the labelled set; run again to go on after an interruption.

    Args:
        mat: ``nyu_depth_v2_labeled.mat``.
        splits: ``splits.mat`` (1-based ``trainNdxs``, ``testNdxs``).
        mapping: ``classMapping40.mat`` (``mapClass`` (1, 894) with values 1..40).
        out: folder for RGB/NNNN.png, Depth/NNNN.png (16-bit millimetres, 0 = no reading),
            Label/NNNN.png (1..40, 0 unlabelled), train.txt, test.txt, report.json, spec.json; NNNN is the
            1-based index in ``mat``. Readings that are no number, not positive or beyond 65.535 m become 0.
        options: see :class:`Options`.
        progress: wraps the frames, for a progress bar.

    Raises: ConversionError for wrong or damaged sources or a folder that holds another conversion;
        FileNotFoundError for absent ones.
    """
    out = Path(out)
    to40 = _read_mapping(Path(mapping))
    train, test = _read_splits(Path(splits))
    with _open_source(Path(mat)) as source:
        with _named(str(mat)):
            frames = _check_source(source, str(mat), options)
        _check_splits(train, test, frames, str(splits))
        spec = dict(source_bytes=Path(mat).stat().st_size, frames=frames, train=len(train), test=len(test),
                    splits_crc32=_checksum(train, test), mapping_crc32=_checksum(to40.tolist()), **asdict(options))
        _claim(out, spec)
        report = Report(frames, len(train), len(test))
        _write_frames(source, str(mat), to40, options, out, progress, report)
    _verify(out, frames)
    for name, indices in (("train.txt", train), ("test.txt", test)):
        replace_file(out / name, "".join(f"RGB/{i:04d}.png\n" for i in indices))
    if report.written or not (out / "report.json").is_file():
        replace_file(out / "report.json", json.dumps(asdict(report), indent=1))
    return report


@contextmanager
def _open_source(mat: Path) -> Iterator:
    import h5py

    if not mat.is_file():
        raise FileNotFoundError(f"no such file: {mat}")
    if not h5py.is_hdf5(mat):
        raise ConversionError(f"{mat} is no HDF5 file; nyu_depth_v2_labeled.mat is 2.8 GB of MATLAB v7.3")
    with _named(str(mat)):
        source = h5py.File(mat, "r", rdcc_nbytes=CACHE, rdcc_nslots=10007)
    with source:
        yield source


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:  # h5py passes on what HDF5 makes of damaged bytes: OSError, RuntimeError, KeyError, ...
        raise ConversionError(f"{what} is damaged or not wholly downloaded, download it again "
                              f"({type(error).__name__}: {error})") from error


def _write_frames(source, name: str, to40: np.ndarray, options: Options, out: Path,
                  progress: Callable[[Iterable], Iterable], report: Report) -> None:
    """Write every frame that is not there yet; fill in the report's counts."""
    top, bottom, left, right = CROPS[options.crop]
    size = (bottom - top, right - left)
    invalid = 0
    class_pixels = np.zeros(CLASSES + 1, np.int64)
    # opened once: HDF5 drops an array's cache when it is closed
    arrays = [source[key] for key in ("images", DEPTHS[options.depth], "labels")]
    for index in progress(range(report.frames)):
        paths = [out / folder / f"{index + 1:04d}.png" for folder in FOLDERS]
        stored = _read_frame(paths, size)
        if stored is None:
            with _named(f"{name}: frame {index + 1}"):
                rgb, depth, label, far = _frame(arrays, index, to40, options)
            for path, image in zip(paths, (rgb[..., ::-1], depth, label)):
                _write(path, image)
            report.written += 1
            report.too_far += far
        else:
            depth, label = stored
        invalid += int((depth == 0).sum())
        class_pixels += np.bincount(label.ravel(), minlength=CLASSES + 1)
    report.invalid_share = invalid / (report.frames * size[0] * size[1])
    report.class_pixels = class_pixels.tolist()


def _frame(arrays, index: int, to40: np.ndarray, options: Options) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(H, W, 3) RGB uint8, (H, W) uint16 millimetres, (H, W) uint8 label of one frame; readings too far."""
    top, bottom, left, right = CROPS[options.crop]
    window = np.s_[top:bottom, left:right]
    images, depths, labels = arrays
    rgb = images[index].transpose(2, 1, 0)[window]
    metres = depths[index].T[window]
    stored = labels[index].T[window]
    if int(stored.max()) >= len(to40):
        raise ConversionError(
            f"frame {index + 1} holds label {int(stored.max())}, classMapping40.mat maps 1..{len(to40) - 1}"
        )
    metres = np.where(np.isfinite(metres) & (metres > 0), metres, 0).astype(np.float64)
    millimetres = np.round(metres * 1000)
    far = millimetres > MILLIMETRES
    if far.any() and far.sum() == (metres > 0).sum():
        raise ConversionError(
            f"frame {index + 1}: every reading of {DEPTHS[options.depth]} is beyond 65.535 m (median "
            f"{np.median(metres[far]):g}); expected metres"
        )
    return rgb, np.where(far, 0, millimetres).astype(np.uint16), to40[stored], int(far.sum())


def _check_source(source, name: str, options: Options) -> int:
    depths = DEPTHS[options.depth]
    # MATLAB type classes: numpy kind u unsigned, f floating
    needed = {"images": ((3, 640, 480), "u", 1), depths: ((640, 480), "f", None), "labels": ((640, 480), "u", None)}
    lacking = sorted(key for key in needed if not hasattr(source.get(key), "shape"))
    if lacking:
        raise ConversionError(f"{name} lacks the arrays {lacking}; it holds {sorted(source)[:20]}")
    for key, (shape, kind, bytes_each) in needed.items():
        array = source[key]
        if array.shape[1:] != shape:
            raise ConversionError(f"{name}: {key} has shape {array.shape}, expected (frames, *{shape})")
        if array.dtype.kind != kind or array.dtype.itemsize != (bytes_each or array.dtype.itemsize):
            expected = {"images": "uint8", depths: "float metres", "labels": "unsigned integers"}[key]
            raise ConversionError(f"{name}: {key} is {array.dtype}, expected {expected}")
    numbers = {key: source[key].shape[0] for key in needed}
    if len(set(numbers.values())) > 1 or not numbers["images"]:
        raise ConversionError(f"{name} holds no frames or different numbers of them: {numbers}")
    return numbers["images"]


def _read_mapping(path: Path) -> np.ndarray:
    """Lookup table from 0..894 to 0..40; 0 stays unlabelled."""
    to40 = _load_mat(path, "mapClass").ravel()
    if to40.size == 0 or to40.min() < 1 or to40.max() > CLASSES:
        raise ConversionError(f"{path}: mapClass must hold classes 1..{CLASSES}")
    return np.concatenate([[0], to40]).astype(np.uint8)


def _read_splits(path: Path) -> tuple[list[int], list[int]]:
    train, test = (sorted(_load_mat(path, key).ravel().astype(int).tolist()) for key in ("trainNdxs", "testNdxs"))
    return train, test


def _load_mat(path: Path, key: str) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        file = MatFile(path)
        if file.nbytes(key) > LISTED:
            raise ConversionError(f"{path}: {key} has {file.nbytes(key)} bytes, expected no more than {LISTED}")
        return file.read(key)
    except MatFileError as error:
        raise ConversionError(str(error)) from error


def _check_splits(train: list[int], test: list[int], frames: int, name: str) -> None:
    both = set(train) & set(test)
    if both:
        raise ConversionError(f"{name}: {len(both)} frames are in both parts, first {min(both)}")
    if len(set(train)) != len(train) or len(set(test)) != len(test) or not train or not test:
        raise ConversionError(f"{name}: a part is empty or lists a frame twice ({len(train)}, {len(test)})")
    low, high = min(train[0], test[0]), max(train[-1], test[-1])
    if low < 1 or high > frames:
        raise ConversionError(f"{name} names frames {low}..{high}, the .mat file holds 1..{frames}")


def _claim(out: Path, spec: dict) -> None:
    """Make ``out`` ours, or check that it is this very conversion, begun earlier."""
    path = out / "spec.json"
    if out.exists() and not out.is_dir():
        raise ConversionError(f"{out} is a file; --out names a folder")
    if path.is_file():
        try:
            stored = json.loads(path.read_text())
        except ValueError as error:
            raise ConversionError(f"{path} is no JSON ({error}); choose another folder") from error
        if stored != spec:
            other = sorted(key for key in {*spec, *stored} if stored.get(key) != spec.get(key)) \
                if isinstance(stored, dict) else list(spec)
            raise ConversionError(f"{out} holds another conversion, it differs in {other}: found {stored}, asked is "
                                  f"{spec}; choose another folder")
    elif out.exists() and any(out.iterdir()):
        raise ConversionError(f"{out} is not empty and no conversion of ours; choose another folder")
    for folder in FOLDERS:
        (out / folder).mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(spec))


def _checksum(*numbers: list[int]) -> int:
    return zlib.crc32(json.dumps(numbers).encode())


def _read_frame(paths: list[Path], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray] | None:
    """Depth and label of a frame whose three files are whole, else None."""
    images = []
    for path, shape, dtype in zip(paths, ((*size, 3), size, size), (np.uint8, np.uint16, np.uint8)):
        try:
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
        except cv2.error:
            return None
        if image is None or image.shape != shape or image.dtype != dtype:
            return None
        images.append(image)
    if images[2].max() > CLASSES:
        return None
    return images[1], images[2]


def _write(path: Path, image: np.ndarray) -> None:
    done, data = cv2.imencode(".png", np.ascontiguousarray(image))
    if not done:
        raise OSError(f"cannot encode {path}")
    replace_file(path, data.tobytes())


def _verify(out: Path, frames: int) -> None:
    for folder in FOLDERS:
        number = sum(1 for path in (out / folder).glob("*.png"))
        if number != frames:
            raise ConversionError(f"{out / folder} holds {number} files, expected {frames}")
