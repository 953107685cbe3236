"""Extract clips once to what is quick to read: JPEG frames and a wav file each, in the raw-frame layout of the field.

The layout, and how it is read again, is in :mod:`.frame_folders`. A clip is written under temporary names, then
its line is added to the manifest, then it gets its names: a clip without a line is not finished, one with a line
only lacks the renaming, so a killed run goes on with the same command.
"""
from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np

from mmfusion_plugin.engine.whole_files import replace_file

from .clip_lists import REASONS, SOUNDS, VIDEOS, ConversionError, count_reasons, read_lines
from .datasets import AudioVisualDataset
from .frame_folders import FRAME, MANIFEST, read_manifest
from .media import FrameIndex, MediaError, NoStream, frame_index, read_frames, read_sound, sound_span, write_wav

__all__ = ["ExtractionReport", "Options", "extract"]

PARTIAL = ".partial"
HELD = 128 << 20  # bytes of frames decoded at a time


@dataclass(frozen=True)
class Options:
    """How clips are extracted.

    ``fps``: frames per second to keep of a video that has more (None: all; never doubles one). ``short_side``:
    pixels to which the shorter side is shrunk (None: as it is; never enlarges). ``quality`` of the JPEG files,
    1 to 100. ``sample_rate`` of the wav files, Hz (None: as stored).
    Raises: ValueError for what makes no sense.
    """

    fps: float | None = None
    short_side: int | None = None
    quality: int = 95
    sample_rate: int | None = None

    def __post_init__(self) -> None:
        for key in ("fps", "short_side", "sample_rate"):
            value = getattr(self, key)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"--{key.replace('_', '-')} must be positive, got {value}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality must be 1 to 100, got {self.quality}")


@dataclass
class ExtractionReport:
    """What a run found: ``clips`` of the list, ``earlier`` of them extracted before; ``frames`` and ``seconds`` of
    sound in all; ``faults``: kind -> number of streams, their ``messages``; ``broken``: clips without any stream."""

    clips: int = 0
    earlier: int = 0
    frames: int = 0
    seconds: float = 0.0
    broken: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = [
            f"{self.clips} clips ({self.earlier} extracted earlier): {self.frames} frames, "
            f"{self.seconds:.1f} s of sound"
        ]
        lines += [f"  {number:6d}  {reason}" for reason, number in self.faults.items()]
        if self.broken:
            lines.append(f"  {self.broken:6d}  clips of which nothing can be read")
        return "\n".join([*lines, *self.messages[:5], *(["..."] if len(self.messages) > 5 else [])])


@dataclass(frozen=True)
class _Job:
    clip: str  # its name below the folder of the output
    media: Mapping[str, str | None]
    target: Path
    state: str  # of its sources


def extract(
    data_root: str | Path,
    ann_file: str,
    out: str | Path,
    options: Options | None = None,
    data_prefix: Mapping[str, str] | None = None,
    fields: Sequence[str] = ("visual", "label"),
    delimiter: str | None = None,
    audio_suffix: str = ".wav",
    overwrite: bool = False,
    processes: int = 1,
    progress: Callable[[Iterable, int], Iterable] = lambda results, total: results,
) -> ExtractionReport:
    """Extract every clip of a list of :class:`AudioVisualDataset`, whose options are these.

    Writes ``OUT/<clip>/img_00001.jpg ...``, ``OUT/<clip>.wav`` (16-bit PCM, mono), where a clip is its listed path
    without ending; their lines in ``OUT/manifest.jsonl``; and ``OUT/<name of the list>`` with lines ``<clip> label``.
    The wav file begins at time 0 of the video: sound that sets in later has silence before it, and its line says when.

    Args:
        overwrite: clips extracted otherwise, or since changed, are done again; other files in the way are replaced.
        processes: that decode in parallel.
        progress: wraps the clips as they are done, of which ``total`` come, for a progress bar.

    Raises: ConversionError for files in the way, clips of one name or with two endings, and a decoder that dies;
        ValueError and FileNotFoundError as AudioVisualDataset does for the list; OSError for files that the system
        does not let it open.
    """
    options, out = options or Options(), Path(out)
    jobs, listed = _jobs(Path(data_root), ann_file, out, data_prefix, fields, delimiter, audio_suffix)
    manifest = out / MANIFEST
    known = _known(manifest)
    settings = asdict(options)
    todo, refused = [], []
    copy = out / Path(ann_file).name
    written = {os.path.realpath(path) for path in (copy, *(path for job in jobs for path in _targets(job)))}
    sources = {os.path.realpath(path) for job in jobs for path in job.media.values() if path is not None}
    own = written & (sources | {os.path.realpath(Path(data_root) / ann_file)})
    if own:
        raise ConversionError(f"{sorted(own)[:5]} would be replaced by what is made from it; choose another --out")
    for job in jobs:
        line = known.get(job.clip)
        same = line is not None and (line.get("state"), line.get("options")) == (job.state, settings)
        if same:
            _put_in_place(job)
        if same and _is_complete(line, job):
            continue
        todo.append(job)
        refused += [str(path) for path in _targets(job) if path.exists() and not same]
    new_list = not copy.exists() or copy.read_text(encoding="utf-8") != listed
    if new_list and copy.exists():
        refused.append(str(copy))
    if refused and not overwrite:
        raise ConversionError(
            f"{refused[:5]} ({len(refused)} in all) are there already, but were not made from these clips with these "
            "options; nothing is overwritten without --overwrite"
        )
    again = {job.clip for job in todo} & set(known)
    if again:  # now: a killed run must not take an old line for that of a new clip
        replace_file(manifest, "".join(json.dumps(line) + "\n" for clip, line in known.items() if clip not in again))
    out.mkdir(parents=True, exist_ok=True)
    with open(manifest, "a", encoding="utf-8") as file:
        if manifest.stat().st_size and not manifest.read_bytes().endswith(b"\n"):
            file.write("\n")  # a killed run left half a line
        for job, line in progress(_results(todo, options, processes), len(todo)) if todo else ():
            known[job.clip] = line
            file.write(json.dumps(line) + "\n")
            file.flush()
            _put_in_place(job)
    if new_list:
        replace_file(copy, listed)
    return _report([known[job.clip] for job in jobs], len(jobs) - len(todo))


def _jobs(data_root, ann_file, out, data_prefix, fields, delimiter, audio_suffix) -> tuple[list[_Job], str]:
    """A job per clip, and the text of the list for the output."""
    path = data_root / ann_file
    labels = {}  # as written: no class has to be known here
    for number, line in enumerate(read_lines(path) if path.is_file() else [], 1):
        if line.strip():
            labels[number] = line.strip().rsplit(delimiter, 1)[-1].strip()
    if all(label.isdecimal() for label in labels.values()):
        classes = dict(num_classes=max(map(int, labels.values()), default=0) + 1)
    else:
        classes = dict(metainfo=dict(classes=sorted(set(labels.values()))))
    dataset = AudioVisualDataset(
        ann_file, [], data_prefix, fields, delimiter, audio_suffix=audio_suffix, data_root=str(data_root), **classes)
    jobs, lines, taken = [], [], {}
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        m = "visual" if info["media"]["visual"] else "audio"
        folder = dataset.data_prefix.get(m, dataset.data_prefix["visual"])
        clip = _without_ending(Path(os.path.relpath(info["media"][m], folder or "."))).as_posix()
        if clip.startswith("../"):
            raise ConversionError(f"{path}, line {info['line']}: {clip} would be written outside of {out}")
        if _without_ending(Path(clip)).as_posix() != clip:
            raise ConversionError(
                f"{path}, line {info['line']}: the clip would be named {clip}, of which the list would lose "
                f"{Path(clip).suffix}; rename the file"
            )
        if clip in taken:
            raise ConversionError(
                f"{path}: lines {taken[clip]} and {info['line']} differ only in the ending; both would be {out / clip}"
            )
        taken[clip] = info["line"]
        jobs.append(_Job(clip, info["media"], out / clip, "|".join(map(_state, info["media"].values()))))
        lines.append(f"{clip} {'_'.join(labels[info['line']].split())}\n")
    return jobs, "".join(lines)


def _without_ending(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() in VIDEOS | SOUNDS else path


def _state(path: str | None) -> str:
    if path is None or not os.path.isfile(path):
        return "absent"
    stat = os.stat(path)
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _known(manifest: Path) -> dict[str, dict]:
    try:
        return read_manifest(manifest) if manifest.is_file() else {}
    except ValueError as error:
        raise ConversionError(f"{error}; choose another --out") from error


def _targets(job: _Job) -> tuple[Path, Path]:
    return job.target, job.target.with_name(job.target.name + ".wav")


def _partial(target: Path) -> Path:
    return target.with_name(target.name + PARTIAL)


def _put_in_place(job: _Job) -> None:
    """Give a clip whose line is written its names; what was there before it is replaced."""
    for target in _targets(job):
        if _partial(target).exists():
            _remove(target)
            os.replace(_partial(target), target)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _is_complete(line: Mapping, job: _Job) -> bool:
    frames, sound = _targets(job)
    if "times" in line:
        names = set(os.listdir(frames)) if frames.is_dir() else set()
        if not {FRAME.format(i + 1) for i in range(len(line["times"]))} <= names:
            return False
    return "seconds" not in line or sound.is_file()


def _results(jobs: Sequence[_Job], options: Options, processes: int) -> Iterable[tuple[_Job, dict]]:
    if processes == 1 or len(jobs) < 2:
        return ((job, _extract_clip(job, options)) for job in jobs)
    pool = ProcessPoolExecutor(min(processes, len(jobs)))
    # Now, not with the first result: a progress bar may have a thread, and forking beside one can hang.
    return _collected(pool, {pool.submit(_extract_clip, job, options): job for job in jobs})


def _collected(pool: ProcessPoolExecutor, running: Mapping[Future, _Job]) -> Iterator[tuple[_Job, dict]]:
    try:
        for future in as_completed(running):
            yield running[future], future.result()
    except BrokenProcessPool as error:
        raise ConversionError(
            "a decoding process died: killed, or crashed by a damaged file; run the same command again, with "
            "--processes 1 to see at which clip"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _extract_clip(job: _Job, options: Options) -> dict:
    """Write one clip under temporary names; its line of the manifest."""
    line: dict = {"clip": job.clip, "state": job.state, "options": asdict(options)}
    frames, sound = map(_partial, _targets(job))
    job.target.parent.mkdir(parents=True, exist_ok=True)
    for m, partial, write in (("visual", frames, _write_frames), ("audio", sound, _write_sound)):
        _remove(partial)
        try:
            if job.media[m] is None:
                raise NoStream(f"the list names no {m} file")
            line |= write(job.media[m], partial, options)
        except MediaError as error:
            _remove(partial)
            line.setdefault("faults", {})[m] = [type(error).__name__, str(error)]
        except av.FFmpegError as error:
            _remove(partial)
            line.setdefault("faults", {})[m] = ["DamagedMedia", f"{job.media[m]}: {error}"]
    return line


def _write_frames(path: str, folder: Path, options: Options) -> dict:
    index = frame_index(path)
    numbers = _thinned(index, options.fps)
    folder.mkdir()
    held = max(HELD // max(3 * index.size[0] * index.size[1], 1), 8)
    size = None
    for start in range(0, len(numbers), held):
        part = numbers[start : start + held]
        for i, picture in enumerate(read_frames(path, index.times[part], index)[0], start + 1):
            picture = _shrunk(picture, options.short_side)
            size = size or picture.shape[:2]
            ok, data = cv2.imencode(
                ".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, options.quality])
            if not ok:
                raise MediaError(f"{path}: a frame of {picture.shape} cannot be written as JPEG")
            (folder / FRAME.format(i)).write_bytes(data.tobytes())
    times = index.times[numbers]
    length = index.end - float(times[0])
    return dict(
        frames=len(numbers), fps=round(len(numbers) / length, 3) if length > 0 else None, size=list(size),
        end=index.end, times=times.tolist())


def _thinned(index: FrameIndex, fps: float | None) -> np.ndarray:
    """Numbers of the frames on screen at every 1/fps s, each once."""
    if fps is None:
        return np.arange(len(index.times))
    ticks = np.arange(max(np.ceil((index.end - index.times[0]) * fps - 1e-6), 1)) / fps
    return np.unique(index.at(index.times[0] + ticks))


def _shrunk(picture: np.ndarray, short_side: int | None) -> np.ndarray:
    H, W = picture.shape[:2]
    if short_side is None or min(H, W) <= short_side:
        return picture
    scale = short_side / min(H, W)
    return cv2.resize(picture, (round(W * scale), round(H * scale)), interpolation=cv2.INTER_AREA)


def _write_sound(path: str, target: Path, options: Options) -> dict:
    sound, sample_rate = read_sound(path, sample_rate=options.sample_rate)
    write_wav(target, sound, sample_rate)
    return dict(seconds=round(len(sound) / sample_rate, 6), sample_rate=sample_rate, sound=sound_span(path))


def _report(lines: Sequence[Mapping], earlier: int) -> ExtractionReport:
    reasons = {kind.__name__: reason for kind, reason in REASONS.items()}
    faults = [(m, *fault) for line in lines for m, fault in line.get("faults", {}).items()]
    return ExtractionReport(
        clips=len(lines), earlier=earlier,
        frames=sum(line.get("frames", 0) for line in lines), seconds=sum(line.get("seconds", 0.0) for line in lines),
        broken=Counter(len(line.get("faults", {})) for line in lines)[2],
        faults=count_reasons(f"{m}: {reasons.get(kind, 'damaged')}" for m, kind, _ in faults),
        messages=[message for *_, message in faults])
