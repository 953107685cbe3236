"""NYU Depth v2's labelled ``.mat`` to the folders that training reads.

``nyu_depth_v2_labeled.mat`` is HDF5 (MATLAB v7.3), whose axes come out reversed: ``images`` reads as
(frames, 3, 640, 480), ``depths``/``rawDepths`` as (frames, 640, 480) metres, ``labels`` as (frames,
640, 480) with 0 unlabelled and 1..894 an index into ``names``. One frame is held in memory at a time.
"""
from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

__all__ = ["ConversionError", "Options", "Report", "convert"]

DEPTHS = {"filled": "depths", "raw": "rawDepths"}
CROPS = {"none": (0, 480, 0, 640), "standard": (45, 471, 41, 601)}  # the border left by rectification
FOLDERS = ("RGB", "Depth", "Label")
CLASSES = 40
MILLIMETRES = 65535


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
    """What was written. ``invalid_share``: depth pixels without a reading; ``class_pixels``: pixels of
    unlabelled and of each class 1..40, both over the frames written in this call."""

    frames: int
    train: int
    test: int
    written: int
    invalid_share: float
    class_pixels: list[int]


def convert(mat: str | Path, splits: str | Path, mapping: str | Path, out: str | Path,
            options: Options = Options(), progress: Callable[[Iterable], Iterable] = lambda frames: frames) -> Report:
    """Convert the labelled set; run again to go on after an interruption.

    Args:
        mat: ``nyu_depth_v2_labeled.mat``.
        splits: ``splits.mat`` (1-based ``trainNdxs``, ``testNdxs``).
        mapping: ``classMapping40.mat`` (``mapClass`` (1, 894) with values 1..40).
        out: folder for RGB/NNNN.png, Depth/NNNN.png (16-bit millimetres, 0 = no reading),
            Label/NNNN.png (1..40, 0 unlabelled), train.txt, test.txt, report.json; NNNN is the 1-based
            index in ``mat``.
        options: see :class:`Options`.
        progress: wraps the frames, for a progress bar.

    Raises: ConversionError for wrong sources or a folder that holds another conversion;
        FileNotFoundError for absent ones.
    """
    import h5py

    out = Path(out)
    to40 = _read_mapping(Path(mapping))
    train, test = _read_splits(Path(splits))
    if not Path(mat).is_file():
        raise FileNotFoundError(f"no such file: {mat}")
    if not h5py.is_hdf5(mat):
        raise ConversionError(f"{mat} is no HDF5 file; nyu_depth_v2_labeled.mat is 2.8 GB of MATLAB v7.3")
    with h5py.File(mat, "r") as source:
        frames = _check_source(source, str(mat), options)
        _check_splits(train, test, frames, str(splits))
        _claim(out, dict(frames=frames, splits=[len(train), len(test)], **asdict(options)))
        report = Report(frames, len(train), len(test), 0, 0.0, [0] * (CLASSES + 1))
        invalid = pixels = 0
        for index in progress(range(frames)):
            paths = {folder: out / folder / f"{index + 1:04d}.png" for folder in FOLDERS}
            if all(_readable(path) for path in paths.values()):
                continue
            rgb, depth, label = _frame(source, index, to40, options)
            for folder, image in (("RGB", rgb[..., ::-1]), ("Depth", depth), ("Label", label)):
                _write(paths[folder], image)
            report.written += 1
            invalid += int((depth == 0).sum())
            pixels += depth.size
            report.class_pixels = (report.class_pixels + np.bincount(label.ravel(), minlength=CLASSES + 1)).tolist()
    report.invalid_share = invalid / pixels if pixels else 0.0
    _verify(out, frames)
    for name, indices in (("train.txt", train), ("test.txt", test)):
        _replace(out / name, "".join(f"RGB/{i:04d}.png\n" for i in indices).encode())
    if report.written:
        _replace(out / "report.json", json.dumps(asdict(report), indent=1).encode())
    return report


def _frame(source, index: int, to40: np.ndarray, options: Options) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(H, W, 3) RGB uint8, (H, W) uint16 millimetres, (H, W) uint8 label of one frame."""
    top, bottom, left, right = CROPS[options.crop]
    window = np.s_[top:bottom, left:right]
    rgb = source["images"][index].transpose(2, 1, 0)[window]
    metres = source[DEPTHS[options.depth]][index].T[window]
    stored = source["labels"][index].T[window]
    if int(stored.max()) >= len(to40):
        raise ConversionError(
            f"frame {index + 1} holds label {int(stored.max())}, classMapping40.mat maps 1..{len(to40) - 1}"
        )
    millimetres = np.round(np.where(np.isfinite(metres), metres, 0).astype(np.float64) * 1000)
    depth = np.where((millimetres > 0) & (millimetres <= MILLIMETRES), millimetres, 0).astype(np.uint16)
    return rgb, depth, to40[stored]


def _check_source(source, name: str, options: Options) -> int:
    needed = {"images": (3, 640, 480), DEPTHS[options.depth]: (640, 480), "labels": (640, 480)}
    lacking = sorted(set(needed) - set(source))
    if lacking:
        raise ConversionError(f"{name} lacks {lacking}; it holds {sorted(source)[:20]}")
    for key, shape in needed.items():
        if source[key].shape[1:] != shape:
            raise ConversionError(f"{name}: {key} has shape {source[key].shape}, expected (frames, *{shape})")
    numbers = {key: source[key].shape[0] for key in needed}
    if len(set(numbers.values())) > 1:
        raise ConversionError(f"{name} holds different numbers of frames: {numbers}")
    if source["images"].dtype != np.uint8:
        raise ConversionError(f"{name}: images is {source['images'].dtype}, expected uint8")
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
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        return loadmat(path, variable_names=[key])[key]
    except KeyError:
        raise ConversionError(f"{path} holds no {key}") from None
    except (MatReadError, ValueError, NotImplementedError, OSError) as error:
        raise ConversionError(f"{path} is no readable .mat file: {error}") from error


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
    if path.is_file():
        stored = json.loads(path.read_text())
        if stored != spec:
            raise ConversionError(f"{out} holds another conversion ({stored}), asked is {spec}; choose another folder")
    elif out.exists() and any(out.iterdir()):
        raise ConversionError(f"{out} is not empty and no conversion of ours; choose another folder")
    for folder in FOLDERS:
        (out / folder).mkdir(parents=True, exist_ok=True)
    _replace(path, json.dumps(spec).encode())


def _readable(path: Path) -> bool:
    return path.is_file() and cv2.imread(str(path), cv2.IMREAD_UNCHANGED) is not None


def _write(path: Path, image: np.ndarray) -> None:
    done, data = cv2.imencode(".png", np.ascontiguousarray(image))
    if not done:
        raise OSError(f"cannot encode {path}")
    _replace(path, data.tobytes())


def _replace(path: Path, data: bytes) -> None:
    """Write whole or not at all: a killed run leaves no half file under the final name."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def _verify(out: Path, frames: int) -> None:
    for folder in FOLDERS:
        number = sum(1 for path in (out / folder).glob("*.png"))
        if number != frames:
            raise ConversionError(f"{out / folder} holds {number} files, expected {frames}")
