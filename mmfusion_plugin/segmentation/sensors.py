"""Read one sensor's file and say plainly what is wrong with it."""
from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mmfusion_plugin.engine.file_cache import FileCache, file_version

__all__ = ["DepthFormatError", "Sensor", "SensorReadError", "read_label"]

KINDS = ("color", "gray", "image", "depth")
# A sensor registered to the others is so as stored: turning one file by its EXIF tag would undo that.
STORED = cv2.IMREAD_IGNORE_ORIENTATION
FLAGS = {"color": cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | STORED,
         "gray": cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | STORED}
UNCACHED = FileCache(0)
PNG = b"\x89PNG"
BITS = 258  # TIFF's tag of the bits per sample
MUCH = 0.5  # share of the readings outside the plausible range that points to a wrong unit


class SensorReadError(OSError):
    """A sensor's or label's file is missing, unreadable or of an unusable shape."""


class DepthFormatError(ValueError):
    """A depth image is stored in another number format than the config says."""


@dataclass
class Sensor:
    """How one modality is stored.

    Args:
        name: the modality.
        kind: ``color`` (8-bit, three channels, kept in BGR), ``gray`` (one channel, 8 or 16 bit; a
            colour file is turned into its luminance), ``image`` (as stored: HHA and the like) or
            ``depth`` (one channel, metres).
        dtype: number format of the file. Depth: uint16 unless named; images: uint8 unless named.
        channels: of an ``image``: a missing one has to be filled with as many.
        scale, offset: of depth: metres = stored x scale + offset. 16-bit millimetres: 0.001. Images
            keep their counts, so that mean and std of the preprocessor, and valid_range of noise, are in counts too.
        invalid: depth: stored value that means "no reading"; None if there is none.
        valid_range: depth: metres; readings outside become invalid.

    Raises: ValueError for an unknown kind or impossible numbers.
    """

    name: str
    kind: str = "color"
    dtype: str | None = None
    channels: int | None = None
    scale: float = 0.001
    offset: float = 0.0
    invalid: float | None = 0
    valid_range: tuple[float, float] = (0.1, 10.0)
    _warned: bool = field(default=False, repr=False)
    _table_of: tuple = field(default=(), repr=False, compare=False)
    _tables: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"sensors.{self.name}.kind must be one of {list(KINDS)}, got {self.kind!r}")
        if self.dtype is None and self.kind == "depth":
            self.dtype = "uint16"
        if self.dtype is not None:
            try:
                np.dtype(self.dtype)
            except TypeError as error:
                raise ValueError(
                    f"sensors.{self.name}.dtype must name a number format such as 'uint16', got {self.dtype!r}"
                ) from error
        fixed = {"color": 3, "gray": 1, "depth": 1}.get(self.kind, self.channels or 3)
        if self.channels not in (None, fixed) or fixed < 1:
            raise ValueError(
                f"sensors.{self.name}.channels is {self.channels}, kind={self.kind!r} has {fixed}; leave it out"
            )
        self.channels = fixed
        low, high = self.valid_range
        if not (self.scale > 0 and 0 <= low < high):
            raise ValueError(
                f"sensors.{self.name} needs scale > 0 and 0 <= valid_range[0] < valid_range[1], got "
                f"scale={self.scale}, valid_range={self.valid_range}"
            )

    @property
    def rides_with_label(self) -> bool:
        """Depth moves by nearest neighbour: an average of two depths lies on neither surface."""
        return self.kind == "depth"

    def read(self, source: str | Path | np.ndarray, cache: FileCache = UNCACHED) -> np.ndarray:
        """(H, W, C) for image kinds, uint8 or float32 counts; (H, W) float32 metres, 0 = invalid, for depth.

        An array is taken as if it had been read from a file, but a float depth array as metres, unless
        ``dtype`` says that the sensor stores floats.
        Raises: SensorReadError, DepthFormatError.
        """
        where = "the given array" if isinstance(source, np.ndarray) else str(source)
        if isinstance(source, np.ndarray):
            raw = source
        else:
            raw = _decode(source, FLAGS.get(self.kind, cv2.IMREAD_UNCHANGED), f"modality {self.name!r}", cache)
        if self.kind == "depth":
            return self._metres(raw, where, in_metres=isinstance(source, np.ndarray))
        return self._image(raw, where)

    def _image(self, raw: np.ndarray, where: str) -> np.ndarray:
        image = raw[:, :, None] if raw.ndim == 2 else raw
        if image.ndim != 3 or image.shape[2] != self.channels:
            found = f"{image.shape[2]} channels" if image.ndim == 3 else f"shape {raw.shape}"
            change = "channels" if self.kind == "image" else "kind"
            raise SensorReadError(
                f"{where}: {found}, sensors.{self.name} with kind={self.kind!r} has {self.channels}; "
                f"change sensors.{self.name}.{change}"
            )
        wanted = np.dtype("uint8" if self.kind == "color" else self.dtype or "uint8")
        if image.dtype != wanted:
            counts = "" if self.kind == "color" else (
                f"; with it data_preprocessor.mean.{self.name} and std.{self.name}, and the valid_range of its noise, "
                "to the file's counts")
            raise SensorReadError(
                f"{where} is {image.dtype}, sensors.{self.name} with kind={self.kind!r} and dtype={self.dtype!r} "
                f"expects {wanted}; change sensors.{self.name}.{'kind' if self.kind == 'color' else 'dtype'} or the "
                f"file{counts}"
            )
        return image if image.dtype == np.uint8 else image.astype(np.float32)

    def _metres(self, raw: np.ndarray, where: str, in_metres: bool) -> np.ndarray:
        if raw.ndim == 3 and raw.shape[2] == 1:
            raw = raw[:, :, 0]
        if raw.ndim != 2:
            raise DepthFormatError(
                f"{where}: shape {raw.shape}, a depth image has one channel; for HHA and other encoded depth "
                f"set sensors.{self.name}.kind='image'"
            )
        in_metres = in_metres and np.issubdtype(raw.dtype, np.floating) and not np.issubdtype(self.dtype, np.floating)
        if in_metres:
            metres = raw.astype(np.float32)
            known = np.isfinite(metres) & (metres > 0)
        else:
            if raw.dtype != np.dtype(self.dtype):
                raise DepthFormatError(
                    f"{where} is {raw.dtype}, sensors.{self.name}.dtype says {self.dtype}; set dtype and scale "
                    "(metres per count: 0.001 for 16-bit millimetres, 10/255 for 8 bit over 0-10 m)"
                )
            if raw.dtype in (np.uint8, np.uint16):
                return self._metres_by_table(raw, where)
            known = np.isfinite(raw) if self.invalid is None else np.isfinite(raw) & (raw != self.invalid)
            metres = raw.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset)
        low, high = self.valid_range
        inside = known & (metres >= low) & (metres <= high)
        self._doubt(int(known.sum()), int(inside.sum()), lambda: metres[known], where, in_metres)
        return np.where(inside, metres, np.float32(0))

    def _metres_by_table(self, raw: np.ndarray, where: str) -> np.ndarray:
        """The same through a table of all stored values: one pass over the picture."""
        key = (raw.dtype, self.scale, self.offset, self.invalid, *self.valid_range)
        if key != self._table_of:
            self._table_of, self._tables = key, self._make_tables(raw.dtype)
        kept, metres, known = self._tables
        found = kept[raw]
        inside = int(np.count_nonzero(found))
        if not self._warned and inside < (1 - MUCH) * raw.size:
            read = raw[known[raw]]
            self._doubt(read.size, inside, lambda: metres[read], where)
        return found

    def _make_tables(self, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By stored value: metres or 0, metres whatever their range, whether it is a reading."""
        stored = np.arange(np.iinfo(dtype).max + 1)
        metres = stored.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset)
        known = np.ones(len(stored), bool) if self.invalid is None else stored != self.invalid
        low, high = self.valid_range
        return np.where(known & (metres >= low) & (metres <= high), metres, np.float32(0)), metres, known

    def _doubt(self, known: int, inside: int, readings: Callable[[], np.ndarray], where: str,
               in_metres: bool = False) -> None:
        if self._warned or not known or inside >= (1 - MUCH) * known:
            return
        self._warned = True
        advice = "A float array is taken as metres" if in_metres else (
            f"Is sensors.{self.name}.scale={self.scale} (metres per count) right?")
        warnings.warn(
            f"{where}: {1 - inside / known:.0%} of the depth readings lie outside {tuple(self.valid_range)} m (median "
            f"{np.median(readings()):.3g} m) and are dropped. {advice}",
            stacklevel=2,
        )


def read_label(path: str | Path, cache: FileCache = UNCACHED) -> np.ndarray:
    """(H, W) integer label as stored; of a PNG with a palette, or of fewer than 8 bits, the numbers, not the colours.

    Raises: SensorReadError if unreadable or not one channel of whole numbers.
    """
    return _kept(path, "label", cache, _read_label)


def _read_label(path: str | Path) -> np.ndarray:
    label = _decode_file(path, cv2.IMREAD_UNCHANGED, "the label")
    with open(path, "rb") as file:
        head = file.read(26)
    if label.ndim == 2 and head.startswith(PNG):
        bits, colour = head[24:26]
        if bits < 8 and colour == 0:
            label //= _step(bits)
    elif label.ndim == 3 or label.dtype == np.uint8:
        label = _by_number(path, label)
    if label.ndim != 2 or not np.issubdtype(label.dtype, np.integer):
        raise SensorReadError(
            f"the label {path} is {label.dtype} of shape {label.shape}; a label has one channel of class numbers"
        )
    return label


def _step(bits: int) -> int:
    """How far apart OpenCV and Pillow put grey numbers of 1, 2 or 4 bits: over 0..255."""
    return 255 // (2**bits - 1)


def _by_number(path: str | Path, label: np.ndarray) -> np.ndarray:
    """OpenCV turns a palette's numbers into colours and one bit into 0 and 255; Pillow keeps both."""
    try:
        with Image.open(path) as image:
            if image.mode in ("1", "P"):
                return np.array(image).astype(np.uint8)
            bits = getattr(image, "tag_v2", {}).get(BITS, (8,))[0]
    # what Pillow raises for bytes that OpenCV could read
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise SensorReadError(f"the label: {path} is no readable image ({error})") from error
    return label // _step(bits) if label.ndim == 2 and bits < 8 else label


def _decode(path: str | Path, flag: int, what: str, cache: FileCache) -> np.ndarray:
    return _kept(path, flag, cache, lambda path: _decode_file(path, flag, what))


def _kept(path: str | Path, kind: object, cache: FileCache, read: Callable[[str | Path], np.ndarray]) -> np.ndarray:
    if not cache.limit:
        return read(path)
    key, version = (str(path), kind), file_version(path)
    found = cache.get(key, version)
    if found is None:
        found = read(path)
        found.flags.writeable = False  # the next epoch's, too
        cache.put(key, version, found, found.nbytes)
    return found


def _decode_file(path: str | Path, flag: int, what: str) -> np.ndarray:
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise SensorReadError(f"{what}: cannot read {path}: {error.strerror or error}") from error
    try:
        image = cv2.imdecode(data, flag) if data.size else None
    except cv2.error as error:  # a header that claims more than 2^30 pixels, or more than the memory holds
        raise SensorReadError(f"{what}: {path} is no readable image ({data.size} bytes): {error.err}") from error
    if image is None:
        raise SensorReadError(f"{what}: {path} is no readable image ({data.size} bytes)")
    return image
