"""Lists of clips: class names, and what the converters of audio-visual data sets share.

A clip is a video and its sound, paired by name, never by position in a list. Every clip is decoded from
end to end, as training may ask for any part of it; what was found out is kept in ``checked.jsonl``, one
line per clip, so that an interrupted check goes on where it stopped. A line holds as long as the files
keep their size and time.
"""
from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import numpy as np

from mmfusion_plugin.engine.whole_files import replace_file

from .media import (
    DamagedMedia,
    EmptyStream,
    MediaError,
    MissingFile,
    NoStream,
    frame_index,
    probe,
    read_frames,
    read_sound,
    sound_span,
)

__all__ = [
    "SOUNDS", "VIDEOS", "Clip", "ConversionError", "check_clip", "check_clips", "class_key", "count_reasons",
    "find_files", "load_class_list", "read_lines", "refuse_empty", "refuse_existing", "report_text", "table",
    "write_list",
]

CLASS_LISTS = Path(__file__).parent / "class_lists"

VIDEOS = frozenset(".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .ts .webm .wmv".split())
SOUNDS = frozenset(".aac .flac .m4a .mp3 .ogg .opus .wav".split())
REASONS = {MissingFile: "no file", NoStream: "no stream", EmptyStream: "empty stream", DamagedMedia: "damaged"}
HELD = 128 << 20  # bytes of frames decoded at a time: fewer jumps back to a key frame the more there are


class ConversionError(ValueError):
    """The folder is not what the data set looks like, or the target holds something else."""


@dataclass(frozen=True)
class Clip:
    """``visual``: the video; ``audio``: the sound, the same path where it is in the container."""

    id: str
    label: int
    split: str
    visual: Path
    audio: Path


def class_key(name: str) -> str:
    """What two spellings of a class have in common: ``Playing_Guitar`` and ``playing guitar`` are one."""
    return " ".join(name.replace("_", " ").lower().split())


def load_class_list(name: str | Path) -> list[str]:
    """Class names in label order: of ``ks31``, ``ks32``, ``ks33``, ``ks34``, or of a text file.

    One name per line; blank lines and lines that start with ``#`` do not count.

    Raises: FileNotFoundError for an unknown name or path, ValueError for no name or a doubled one.
    """
    path = CLASS_LISTS / f"{name}.txt"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        known = sorted(known.stem for known in CLASS_LISTS.glob("*.txt"))
        raise FileNotFoundError(f"class_list={str(name)!r} is none of {known} and no such file")
    lines = [line.strip() for line in read_lines(path)]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise ValueError(f"{path} names no class")
    doubled = [key for key, number in Counter(map(class_key, names)).items() if number > 1]
    if doubled:
        raise ValueError(f"{path} names classes more than once: {doubled}")
    return names


def read_lines(path: Path) -> list[str]:
    """Lines that end in a line feed: names may hold what ``str.splitlines`` ends a line at.

    Raises: ValueError for what is no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from error


def find_files(root: Path, endings: frozenset[str]) -> dict[str, list[Path]]:
    """Files below ``root`` by name without ending, sorted; names that begin with a dot do not count."""
    found: dict[str, list[Path]] = {}
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            stem, ending = os.path.splitext(name)
            if ending.lower() in endings and not name.startswith("."):
                found.setdefault(stem, []).append(Path(folder) / name)
    return found


def check_clip(visual: Path, audio: Path) -> dict:
    """Decode both streams from end to end.

    Returns: ``reason`` None, or what is wrong such as ``audio: no stream``, and then ``message``; else
        ``frames``, ``seconds`` of sound and whether it is ``silent`` (digital zero throughout).
    Raises: OSError for a file that the system does not let it open.
    """
    stream = "visual"
    try:
        index, header = frame_index(visual), probe(visual)
        times = index.times
        number = max(HELD // max(header.width * header.height * 3, 1), 8)
        for start in range(0, len(times), number):
            read_frames(visual, times[start : start + number], index)
        stream = "audio"
        sound, sample_rate = read_sound(audio)
        begin, end = sound_span(audio)
        if begin > index.end or end < times[0]:
            raise EmptyStream(f"{audio} has sound from {begin:.3f} s to {end:.3f} s only, its picture lasts from "
                              f"{times[0]:.3f} s to {index.end:.3f} s")
    except MediaError as error:
        return dict(reason=f"{stream}: {REASONS.get(type(error), 'damaged')}", message=str(error))
    except av.FFmpegError as error:
        return dict(reason=f"{stream}: damaged", message=f"{visual if stream == 'visual' else audio}: {error}")
    return dict(reason=None, frames=len(times), seconds=round(len(sound) / sample_rate, 3),
                silent=not np.any(sound))


def check_clips(clips: Sequence[Clip], manifest: Path, root: Path, processes: int = 1,
                progress: Callable[[Iterable, int], Iterable] = lambda results, total: results) -> dict[str, dict]:
    """:func:`check_clip` for every clip that ``manifest`` does not know yet, in parallel processes.

    Args:
        manifest: file of one JSON object per line; results are appended as they come.
        root: paths in the manifest are relative to it.
        progress: wraps the results, of which ``total`` come, for a progress bar.

    Returns: results by clip id.
    Raises: ConversionError for a name that no list can hold, and if a process dies, which a decoder can do on a
        damaged file; OSError for a file that the system does not let it open.
    """
    for clip in clips:
        for path in (clip.visual, clip.audio):
            if any(letter in "\n\r" or "\ud800" <= letter <= "\udfff" for letter in str(path)):
                raise ConversionError(f"{str(path)!r}: a list holds no line break and no name that is not UTF-8; "
                                      "rename it")
    known = _read_manifest(manifest)
    keys = {clip.id: _fingerprint(clip, root) for clip in clips}
    new = [clip for clip in clips if keys[clip.id] not in known]
    manifest.parent.mkdir(parents=True, exist_ok=True)
    with open(manifest, "a", encoding="utf-8") as file:
        if new and manifest.stat().st_size and not manifest.read_bytes().endswith(b"\n"):
            file.write("\n")  # a killed run left half a line
        for clip, result in progress(_checked(new, processes), len(new)) if new else ():
            known[keys[clip.id]] = result
            file.write(json.dumps({"key": keys[clip.id], **result}) + "\n")
            file.flush()
    return {clip.id: known[keys[clip.id]] for clip in clips}


def _checked(clips: Sequence[Clip], processes: int) -> Iterable[tuple[Clip, dict]]:
    if processes == 1 or len(clips) < 2:
        return ((clip, check_clip(clip.visual, clip.audio)) for clip in clips)
    pool = ProcessPoolExecutor(min(processes, len(clips)))
    # Now, not with the first result: a progress bar may have a thread, and forking beside one can hang.
    waiting = iter(clips)
    running = {_submit(pool, clip): clip for clip in islice(waiting, 2 * processes)}
    return _collected(pool, running, waiting)


def _submit(pool: ProcessPoolExecutor, clip: Clip) -> Future:
    return pool.submit(check_clip, clip.visual, clip.audio)


def _collected(pool: ProcessPoolExecutor, running: dict[Future, Clip],
               waiting: Iterator[Clip]) -> Iterator[tuple[Clip, dict]]:
    try:
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                result = future.result()
                clip = running.pop(future)
                running |= {_submit(pool, clip): clip for clip in islice(waiting, 1)}
                yield clip, result
    except BrokenProcessPool as error:
        suspects = [str(clip.visual) for clip in running.values()]
        raise ConversionError(
            f"a decoding process died: killed, or crashed by a damaged file, which is one of {suspects}; move them "
            "away and run the same command again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _fingerprint(clip: Clip, root: Path) -> str:
    parts = []
    for path in dict.fromkeys((clip.visual, clip.audio)):
        state = [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else ["absent"]
        parts += [_relative(path, root), *map(str, state)]
    return "|".join(parts)


def _read_manifest(path: Path) -> dict[str, dict]:
    known = {}
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            result = json.loads(line)
            known[result.pop("key")] = result
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            continue  # half a line of a killed run: that clip is checked again
    return known


def write_list(path: Path, clips: Sequence[Clip], visual_root: Path, audio_root: Path | None = None) -> None:
    """One line per clip: ``path label``, or path, path and label between tabs where sound has files of its own."""
    lines = []
    for clip in sorted(clips, key=lambda clip: clip.id):
        fields = [_relative(clip.visual, visual_root)]
        if audio_root is not None:
            fields.append(_relative(clip.audio, audio_root))
        lines.append((" " if audio_root is None else "\t").join([*fields, str(clip.label)]) + "\n")
    replace_file(path, "".join(lines))


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(reasons).items()))


def table(rows: Sequence[Sequence]) -> str:
    """Rows of text in columns, the first one to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in cells
    )


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Raises: ConversionError for files that are there, unless they may be overwritten."""
    there = [str(path) for path in paths if path.exists()]
    if there and not overwrite:
        raise ConversionError(f"{there[:5]} exist already; nothing is overwritten without --overwrite")


def refuse_empty(parts: Iterable[str], kept: Iterable[Clip], reasons: Mapping[str, int]) -> None:
    """Raises: ConversionError for parts of which no clip is kept: their lists would take the place of good ones."""
    empty = [part for part in parts if part not in {clip.split for clip in kept}]
    if empty:
        why = ", ".join(f"{reason} ({number})" for reason, number in reasons.items())
        raise ConversionError(f"no clip is left for {', '.join(empty)}, so nothing is written; dropped were: "
                              f"{why or 'none'}; check the folders of pictures and of sound")


def report_text(title: str, facts: Mapping[str, object], dropped: Mapping[str, int], body: str) -> str:
    lines = [title, "", *(f"{key}: {value}" for key, value in facts.items()), ""]
    if dropped:
        lines += ["dropped:", *(f"  {number:6d}  {reason}" for reason, number in dropped.items()), ""]
    return "\n".join([*lines, body, ""])
