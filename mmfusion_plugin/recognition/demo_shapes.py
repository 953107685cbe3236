"""A data set that the repository makes itself: moving textured shapes with tones, one mp4 file per clip.

Neither modality suffices. There are three shapes, three tones and six classes: each shape sounds with
two of the tones and each tone belongs to two of the shapes, so picture or sound alone leaves two
classes open (50 % right at best) and both together leave one. Texture, colours, size, path, pitch,
timbre, loudness and noise say nothing about the class. Numpy only, deterministic for a seed.

:func:`write_clip_set` writes any such set in the layout of Kinetics: one folder per class.

Axes: T frames, H rows, W columns, S sound samples.
"""
from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from .media import write_clip

__all__ = ["CLASSES", "FPS", "SAMPLE_RATE", "SECONDS", "Job", "generate", "render", "write_clip_set"]

SHAPES = ("disc", "cross", "triangle")
TONES = ("rising", "falling", "pulsing")
CLASSES = ("disc_rising", "disc_falling", "cross_falling", "cross_pulsing", "triangle_pulsing", "triangle_rising")
FPS = 8
SAMPLE_RATE = 8000  # Hz
SECONDS = 1
VERSION = 3

# What renders a clip: (frames (T, H, W, 3) uint8, sound (S,) float32 in [-1, 1]).
Job = Callable[[], tuple[np.ndarray, np.ndarray]]
Progress = Callable[[Iterable, int], Iterable]


def write_clip_set(out: str | Path, clips: Mapping[str, Sequence[tuple[int, Job]]], classes: Sequence[str],
                   meta: Mapping, texts: Mapping[str, str], workers: int = 1, overwrite: bool = False,
                   progress: Progress = lambda done, total: done) -> Path:
    """Write ``OUT/<part>/<class>/<id>.mp4`` and ``OUT/<part>.txt`` with lines ``train/zero/0001.mp4 0``.

    Ids count through a part, so that they are unique in it. The folder appears under its name when it is whole; a
    folder that already holds the same set (equal META.json) is left as it is.

    Args:
        clips: label and job of every clip, by part ("train", ...). Jobs are called in ``workers`` processes.
        classes: folder names, by label.
        meta: what identifies the set: generator, version, seed, counts, ... (JSON); written to META.json.
        texts: further text files, by name.
        overwrite: replace a folder that holds another set of ours (one with META.json); any other folder stays.
        progress: wraps (finished clips, their number), for a progress bar.

    Raises: FileExistsError if ``out`` holds something else; ValueError for less than one worker.
    """
    if workers < 1:
        raise ValueError(f"need at least one worker, got {workers}")
    out = Path(out)
    meta = json.loads(json.dumps(dict(meta, classes=classes, parts={part: len(jobs) for part, jobs in clips.items()})))
    if _holds(out, meta, overwrite):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    partial_out = Path(tempfile.mkdtemp(prefix=f"{out.name}.", suffix=".partial", dir=out.parent))
    try:
        tasks = []
        for part, jobs in clips.items():
            names = [f"{part}/{classes[label]}/{i:04d}.mp4" for i, (label, _) in enumerate(jobs, 1)]
            tasks += [(partial_out / name, job) for name, (_, job) in zip(names, jobs)]
            for name in classes:
                (partial_out / part / name).mkdir(parents=True)
            lines = [f"{name} {label}\n" for name, (label, _) in zip(names, jobs)]
            (partial_out / f"{part}.txt").write_text("".join(lines))
        if workers == 1:
            _exhaust(progress(map(_write, tasks), len(tasks)))
        else:
            with ProcessPoolExecutor(workers) as pool:
                try:
                    _exhaust(progress(pool.map(_write, tasks, chunksize=16), len(tasks)))
                except BaseException:
                    pool.shutdown(cancel_futures=True)  # or leaving the block would first render all that is queued
                    raise
        for name, text in {**texts, "META.json": json.dumps(meta, indent=1) + "\n"}.items():
            (partial_out / name).write_text(text)
        partial_out.chmod(0o755)  # mkdtemp's folders are private
        _put(partial_out, out)
    finally:
        shutil.rmtree(partial_out, ignore_errors=True)
    return out


def _holds(out: Path, meta: dict, overwrite: bool) -> bool:
    """Whether ``out`` is this very set already; raises if it may not be written."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; choose a folder")
    if not out.exists() or not any(out.iterdir()):
        return False
    stored = _read_meta(out / "META.json")
    if stored is None:
        raise FileExistsError(f"{out} is not empty and no generated clip set; choose another folder")
    if stored == meta:
        return True
    if not overwrite:
        differing = sorted(key for key in {*stored, *meta} if stored.get(key) != meta.get(key))
        raise FileExistsError(f"{out} holds another clip set, it differs in {differing}; choose another folder or "
                              "--overwrite")
    return False


def _read_meta(path: Path) -> dict | None:
    """What a finished set of ours says of itself; None for any other file."""
    try:
        meta = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return meta if isinstance(meta, dict) and "generator" in meta else None


def _put(whole: Path, out: Path) -> None:
    """Give ``whole`` its name. A set that is replaced stays until the new one is in place."""
    if not out.exists():
        os.replace(whole, out)
        return
    old = Path(tempfile.mkdtemp(prefix=f"{out.name}.", suffix=".old", dir=out.parent))
    os.replace(out, old)
    os.replace(whole, out)
    shutil.rmtree(old)


def _write(task: tuple[Path, Job]) -> None:
    path, job = task
    frames, sound = job()
    write_clip(path, frames, FPS, sound, SAMPLE_RATE)


def _exhaust(iterable: Iterable) -> None:
    for _ in iterable:
        pass


def generate(out: str | Path, train: int = 600, val: int = 150, size: int = 48, seed: int = 0, workers: int = 1,
             overwrite: bool = False, progress: Progress = lambda done, total: done) -> Path:
    """Write ``train`` + ``val`` clips of 1 s, ``size`` x ``size`` at 8 frames/s with 8 kHz sound, classes in turn.

    See :func:`write_clip_set` for the layout, ``workers``, ``overwrite`` and ``progress``.
    Raises: FileExistsError if ``out`` holds something else; ValueError for impossible numbers.
    """
    if train < 1 or val < 1 or size < 32 or size % 2:
        raise ValueError(f"need train >= 1, val >= 1 and an even size of 32 or more, got {train}, {val}, {size}")
    clips = {}
    for number, (part, count) in enumerate((("train", train), ("val", val))):
        labels = [i % len(CLASSES) for i in range(count)]
        clips[part] = [(label, partial(_render_one, [seed, number, i], label, size)) for i, label in enumerate(labels)]
    meta = dict(generator="demo_shapes", version=VERSION, seed=seed, size=size, fps=FPS, sample_rate=SAMPLE_RATE,
                seconds=SECONDS)
    readme = (f"Generated clips of moving shapes with tones, seed {seed}: {train} for training, {val} for validation.\n"
              "Each shape occurs with two tones and each tone with two shapes: one modality alone is right in at most\n"
              "half of the cases, both together always. Lines of the lists: path label.\n")
    return write_clip_set(out, clips, CLASSES, meta, {"README.txt": readme}, workers, overwrite, progress)


def _render_one(key: list[int], label: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    return render(np.random.default_rng(key), label, size)


def render(rng: np.random.Generator, label: int, size: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """One random clip of a class: frames (T, size, size, 3) uint8 and sound (S,) float32 in [-1, 1]."""
    shape, tone = CLASSES[label].split("_")
    return _film(rng, shape, size), _sound(rng, tone)


def _film(rng: np.random.Generator, shape: str, size: int) -> np.ndarray:
    """(T, size, size, 3) uint8: the shape drifts and turns over a textured ground; both move under sensor noise."""
    frames = FPS * SECONDS
    grid = (np.arange(size) + 0.5) / size * 2 - 1
    y, x = np.meshgrid(grid, grid, indexing="ij")  # -1..1
    ground, figure = _texture(rng), _texture(rng)
    # the figure is the brighter one: with either sign, training from scratch takes several times as long
    behind_colour, figure_colour = rng.uniform(0.1, 0.4, 3), rng.uniform(0.6, 0.9, 3)
    radius = rng.uniform(0.45, 0.65)
    start, end = rng.uniform(-1 + radius, 1 - radius, (2, 2))
    turn, spin = rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4)
    drift = rng.uniform(-0.5, 0.5, 2)
    film = np.empty((frames, size, size, 3))
    for t, time in enumerate(np.linspace(0, 1, frames)):
        cx, cy = start + time * (end - start)
        c, s = np.cos(turn + spin * time), np.sin(turn + spin * time)
        u, v = (c * (x - cx) + s * (y - cy)) / radius, (c * (y - cy) - s * (x - cx)) / radius
        inside = np.clip(0.5 - _distance(shape, u, v) * radius * size / 2, 0, 1)[..., None]  # edges of one pixel
        behind = behind_colour + 0.12 * ground(x - time * drift[0], y - time * drift[1])[..., None]
        before = figure_colour + 0.12 * figure(u * radius, v * radius)[..., None]
        film[t] = inside * before + (1 - inside) * behind
    film += rng.normal(0, rng.uniform(0.01, 0.05), film.shape)
    return (np.clip(film, 0, 1) * 255).round().astype(np.uint8)


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the edge, negative inside; the shapes have about the same area."""
    if shape == "disc":
        return np.hypot(u, v) - 0.75
    if shape == "cross":
        long, short = np.maximum(abs(u), abs(v)), np.minimum(abs(u), abs(v))
        return np.maximum(long - 1, short - 0.26)
    sides = np.array([np.pi / 2, np.pi / 2 + 2 * np.pi / 3, np.pi / 2 + 4 * np.pi / 3])
    return np.max([np.cos(a) * u + np.sin(a) * v for a in sides], 0) - 0.58


def _texture(rng: np.random.Generator) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Two crossed waves in -1..1: stripes, checks or blobs, as chance has it."""
    pitch, angle, phase = rng.uniform(4, 14, 2), rng.uniform(0, np.pi, 2), rng.uniform(0, 2 * np.pi, 2)
    share = rng.uniform(0, 1)

    def texture(x, y):
        waves = [np.sin(k * (np.cos(a) * x + np.sin(a) * y) + p) for k, a, p in zip(pitch, angle, phase)]
        return share * waves[0] + (1 - share) * waves[1]

    return texture


def _sound(rng: np.random.Generator, tone: str) -> np.ndarray:
    """(S,) float32: a harmonic tone whose pitch rises or falls by 7-12 semitones, or that is struck 4-7 times."""
    time = np.arange(SAMPLE_RATE * SECONDS) / SAMPLE_RATE
    base, span = rng.uniform(300, 900), rng.uniform(7, 12) / 12
    bend = dict(rising=time - 0.5, falling=0.5 - time, pulsing=np.zeros_like(time))[tone] / SECONDS
    phase = 2 * np.pi * np.cumsum(base * 2 ** (span * bend)) / SAMPLE_RATE
    partials = rng.uniform(0.1, 1, 3) * [1, 0.5, 0.3]
    wave = sum(a * np.sin(k * phase + rng.uniform(0, 2 * np.pi)) for k, a in enumerate(partials, 1))
    if tone == "pulsing":
        beat = (time * rng.uniform(4, 7) + rng.random()) % 1
        wave = wave * np.exp(-5 * beat)
    wave = wave / np.sqrt((wave**2).mean())
    noise = rng.normal(size=len(time)) * 10 ** (-rng.uniform(0, 12) / 20)
    wave = wave + noise
    return (wave * rng.uniform(0.3, 0.9) / np.abs(wave).max()).astype(np.float32)
