"""Load a clip's frames and sound from one window, make spectrograms, and pack; between them mmaction2's own."""
from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Real

import numpy as np
import torch
from mmaction.registry import TRANSFORMS
from mmaction.structures import ActionDataSample
from mmcv.transforms import BaseTransform
from mmengine.logging import print_log

from mmfusion_plugin.engine.file_cache import FileCache, file_version, shared_cache

from .frame_folders import absent, extracted_span, folder_index, read_folder
from .media import (
    DamagedMedia,
    FrameIndex,
    MediaError,
    MissingFile,
    frame_index,
    probe,
    read_frames,
    read_sound,
    sound_span,
)
from .spectrograms import FLOOR, PRESETS, log_mel, log_spectrogram, mel_filters

__all__ = ["AudioSpectrogram", "LoadClip", "PackAudioVisual"]

MODALITIES = ("visual", "audio")
SAMPLES = ("uniform", "random", "center")
PADS = ("tile", "zero")
FAULTS = ("error", "missing")


# N clips, L frames of a clip, S samples of a clip
@TRANSFORMS.register_module()
class LoadClip(BaseTransform):
    """Decode frames and sound of the same windows of a clip.

    A window is ``clip_seconds`` long, and lies where both streams are where they overlap that long; where they
    overlap for less, it holds all of that. In
    training ``num_clips`` windows lie at random; in test mode they are spaced evenly from the first to the
    last possible one, and one alone is centred. A clip shorter than a window is one whole window.

    Each window is cut into ``num_frames`` equal segments, each giving the frame on screen at its centre or,
    in training, at another time (``sample``). Random numbers come from numpy's global generator, which
    mmengine seeds in each worker.

    The sound of a window begins with it and ends with it, or after ``sound.seconds`` if that is sooner (always,
    with the whole clip). What is shorter than ``sound.seconds`` is repeated or followed by zeros;
    ``sound_samples`` says how many samples are its own.

    Args:
        num_frames: L.
        clip_seconds: length of a window; None: the whole clip.
        num_clips: N.
        sample: times of the frames in training. ``uniform``: at random in each segment; ``center``: at its
            centre, as in test mode; ``random``: L times at random in the window, in order.
        sound: ``sample_rate`` (Hz), ``seconds`` (default: ``clip_seconds``) and ``pad``: ``tile`` repeats
            (the way of the UDML scripts), ``zero`` adds zeros. Needed with 'audio' in ``modalities``.
        modalities: what to decode, of 'visual' and 'audio'.
        on_fault: by modality, what a stream does that is absent, empty or damaged: ``error`` (default) or
            ``missing``: the modality is marked as unavailable, with a warning once per file. A file that does not
            exist is always an error, and so is a clip with nothing left. A path None in ``results['media']``
            is the data set's own word for a missing modality.
        test_mode: windows and frames without chance. Set it in the pipelines of validation and test.
        cache_mb: MiB of decoded clips that each process keeps, those that came first; 0: none. Where it is full, a
            warning says so, and other clips are decoded each time. Pipelines with the same number share them. Changes
            no result, but that sound stamped in whole milliseconds (Matroska) may move by half of one, and sound
            whose clock drifts by 5. For small data sets, with ``persistent_workers=True``.
        missing_size: (H, W) of the stand-in frames of a clip without video, where its header names none. Give
            the data's own size if the pipeline does not bring all frames to one.

    Reads ``media`` {m: path or None}, where a folder as ``visual`` is a clip that ``tools/extract_clips.py`` has
    extracted, or, without it, ``filename``, the one file of all; and ``available`` {m: bool}: a modality that an
    earlier step marks as missing is not read. Writes ``imgs`` (list of N L (H, W, 3) uint8 RGB, clips in a row),
    ``waveform`` (N, S) float32, ``sample_rate``, ``sound_samples`` (N,), ``available`` {m: bool}, ``frame_inds``
    and ``frame_times`` (s) (N L,), ``clip_starts`` (s) (N,), ``total_frames``, ``num_clips`` N, ``clip_len`` L,
    ``original_shape``, ``img_shape``, ``modality``. What stands in for a missing modality is zeros of the same
    shape, marked by ``available``.
    Raises: ValueError for options; MediaError naming the file and the option to change.
    """

    def __init__(
        self,
        num_frames: int | None = None,
        clip_seconds: float | None = None,
        num_clips: int = 1,
        sample: str = "uniform",
        sound: Mapping | None = None,
        modalities: Sequence[str] = MODALITIES,
        on_fault: Mapping[str, str] | None = None,
        test_mode: bool = False,
        cache_mb: float = 0,
        missing_size: tuple[int, int] = (256, 340),
    ) -> None:
        if isinstance(modalities, str) or not modalities or not set(modalities) <= set(MODALITIES):
            raise ValueError(f"LoadClip.modalities must be a list of {list(MODALITIES)}, got {modalities!r}")
        self.modalities = [m for m in MODALITIES if m in modalities]
        self.on_fault = {m: "error" for m in self.modalities} | dict(on_fault or {})
        if set(self.on_fault) != set(self.modalities) or not set(self.on_fault.values()) <= set(FAULTS):
            raise ValueError(
                f"LoadClip.on_fault must say one of {list(FAULTS)} for modalities among {self.modalities}, "
                f"got {dict(on_fault or {})}"
            )
        if ("visual" in self.modalities) != (num_frames is not None):
            raise ValueError(f"LoadClip.num_frames is {num_frames} with modalities={self.modalities}")
        if ("audio" in self.modalities) != (sound is not None):
            raise ValueError(f"LoadClip.sound is {sound} with modalities={self.modalities}")
        for key, value in (("num_frames", 1 if num_frames is None else num_frames), ("num_clips", num_clips)):
            if not _is_count(value):
                raise ValueError(f"LoadClip.{key} must be a positive integer, got {value!r}")
        if clip_seconds is not None and not _is_positive(clip_seconds):
            raise ValueError(f"LoadClip.clip_seconds must be positive or None, got {clip_seconds!r}")
        if num_clips > 1 and clip_seconds is None:
            raise ValueError(f"LoadClip.num_clips is {num_clips}, but clip_seconds=None takes the whole clip; set it")
        if sample not in SAMPLES:
            raise ValueError(f"LoadClip.sample must be one of {list(SAMPLES)}, got {sample!r}")
        if len(missing_size) != 2 or not all(map(_is_count, missing_size)):
            raise ValueError(f"LoadClip.missing_size must be (height, width), got {missing_size!r}")
        self.num_frames, self.clip_seconds, self.num_clips = num_frames, clip_seconds, num_clips
        self.sample, self.test_mode, self.missing_size = sample, test_mode, tuple(missing_size)
        if sound is not None:
            self.sample_rate, self.seconds, self.pad = _sound_options(sound, clip_seconds)
            self.samples = round(self.seconds * self.sample_rate)
        self.cache = shared_cache(cache_mb, "LoadClip")
        self._reported: set[tuple[str, str]] = set()

    def transform(self, results: dict) -> dict:
        recorded = results.get("available", {})
        media = {m: path if recorded.get(m, True) else None for m, path in self._media(results).items()}
        # Drawn first and always, so that neither faults nor the cache change what later clips draw.
        where, when = self._draw()
        streams = {m: _Stream(media[m], self.cache) for m in self.modalities if media[m] is not None}
        spans = self._attempt(streams, lambda m: self._span(m, streams[m]))
        starts, length = self._windows(spans, where)
        read = self._attempt(
            {m: streams[m] for m in spans},
            lambda m: self._frames(streams[m], starts, min(length, spans[m][1] - starts.min()), when)
            if m == "visual" else self._sound(streams[m], starts),
        )
        if not read:
            raise DamagedMedia(f"nothing of {media} can be read, whatever LoadClip.on_fault says; drop the clip")
        results["available"] = {**recorded, **{m: m in read for m in self.modalities}}
        results["clip_starts"], results["num_clips"] = starts, self.num_clips
        if "visual" in self.modalities:
            self._put_frames(results, read.get("visual"), streams.get("visual"))
        if "audio" in self.modalities:
            nothing = np.zeros((self.num_clips, self.samples), np.float32), np.zeros(self.num_clips, np.int64)
            results["waveform"], results["sound_samples"] = read.get("audio", nothing)
            results["sample_rate"] = self.sample_rate
        return results

    def _media(self, results: Mapping) -> dict[str, str | None]:
        """Path by modality; mmaction2's inference names one file alone, as ``filename``."""
        if "media" not in results and "filename" not in results:
            raise ValueError(
                f"LoadClip needs results['media'] (a path by modality) or results['filename'], the data set gives "
                f"{sorted(results)}; use dataset.type='AudioVisualDataset'"
            )
        media = results["media"] if "media" in results else dict.fromkeys(self.modalities, results["filename"])
        if set(self.modalities) - set(media):
            raise ValueError(
                f"LoadClip.modalities is {self.modalities}, the data set gives {sorted(media)} in results['media']"
            )
        return {m: media[m] for m in self.modalities}

    def _draw(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) positions of the windows and (N, L) times of the frames, both in [0, 1]."""
        N, L = self.num_clips, self.num_frames or 1
        centres = np.broadcast_to((np.arange(L) + 0.5) / L, (N, L))
        if self.test_mode:
            return (np.linspace(0, 1, N) if N > 1 else np.array([0.5])), centres
        where, chance = np.random.random_sample(N), np.random.random_sample((N, L))
        if self.sample == "center":
            return where, centres
        return where, np.sort(chance, 1) if self.sample == "random" else (np.arange(L) + chance) / L

    def _attempt(self, streams: Mapping[str, _Stream], read: Callable) -> dict:
        """{m: what ``read`` gives}, without the modalities whose fault ``on_fault`` lets pass."""
        found = {}
        for m in streams:
            try:
                found[m] = read(m)
            except MissingFile:
                raise
            except MediaError as error:
                if self.on_fault[m] == "error":
                    raise type(error)(
                        f"{error}; drop the clip, or set LoadClip.on_fault=dict({m}='missing') to go on without it"
                    ) from error
                self._report_once(m, streams[m].path, error)
        return found

    def _report_once(self, m: str, path: str, error: MediaError) -> None:
        if (m, path) not in self._reported:
            self._reported.add((m, path))
            print_log(f"{m!r} is marked as missing: {error}", logger="current", level=logging.WARNING)

    def _span(self, m: str, stream: _Stream) -> tuple[float, float]:
        """Seconds in which there is something of a modality."""
        if m == "audio":
            return stream.sound_span()
        index = stream.index()
        return float(index.times[0]), index.end

    def _windows(self, spans: Mapping[str, tuple[float, float]], where: np.ndarray) -> tuple[np.ndarray, float]:
        """(N,) starts and the length in seconds."""
        if not spans:
            return np.zeros(self.num_clips), 0.0
        main = spans.get("visual") or spans["audio"]
        if self.clip_seconds is None:
            return np.full(self.num_clips, main[0]), main[1] - main[0]
        length = self.clip_seconds
        first, last = max(begin for begin, _ in spans.values()), min(end for _, end in spans.values())
        if last - first >= length:
            lowest, highest = first, last - length
        else:  # what they share lies in every window; if nothing, all draws give the same one, and its fault
            lowest, highest = max(main[0], last - length), min(first, main[1] - length)
        return lowest + where * max(highest - lowest, 0.0), length

    def _frames(self, stream: _Stream, starts: np.ndarray, length: float, when: np.ndarray) -> tuple:
        return stream.frames((starts[:, None] + when * length).reshape(-1))

    def _sound(self, stream: _Stream, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seconds = min(self.seconds, self.clip_seconds or self.seconds)
        parts = [stream.sound(float(start), seconds, self.sample_rate)[: self.samples] for start in starts]
        fill = _tiled if self.pad == "tile" else _zero_padded
        return np.stack([fill(part, self.samples) for part in parts]), np.array([len(part) for part in parts])

    def _put_frames(self, results: dict, read: tuple | None, stream: _Stream | None) -> None:
        number = self.num_clips * self.num_frames
        if read is None:
            size = self.missing_size if stream is None else stream.size() or self.missing_size
            images = [np.zeros((*size, 3), np.uint8) for _ in range(number)]
            numbers, times, total = np.zeros(number, np.int64), np.full(number, np.nan), 0
        else:
            images, numbers, times, total = read
        results.update(
            imgs=images, frame_inds=numbers, frame_times=times, total_frames=total, clip_len=self.num_frames,
            original_shape=images[0].shape[:2], img_shape=images[0].shape[:2], modality="RGB",
        )

    def __repr__(self) -> str:
        return (
            f"LoadClip(num_frames={self.num_frames}, clip_seconds={self.clip_seconds}, num_clips={self.num_clips}, "
            f"sample={self.sample!r}, modalities={self.modalities}, on_fault={self.on_fault}, "
            f"test_mode={self.test_mode})"
        )


class _Stream:
    """One modality of one file or folder of frames, read once where the cache has room for all of it."""

    def __init__(self, path, cache: FileCache) -> None:
        self.path, self.cache = str(path), cache
        self.version = file_version(self.path) if cache.limit else None
        self.is_file = os.path.isfile(self.path)
        self._index: FrameIndex | None = None
        self._span: tuple[float, float] | None = None

    def index(self) -> FrameIndex:
        if self._index is None:
            read = frame_index if self.is_file else folder_index
            self._index = self._kept("index", lambda: read(self.path), lambda index: 4 * index.times.nbytes)
        return self._index

    def sound_span(self) -> tuple[float, float]:
        if not self.is_file:
            raise absent(self.path, "audio")
        if self._span is None:
            self._span = self._kept("span", lambda: extracted_span(self.path) or sound_span(self.path), lambda _: 200)
        return self._span

    def size(self) -> tuple[int, int] | None:
        """(H, W) as the header has it."""
        try:
            if not self.is_file:
                return self.index().size
            info = probe(self.path)
        except MediaError:
            return None
        return (info.height, info.width) if info.height and info.width else None

    def frames(self, at: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, int]:
        """Frames on screen at the given seconds, their numbers and stamps, and how many there are."""
        index = self.index()
        times, numbers = index.times, index.at(at)
        read = read_frames if self.is_file else read_folder
        whole = self._kept_whole(
            "frames", 3 * len(times) * index.size[0] * index.size[1], lambda: read(self.path, times, index)[0],
            lambda images: sum(image.nbytes for image in images))
        if whole is None:
            images, _ = read(self.path, at, index)
        else:
            images = [whole[i].copy() for i in numbers]  # transforms change frames in place
        return images, numbers, times[numbers], len(times)

    def sound(self, start: float, seconds: float, sample_rate: int) -> np.ndarray:
        begin, end = self.sound_span()
        whole = self._kept_whole(
            ("sound", sample_rate), round((end - begin) * sample_rate) * 4,
            lambda: read_sound(self.path, 0.0, None, sample_rate)[0], lambda sound: sound.nbytes)
        first = round(start * sample_rate)
        if whole is None or first < 0 or first >= len(whole):
            return read_sound(self.path, start, seconds, sample_rate)[0]
        return whole[first : first + round(seconds * sample_rate)]

    def _kept(self, kind, read: Callable, size_of: Callable):
        value = self.cache.get((self.path, kind), self.version)
        if value is None:
            value = read()
            self.cache.put((self.path, kind), self.version, value, size_of(value))
        return value

    def _kept_whole(self, kind, expected: int, read: Callable, size_of: Callable):
        """A whole stream, from the cache or for it; None if it has no room or not all of it can be read."""
        kept = self.cache.get((self.path, kind), self.version)
        if kept is not None:
            return kept
        if expected <= 0 or not self.cache.has_room(expected):
            return None
        try:
            return self._kept(kind, read, size_of)
        except MediaError:  # the wanted part may be sound
            return None


def _sound_options(sound: Mapping, clip_seconds: float | None) -> tuple[int, float, str]:
    options = {"seconds": clip_seconds, "pad": "tile"} | dict(sound)
    if set(options) != {"sample_rate", "seconds", "pad"}:
        raise ValueError(f"LoadClip.sound must name sample_rate, seconds and pad, got {dict(sound)}")
    if not _is_count(options["sample_rate"]):
        raise ValueError(f"LoadClip.sound.sample_rate must be a positive integer, got {options['sample_rate']!r}")
    if not _is_positive(options["seconds"]):
        raise ValueError(
            f"LoadClip.sound.seconds must be positive, got {options['seconds']!r} (default: clip_seconds)"
        )
    if options["pad"] not in PADS:
        raise ValueError(f"LoadClip.sound.pad must be one of {list(PADS)}, got {options['pad']!r}")
    return options["sample_rate"], options["seconds"], options["pad"]


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_positive(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and value > 0


def _tiled(part: np.ndarray, samples: int) -> np.ndarray:
    return np.resize(part, samples)  # numpy's resize repeats


def _zero_padded(part: np.ndarray, samples: int) -> np.ndarray:
    return np.pad(part, (0, samples - len(part)))


@TRANSFORMS.register_module()
class AudioSpectrogram(BaseTransform):
    """``waveform`` (N, S) -> ``spectrogram`` (N, 1, F, T) float32, log magnitude or, with ``n_mels``, log-mel.

    Args:
        preset: name in :data:`PRESETS`; or give ``n_fft`` and ``hop`` yourself.
        n_fft, hop: of the short-time Fourier transform, in samples.
        n_mels: F of a log-mel spectrogram (needs librosa); None: magnitudes, F = n_fft // 2 + 1.
        floor: added before the logarithm, positive.
        rms: scale each waveform to this root mean square first, so that loudness says nothing; None leaves it,
            and silence stays silence. In units of the waveform: choose ``floor`` with it.
        roll: seconds by which the waveform is rolled at random, backwards or forwards, its end joined to its
            start; for training. Random numbers come from numpy's global generator.

    Raises: ValueError for options that contradict each other, and for a waveform of another sample rate or
        length than the preset's; ImportError for log-mel without librosa.
    """

    def __init__(
        self,
        preset: str | None = None,
        n_fft: int | None = None,
        hop: int | None = None,
        n_mels: int | None = None,
        floor: float = FLOOR,
        rms: float | None = None,
        roll: float = 0.0,
    ) -> None:
        if not roll == 0 and not _is_positive(roll):
            raise ValueError(f"AudioSpectrogram.roll must be a number of seconds, 0 or more, got {roll!r}")
        self.roll = roll
        if rms is not None and not _is_positive(rms):
            raise ValueError(f"AudioSpectrogram.rms must be positive or None, got {rms!r}")
        self.rms = rms
        if not _is_positive(floor):
            raise ValueError(f"AudioSpectrogram.floor must be positive, got {floor!r}: silence has no logarithm")
        numbers = {"n_fft": n_fft, "hop": hop, "n_mels": n_mels}
        given = [key for key, value in numbers.items() if value is not None]
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"AudioSpectrogram.preset must be one of {sorted(PRESETS)}, got {preset!r}")
        if preset is not None and given:
            raise ValueError(f"AudioSpectrogram.preset={preset!r} sets {given} itself; drop one of them")
        if preset is None and (n_fft is None or hop is None):
            raise ValueError(f"AudioSpectrogram needs a preset or n_fft and hop, got n_fft={n_fft}, hop={hop}")
        self.preset, self.floor = preset, floor
        self.numbers = PRESETS[preset] if preset else numbers
        if self.numbers.get("n_mels") and preset:  # in the main process, once for all workers
            mel_filters(self.numbers["sample_rate"], self.numbers["n_fft"], self.numbers["n_mels"])

    def transform(self, results: dict) -> dict:
        if "waveform" not in results:
            raise ValueError(
                f"AudioSpectrogram needs results['waveform'], found {sorted(results)}; decode by LoadClip with 'audio' "
                "in its modalities, in place of mmaction2's own transforms"
            )
        waveform, rate = results["waveform"], results["sample_rate"]
        if self.preset:
            self._check_preset(waveform, rate)
        n_fft, hop, n_mels = (self.numbers.get(key) for key in ("n_fft", "hop", "n_mels"))
        x = torch.from_numpy(np.ascontiguousarray(waveform))
        if self.roll:
            most = round(self.roll * rate)
            x = x.roll(int(np.random.randint(-most, most + 1)), -1)
        if self.rms is not None:
            own = x.square().mean(-1, keepdim=True).sqrt()
            x = x * (self.rms / own.clamp(min=1e-12))  # 0 stays 0
        if n_mels:
            values = log_mel(x, mel_filters(rate, n_fft, n_mels), n_fft, hop, self.floor)
        else:
            values = log_spectrogram(x, n_fft, hop, self.floor)
        results["spectrogram"] = values[:, None].numpy()
        return results

    def _check_preset(self, waveform: np.ndarray, rate: int) -> None:
        wanted = self.numbers["sample_rate"], self.numbers["seconds"]
        if (rate, waveform.shape[-1]) != (wanted[0], round(wanted[0] * wanted[1])):
            raise ValueError(
                f"AudioSpectrogram.preset={self.preset!r} is for {wanted[1]} s at {wanted[0]} Hz, the waveform has "
                f"{waveform.shape[-1] / rate:.3f} s at {rate} Hz; set LoadClip.sound=dict(sample_rate={wanted[0]}, "
                f"seconds={wanted[1]}, pad={self.numbers['pad']!r}), or give n_fft and hop instead of the preset"
            )

    def __repr__(self) -> str:
        return (
            f"AudioSpectrogram(preset={self.preset!r}, {self.numbers}, floor={self.floor}, rms={self.rms}, "
            f"roll={self.roll})"
        )


@TRANSFORMS.register_module()
class PackAudioVisual(BaseTransform):
    """Pack a sample: inputs {m: tensor}, label and metainfo in an ActionDataSample.

    A modality is missing where ``results['available']`` says so of its name, or of what :class:`LoadClip` made its
    array from ('visual' or 'audio', whatever the name); of what nothing is recorded, it is there.

    Args:
        modalities: names to pack; may be fewer than were loaded (unimodal references), and names of your own.
        keys: by modality, the entry of ``results`` that holds its array. Needed for names of your own.
        meta_keys: copied from ``results`` where present.

    Raises: ValueError for a modality that no transform has made ready.
    """

    KEYS = {"visual": "imgs", "audio": "spectrogram"}
    SOURCES = {"imgs": "visual", "spectrogram": "audio", "waveform": "audio"}
    META_KEYS = (
        "filename", "num_classes", "media", "available", "original_shape", "img_shape", "num_clips", "clip_len",
        "frame_inds", "frame_times", "clip_starts", "total_frames", "sample_rate", "sound_samples", "flip",
        "flip_direction",
    )

    def __init__(
        self,
        modalities: Sequence[str] = MODALITIES,
        keys: Mapping[str, str] | None = None,
        meta_keys: Sequence[str] = META_KEYS,
    ) -> None:
        if isinstance(modalities, str) or not modalities or len(set(modalities)) < len(modalities):
            raise ValueError(f"PackAudioVisual.modalities must be a list of different names, got {modalities!r}")
        self.modalities, self.keys, self.meta_keys = list(modalities), self.KEYS | dict(keys or {}), tuple(meta_keys)
        unknown = sorted(set(self.modalities) - set(self.keys))
        if unknown:
            raise ValueError(f"PackAudioVisual.keys says not which array holds {unknown}; name it")

    def transform(self, results: dict) -> dict:
        inputs = {}
        for m in self.modalities:
            array = results.get(self.keys[m])
            if not isinstance(array, np.ndarray):
                raise ValueError(
                    f"PackAudioVisual needs an array in results[{self.keys[m]!r}] for {m!r}, found "
                    f"{type(array).__name__}; put FormatShape (frames) or AudioSpectrogram (sound) before it"
                )
            inputs[m] = torch.from_numpy(np.ascontiguousarray(array))
        recorded = results.get("available", {})
        available = {
            m: all(recorded.get(name, True) for name in (m, self.SOURCES.get(self.keys[m]))) for m in self.modalities
        }
        if not any(available.values()):
            raise ValueError(
                f"{results.get('filename')} has none of {self.modalities}; results['available'] is {recorded}: name "
                "what is there in PackAudioVisual.modalities or drop the clip"
            )
        sample = ActionDataSample()
        if "label" in results:
            sample.set_gt_label(results["label"])
        sample.set_metainfo({key: results[key] for key in self.meta_keys if key in results} | {"available": available})
        return {"inputs": inputs, "data_samples": sample}
