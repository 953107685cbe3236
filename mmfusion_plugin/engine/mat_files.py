"""Arrays of numbers out of MATLAB's version 5 files, as ``save -v7`` and ``save -v6`` write them.

Checked at every step, because scipy's reader indexes a table with a byte of the file: damaged files crash the process
(scipy 1.17). Names as in MathWorks, "MAT-File Format", chapter 1: a file is a header and elements, an element is a tag
(type and length) and data, an array is an element of elements.
"""
from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["MatFile", "MatFileError"]

HEADER = 128
INT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 5, 6, 14, 15
TYPES = {INT8: "i1", 2: "u1", 3: "i2", 4: "u2", INT32: "i4", UINT32: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
OTHERS = {1: "a cell array", 2: "a structure", 3: "an object", 4: "text", 5: "a sparse array"}
COMPLEX = 0x0800
OUTLINE = 1 << 16  # bytes that hold an array's flags, dimensions and name
INFLATES = 1032  # times at most, says zlib
DIMENSIONS = 32  # as many as numpy of every release has


class MatFileError(ValueError):
    """No file of version 5, a damaged one, or not the arrays that were asked for. The message names the file."""


class _Array(NamedTuple):
    """Where an array lies, and what its beginning says: the class of its numbers, shape, whether they are complex."""

    element: memoryview
    compressed: bool
    kind: int
    shape: tuple[int, ...]
    imaginary: bool


class MatFile:
    """The arrays of a file; of several with one name the last.

    Raises: MatFileError; OSError for a file that cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        data = memoryview(self.path.read_bytes())
        self.order = {b"IM": "<", b"MI": ">"}.get(bytes(data[126:HEADER]), "")
        version = int(np.frombuffer(data[124:126], self.order + "u2")[0]) if self.order else 0
        if version != 0x0100:
            found = "version 7.3, which is HDF5" if version == 0x0200 else "another kind of file"
            raise self._error(f"expected version 5, found {found}; save it with -v7 in MATLAB")
        self._arrays: dict[str, _Array] = {}
        for kind, element in self._elements(data[HEADER:]):
            if kind in (MATRIX, COMPRESSED):
                name, array = self._outline(element, kind == COMPRESSED)
                self._arrays[name] = array

    @property
    def names(self) -> list[str]:
        return list(self._arrays)

    def nbytes(self, name: str) -> int:
        """Size of the array in memory, as its beginning claims; 0 for what :meth:`read` refuses."""
        array = self._array(name)
        return math.prod(array.shape) * np.dtype(CLASSES[array.kind]).itemsize if array.kind in CLASSES else 0

    def read(self, name: str) -> np.ndarray:
        """A copy of the array, in this machine's byte order.

        Raises: MatFileError for an absent or damaged array, and for anything but an array of real numbers.
        """
        array = self._array(name)
        if array.kind not in CLASSES or array.imaginary:
            found = "complex" if array.imaginary else OTHERS.get(array.kind, f"of class {array.kind}")
            raise self._error(f"{name!r} is {found}, expected an array of real numbers")
        size, target = math.prod(array.shape), CLASSES[array.kind]
        if size > len(array.element) * (INFLATES if array.compressed else 1):
            raise self._error(f"{name!r} claims {size} numbers in {len(array.element)} bytes")
        # numbers may be stored wider than their class is
        body = self._inflated(array.element, OUTLINE + 8 * size, whole=True) if array.compressed else array.element
        kind, stored = list(self._array_elements(body, 4))[3]
        source = TYPES.get(kind, "")
        if not source or len(stored) != size * int(source[1]) or source[0] == "f" > target[0]:
            raise self._error(f"{name!r} is damaged: {len(stored)} bytes of type {kind} for {size} numbers ({target})")
        return np.frombuffer(stored, self.order + source).astype(target).reshape(array.shape, order="F")

    def _array(self, name: str) -> _Array:
        if name not in self._arrays:
            raise MatFileError(f"{self.path} holds no {name}; it holds {sorted(self._arrays)[:30]}")
        return self._arrays[name]

    def _outline(self, element: memoryview, compressed: bool) -> tuple[str, _Array]:
        start = self._inflated(element, OUTLINE, whole=False) if compressed else element
        (_, flags), (kind, shape), (_, name) = self._array_elements(start, 3)
        if len(flags) < 4 or kind != INT32 or len(shape) % 4 or not 8 <= len(shape) <= 4 * DIMENSIONS:
            if len(flags) < 4 or flags[0 if self.order == "<" else 3] in {*CLASSES, *OTHERS}:
                raise self._error("an array's flags or dimensions are damaged")
            return "", _Array(element, compressed, -1, (), False)  # functions and classes have another build
        sizes = tuple(np.frombuffer(shape, self.order + "i4").tolist())
        if min(sizes) < 0:
            raise self._error(f"an array of {sizes} numbers")
        bits = int(np.frombuffer(flags[:4], self.order + "u4")[0])
        return bytes(name).decode("ascii", "replace"), _Array(
            element, compressed, bits & 0xFF, sizes, bool(bits & COMPLEX))

    def _array_elements(self, body: memoryview, number: int) -> Iterator[tuple[int, memoryview]]:
        found = self._elements(body)
        for _ in range(number):
            element = next(found, None)
            if element is None:
                raise self._error("an array ends before its data")
            yield element

    def _inflated(self, element: memoryview, limit: int, whole: bool) -> memoryview:
        """The array in a compressed element: all of it, or at most ``limit`` bytes."""
        inflating = zlib.decompressobj()
        try:
            data = memoryview(inflating.decompress(element, limit))
        except zlib.error as error:
            raise self._error(f"damaged compressed data: {error}") from error
        if whole and not inflating.eof:  # where zlib has compared its checksum
            raise self._error("compressed data that are cut, or longer than the array's size")
        if len(data) < 8 or self._number(data[:4]) != MATRIX:
            raise self._error("compressed data that are no array")
        return data[8:]

    def _elements(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """(type, content) one after the other; the last may be cut where ``data`` is a beginning."""
        at = 0
        while at + 8 <= len(data):
            kind, size, begin = self._number(data[at:at + 4]), self._number(data[at + 4:at + 8]), at + 8
            if kind >> 16:  # up to four bytes, in the tag itself
                kind, size, begin = kind & 0xFFFF, kind >> 16, at + 4
            end = begin + size
            if end > len(data) or begin == at + 4 and size > 4:
                raise self._error(f"an element of {size} bytes at {at}, where {len(data) - begin} are left")
            yield kind, data[begin:end]
            at = end if kind == COMPRESSED else end + -end % 8

    def _number(self, data: memoryview) -> int:
        return int.from_bytes(data, "little" if self.order == "<" else "big")

    def _error(self, what: str) -> MatFileError:
        return MatFileError(f"{self.path} is no readable .mat file: {what}")
