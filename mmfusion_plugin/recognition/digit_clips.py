"""MNIST images and spoken digits of the same class as short videos with sound, in the layout of Kinetics.

A handwritten digit drifts over clutter (pieces of other digits) under sensor noise while the digit is
spoken in noise: :class:`Difficulty` says how much. With its defaults the small encoders of
configs/recognition reach about 60 % from either on the test part and 75 to 85 % from both (results/README.md).

Parts are disjoint in speakers, recordings and images (:data:`SPEAKERS`, :data:`IMAGES`). Within a part a
recording comes back with other images and other noise when clips outnumber recordings, as evenly as
possible; images likewise. Frames and sound are deterministic for a seed.

Sources: MNIST's test images (Y. LeCun, C. Cortes, C. J. C. Burges); Free Spoken Digit Dataset
(Z. Jackson et al., CC BY-SA 4.0, https://github.com/Jakobovski/free-spoken-digit-dataset).

Axes: T frames, H rows, W columns, S sound samples.
"""
from __future__ import annotations

import gzip
import wave
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from .demo_shapes import FPS, SAMPLE_RATE, SECONDS, Progress, write_clip_set

__all__ = ["CLASSES", "IMAGES", "SPEAKERS", "Clip", "Difficulty", "generate", "plan", "read_mnist", "read_wav"]

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEAKERS = {"train": ("jackson", "nicolas", "theo", "yweweler"), "val": ("george",), "test": ("lucas",)}
IMAGES = {"train": range(7000), "val": range(7000, 8000), "test": range(8000, 10000)}
MNIST_FILES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
MNIST_HEADERS = ((2051, 10000, 28, 28), (2049, 10000))  # kind and shape
VERSION = 2


@dataclass(frozen=True)
class Difficulty:
    """How hard each modality is; brightness in grey levels, 0-255."""

    contrast: float = 58  # of a full stroke against the ground
    noise: float = 32  # standard deviation of the sensor noise, every frame anew
    clutter: int = 5  # pieces of other digits, as bright as the digit
    piece: int = 8  # height and width of such a piece, in pixels of the 28 x 28 image
    snr: float = -2  # dB, speech against noise over the length of the word; each clip within +- spread
    spread: float = 5


@dataclass(frozen=True)
class Clip:
    """What one clip is made of: class, number of the MNIST image, file of the spoken digit."""

    label: int
    image: int
    recording: Path


def generate(out: str | Path, mnist: str | Path, spoken: str | Path, counts: Mapping[str, int] | None = None,
             size: int = 48, seed: int = 0, difficulty: Difficulty = Difficulty(), workers: int = 1,
             overwrite: bool = False, progress: Progress = lambda done, total: done) -> Path:
    """Write the clips: 1 s, ``size`` x ``size`` at 8 frames/s with 8 kHz sound; classes in turn.

    Beside the lists and META.json stands sources.csv: path, image, recording of every clip.

    Args:
        mnist: folder with MNIST's test part (:data:`MNIST_FILES`).
        spoken: folder of the Free Spoken Digit Dataset, or its ``recordings``.
        counts: clips per part, default 4,000 / 500 / 1,000.

    See :func:`~mmfusion_plugin.recognition.demo_shapes.write_clip_set` for the layout and the other arguments.
    Raises: FileNotFoundError for absent sources, ValueError for damaged ones and impossible numbers,
        FileExistsError if ``out`` holds something else.
    """
    counts = dict(counts or {"train": 4000, "val": 500, "test": 1000})
    if set(counts) != set(SPEAKERS) or min(counts.values()) < 1 or size < 32 or size % 2:
        raise ValueError(f"need one clip or more in each of {list(SPEAKERS)} and an even size of 32 or more, "
                         f"got {counts} and {size}")
    images, labels = read_mnist(mnist)
    parts = plan(labels, find_recordings(spoken), counts, seed)
    rows = ["path,image,recording"]
    clips = {}
    for number, (part, planned) in enumerate(parts.items()):
        pool = images[IMAGES[part].start : IMAGES[part].stop]
        clips[part] = []
        for i, clip in enumerate(planned):
            rng = np.random.default_rng([seed, number, i])
            others = pool[rng.integers(len(pool), size=difficulty.clutter)]
            job = partial(_render, [seed, number, i, 1], images[clip.image], others, clip.recording, size, difficulty)
            clips[part].append((clip.label, job))
            rows.append(f"{part}/{CLASSES[clip.label]}/{i + 1:04d}.mp4,{clip.image},{clip.recording.name}")
    sources = "\n".join(rows) + "\n"
    meta = dict(generator="digit_clips", version=VERSION, seed=seed, size=size, fps=FPS, sample_rate=SAMPLE_RATE,
                seconds=SECONDS, difficulty=asdict(difficulty), speakers=SPEAKERS,
                images={part: [span.start, span.stop] for part, span in IMAGES.items()},
                sources_crc32=zlib.crc32(sources.encode()))
    texts = {"README.txt": _readme(parts, seed), "sources.csv": sources}
    return write_clip_set(out, clips, CLASSES, meta, texts, workers, overwrite, progress)


def plan(labels: np.ndarray, recordings: Iterable[Path], counts: Mapping[str, int], seed: int) -> dict[str, list[Clip]]:
    """Which image goes with which recording: classes in turn, every source used as evenly as possible.

    Args:
        labels: (10000,) class of each MNIST image.
        recordings: files called ``{digit}_{speaker}_{take}.wav``.

    Raises: ValueError if a speaker lacks a digit.
    """
    by_source: dict[tuple[str, int], list[Path]] = {}
    for path in sorted(recordings, key=lambda path: path.name):
        digit, speaker, _ = path.stem.split("_")
        by_source.setdefault((speaker, int(digit)), []).append(path)
    parts = {}
    for number, (part, count) in enumerate(counts.items()):
        rng = np.random.default_rng([seed, number])
        images, sounds = [], []
        for label in range(len(CLASSES)):
            lacking = [speaker for speaker in SPEAKERS[part] if (speaker, label) not in by_source]
            if lacking:
                raise ValueError(f"no recording of digit {label} by {', '.join(lacking)}, who belong to {part!r}")
            needed = -(-count // len(CLASSES))
            span = np.arange(IMAGES[part].start, IMAGES[part].stop)
            images.append(_deal(rng, span[labels[span] == label].tolist(), needed))
            sounds.append(_deal(rng, sum((by_source[s, label] for s in SPEAKERS[part]), []), needed))
        parts[part] = [
            Clip(i % len(CLASSES), images[i % len(CLASSES)][i // len(CLASSES)],
                 sounds[i % len(CLASSES)][i // len(CLASSES)])
            for i in range(count)
        ]
    return parts


def _deal(rng: np.random.Generator, items: list, needed: int) -> list:
    """``needed`` of the items in random order; none comes back before all were used."""
    rounds = [rng.permutation(len(items)) for _ in range(-(-needed // len(items)))]
    return [items[i] for i in np.concatenate(rounds)[:needed]]


def read_mnist(folder: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """(10000, 28, 28) uint8 images and (10000,) uint8 labels of MNIST's test part.

    Raises: FileNotFoundError; ValueError if a file is damaged or another one.
    """
    arrays = []
    for name, header in zip(MNIST_FILES, MNIST_HEADERS):
        path = Path(folder) / name
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}; the folder of MNIST holds {' and '.join(MNIST_FILES)}")
        try:
            data = gzip.decompress(path.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        found = tuple(np.frombuffer(data[: 4 * len(header)], ">i4").tolist()) if len(data) >= 4 * len(header) else ()
        if found != header or len(data) != 4 * len(header) + np.prod(header[1:]):
            raise ValueError(f"{path} is no such IDX file: expected the header {header} and what it promises, got "
                             f"{found} and {len(data)} bytes")
        arrays.append(np.frombuffer(data, np.uint8, offset=4 * len(header)).reshape(header[1:]))
    return arrays[0], arrays[1]


def find_recordings(folder: str | Path) -> list[Path]:
    """The spoken digits below ``folder``.

    Raises: FileNotFoundError without one.
    """
    folder = Path(folder)
    names = [f"[0-9]_{speaker}_*.wav" for part in SPEAKERS.values() for speaker in part]
    found = [path for place in (folder, folder / "recordings") for name in names for path in place.glob(name)]
    if not found:
        raise FileNotFoundError(f"no spoken digits ({{digit}}_{{speaker}}_{{take}}.wav) in {folder} or its recordings/")
    return found


def read_wav(path: str | Path) -> np.ndarray:
    """(S,) float64 in [-1, 1) of a mono 16-bit 8 kHz file.

    Raises: ValueError for any other file.
    """
    try:
        with wave.open(str(path)) as file:
            found = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError, RuntimeError) as error:  # the last without words, for a length beyond the file
        raise ValueError(f"{path} is no readable wav file: {error or 'a damaged length'}") from error
    if found != (1, 2, SAMPLE_RATE) or len(data) < 2:
        raise ValueError(f"{path}: expected sound with 1 channel of 2 bytes at {SAMPLE_RATE} Hz, got {found} and "
                         f"{len(data)} bytes")
    return np.frombuffer(data, "<i2") / 32768


def _render(key: list[int], image: np.ndarray, others: np.ndarray, recording: Path, size: int,
            difficulty: Difficulty) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(key)
    return film(rng, image, others, size, difficulty), sound(rng, read_wav(recording), difficulty)


def film(rng: np.random.Generator, image: np.ndarray, others: np.ndarray, size: int,
         difficulty: Difficulty) -> np.ndarray:
    """(T, size, size, 3) uint8 of a drifting digit.

    Args:
        image: (28, 28) uint8, the digit; ``others``: (clutter, 28, 28) uint8, of which pieces drift too.
    """
    frames = FPS * SECONDS
    strokes = np.zeros((frames, size, size))
    things = [image]
    for other in others:
        row, column = rng.integers(4, 25 - difficulty.piece, 2)
        things.append(other[row : row + difficulty.piece, column : column + difficulty.piece])
    for thing in things:
        zoom, angle = size / 48 * rng.uniform(0.8, 1.3), rng.uniform(-0.35, 0.35)
        margin = zoom * len(thing) / 2
        start, end = rng.uniform(margin, size - margin, (2, 2))
        end = start + 0.5 * (end - start)
        for t, centre in enumerate(np.linspace(start, end, frames)):
            strokes[t] = np.maximum(strokes[t], _place(thing / 255, size, centre, zoom, angle))
    ground = rng.uniform(50, 130, 3)
    colour = rng.uniform(0.4, 1, 3)  # strokes are always brighter than the ground
    colour /= colour.mean()
    shade = rng.uniform(-25, 25, (2, 3))
    grid = np.linspace(-1, 1, size)
    scene = ground + shade[0] * grid[:, None, None] + shade[1] * grid[None, :, None]
    picture = scene + difficulty.contrast * strokes[..., None] * colour
    picture += rng.normal(0, difficulty.noise, picture.shape)
    return np.clip(picture, 0, 255).round().astype(np.uint8)


def _place(thing: np.ndarray, size: int, centre: np.ndarray, zoom: float, angle: float) -> np.ndarray:
    """(size, size): ``thing`` (N, N) scaled and turned about ``centre`` (row, column), bilinear, 0 around it."""
    rows, columns = np.indices((size, size)) + 0.5
    down, right = (rows - centre[0]) / zoom, (columns - centre[1]) / zoom
    half = len(thing) / 2 + 0.5  # of the thing with a border of one pixel
    y = np.clip(np.cos(angle) * down - np.sin(angle) * right + half, 0, len(thing) + 0.999)
    x = np.clip(np.sin(angle) * down + np.cos(angle) * right + half, 0, len(thing) + 0.999)
    padded = np.pad(thing, 1)
    i, j = y.astype(int), x.astype(int)
    v, u = y - i, x - j
    upper = (1 - u) * padded[i, j] + u * padded[i, j + 1]
    lower = (1 - u) * padded[i + 1, j] + u * padded[i + 1, j + 1]
    return (1 - v) * upper + v * lower


def sound(rng: np.random.Generator, speech: np.ndarray, difficulty: Difficulty) -> np.ndarray:
    """(S,) float32: the word at a random moment in noise whose spectrum falls by 0-6 dB per octave.

    What is longer than the clip loses its end.
    """
    length = SAMPLE_RATE * SECONDS
    word = speech[:length] / np.sqrt((speech[:length] ** 2).mean())
    white = np.fft.rfft(rng.normal(size=length))
    white[1:] /= np.arange(1, len(white)) ** rng.uniform(0, 1)
    white[0] = 0
    noise = np.fft.irfft(white, length)
    snr = difficulty.snr + rng.uniform(-difficulty.spread, difficulty.spread)
    mixed = noise / np.sqrt((noise**2).mean()) * 10 ** (-snr / 20)
    start = rng.integers(0, length - len(word) + 1)
    mixed[start : start + len(word)] += word
    return (mixed * rng.uniform(0.3, 0.9) / np.abs(mixed).max()).astype(np.float32)


def _readme(parts: Mapping[str, list[Clip]], seed: int) -> str:
    lines = [f"Spoken and handwritten digits as clips, seed {seed}. Lines of the lists: path label.", ""]
    for part, clips in parts.items():
        recordings, images = {clip.recording.name for clip in clips}, {clip.image for clip in clips}
        lines.append(f"{part}: {len(clips)} clips from {len(recordings)} recordings by {', '.join(SPEAKERS[part])} "
                     f"and {len(images)} images")
    lines += [
        "", "No speaker, recording or image is in two parts; within a part a recording or an image may come back with",
        "another partner, path and noise (sources.csv).", "",
        "Images: MNIST test part, Y. LeCun, C. Cortes, C. J. C. Burges. Speech: Free Spoken Digit Dataset,",
        "https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0; so are these clips.", "",
    ]
    return "\n".join(lines)
