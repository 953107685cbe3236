"""Clips as ``tools/extract_clips.py`` leaves them: a folder of JPEG frames and a wav file each, and a manifest.

    OUT/<clip>/img_00001.jpg ...      OUT/<clip>.wav      OUT/manifest.jsonl

A line of the manifest is one clip: when each frame comes on screen, or what was wrong with its source.
"""
from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from .media import DamagedMedia, EmptyStream, FrameIndex, MediaError, MissingFile, NoStream

__all__ = ["FRAME", "MANIFEST", "absent", "extracted_span", "folder_index", "read_folder", "read_manifest"]

MANIFEST = "manifest.jsonl"
FRAME = "img_{:05d}.jpg"  # counted from 1, the raw-frame layout of mmaction2 and its converters
KINDS = {kind.__name__: kind for kind in (MissingFile, NoStream, EmptyStream, DamagedMedia)}


def folder_index(path: str | Path) -> FrameIndex:
    """The frames of an extracted clip, by the manifest in the nearest folder above it.

    Raises: as :func:`absent` if there is no such folder; MissingFile for a folder without a line in a manifest.
    """
    if not os.path.isdir(path):
        raise absent(path, "visual")
    line = _line_of(path)
    if line is None or "times" not in line:
        raise MissingFile(
            f"{path}: this folder of frames has no line in a {MANIFEST} above it, so the times of its frames are not "
            "known; make it with tools/extract_clips.py"
        )
    try:
        times, (H, W), end = np.array(line["times"], np.float64), line["size"], float(line["end"])
        number = np.arange(len(times))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedMedia(
            f"{path}: its line in the {MANIFEST} above it gives no times, size and end; run tools/extract_clips.py "
            "again"
        ) from error
    return FrameIndex(number, np.ones(len(times), bool), times, False, (H, W), end)


def read_folder(
    path: str | Path, times: Sequence[float], index: FrameIndex | None = None
) -> tuple[list[np.ndarray], np.ndarray]:
    """As :func:`.media.read_frames`, from a folder of frames.

    Raises: as :func:`folder_index`; DamagedMedia for a frame that is not there or no picture.
    """
    index = folder_index(path) if index is None else index
    numbers = index.at(times)
    pictures = {i: _picture(Path(path) / FRAME.format(i + 1), len(index.times)) for i in sorted(set(numbers.tolist()))}
    return [pictures[i].copy() for i in numbers.tolist()], index.times[numbers]


def extracted_span(path: str | Path) -> tuple[float, float] | None:
    """Seconds at which the sound of an extracted clip begins and ends in its source; None for other wav files.

    The wav file itself begins at time 0 of the video.
    Raises: DamagedMedia for a line of the manifest that holds something else.
    """
    span = (_line_of(str(path).removesuffix(".wav")) or {}).get("sound")
    if span is None:
        return None
    try:
        begin, end = map(float, span)
    except (TypeError, ValueError) as error:
        raise DamagedMedia(
            f"{path}: its line in the {MANIFEST} above it gives no span of sound; run tools/extract_clips.py again"
        ) from error
    return begin, end


def absent(path: str | Path, modality: str) -> MediaError:
    """The error for an extracted stream that is not there: what its source lacked, by the manifest, or MissingFile."""
    clip = str(path).removesuffix(".wav") if modality == "audio" else path
    faults = (_line_of(clip) or {}).get("faults")
    fault = faults.get(modality) if isinstance(faults, dict) else None
    kind, message = fault if isinstance(fault, list) and len(fault) == 2 else ("MissingFile", "no such file")
    return KINDS.get(str(kind), DamagedMedia)(f"{path}: {message}")


def read_manifest(path: str | Path) -> dict[str, dict]:
    """Lines by clip, the last one counting. Half a line of a killed run is left out.

    Raises: ValueError for a file of this name that is no manifest of extracted clips.
    """
    return {clip: _parsed(line) for clip, _, line in _lines(path)}


def _lines(path):
    """(clip, offset in bytes, line) of every whole line."""
    offset = 0
    with open(path, "rb") as file:
        for line in file:
            found = _parsed(line)
            if found is not None:
                if not isinstance(found.get("clip"), str):
                    raise ValueError(f"{path} is no manifest of extracted clips: {line[:80]!r}")
                yield found["clip"], offset, line
            offset += len(line)


def _parsed(line: bytes) -> dict | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # brackets nested too deeply
        return None
    return found if isinstance(found, dict) else None


def _picture(path: Path, number: int) -> np.ndarray:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedMedia(
            f"{path} is missing, the {MANIFEST} gives its clip {number} frames; run tools/extract_clips.py again"
        ) from error
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error:  # a header that claims more than 2^30 pixels, or more than the memory holds
        picture = None
    if picture is None:
        raise DamagedMedia(f"{path} is no picture; remove it and run tools/extract_clips.py again")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _line_of(path: str | Path) -> dict | None:
    path = os.path.abspath(path)
    for folder in Path(path).parents:
        manifest = folder / MANIFEST
        if manifest.is_file():
            stat = manifest.stat()
            offsets = _offsets(str(manifest), stat.st_size, stat.st_mtime_ns)
            offset = offsets.get(Path(path).relative_to(folder).as_posix())
            if offset is None:
                return None
            with open(manifest, "rb") as file:
                file.seek(offset)
                return _parsed(file.readline())
    return None


@lru_cache(maxsize=8)
def _offsets(manifest: str, size: int, modified: int) -> dict[str, int]:
    """Where each clip's line begins: all the time stamps of a large data set are too much for every worker."""
    try:
        return {clip: offset for clip, offset, _ in _lines(manifest)}
    except ValueError:  # another tool's
        return {}
