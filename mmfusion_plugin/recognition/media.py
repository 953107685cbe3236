"""Frames and sound of video and wav files by their time stamps; PyAV and numpy only.

Every time is in seconds since the start of the file: a stream's stamp times its time base, minus the
start that the container states (0 in nearly all files). Frames and sound of one file share that clock.

Every reader raises OSError for a file that the system does not let it open: no fault of the file.
"""
from __future__ import annotations

import math
import os
import wave
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

__all__ = [
    "DamagedMedia", "EmptyStream", "FrameIndex", "MediaError", "MediaInfo", "MissingFile", "NoStream",
    "frame_index", "frame_times", "probe", "read_frames", "read_sound", "sound_span", "write_clip", "write_wav",
]

MICROSECONDS = 1_000_000  # unit of a container's own times
PYAV = int(av.__version__.split(".")[0])
# Titles and the like may be in any encoding. PyAV 19 (which needs Python 3.12) reads them so by itself.
ANY_METADATA = {"metadata_errors": "replace"} if PYAV < 19 else {}
# Starting threads takes longer than converting a picture of 340x256, loader workers are the parallel part, and PyAV 19
# keeps them for the next picture, for which a forked process would wait forever.
ONE_THREAD = {"threads": 1} if PYAV >= 17 else {}
LOST = 0.05  # part of the declared duration whose absence is a truncation, not rounding
JITTER = 0.1  # s by which successive packets of sound may disagree with their stamps
ROUNDING = 0.005  # s of such a disagreement that moves nothing: Matroska and FLV stamp in whole milliseconds
PREROLL = 0.5  # s decoded before a window of sound, for decoders and resamplers with memory
# Without a header: libavformat guesses their duration from the bit rate of their beginning.
RAW = {"aac", "ac3", "amr"}
# Stamps of these after a jump are guessed from the bit rate.
INEXACT_SEEK = {"mp3", *RAW}


class MediaError(ValueError):
    """A file cannot be read as asked. The message names it."""


class MissingFile(MediaError):
    """No such file."""


class NoStream(MediaError):
    """The file holds no video, or no sound."""


class DamagedMedia(MediaError):
    """No media file, a truncated one, or one whose wanted part does not decode."""


class EmptyStream(MediaError):
    """There is a stream, but nothing in it, or nothing in the wanted window."""


@dataclass(frozen=True)
class MediaInfo:
    """What a file's header states: nothing is decoded, so a damaged file may promise too much.

    ``duration`` in seconds or None, ``frames`` None where the container does not count them; the fields
    of a stream that is not there are None.
    """

    duration: float | None
    has_video: bool
    has_audio: bool
    width: int | None = None
    height: int | None = None
    average_fps: float | None = None
    frames: int | None = None
    sample_rate: int | None = None
    channels: int | None = None


def probe(path: str | Path) -> MediaInfo:
    """Read the header of a file.

    Raises: MissingFile, DamagedMedia.
    """
    with _opened(path) as container:
        video, audio = _video_of(container), _audio_of(container)
        durations = [float(s.duration * s.time_base) for s in (video, audio) if s is not None and s.duration]
        if container.duration:
            durations.append(container.duration / MICROSECONDS)
        of_video = {} if video is None else dict(
            width=video.codec_context.width,
            height=video.codec_context.height,
            average_fps=float(video.average_rate) if video.average_rate else None,
            frames=video.frames or None,
        )
        of_audio = {} if audio is None else dict(
            sample_rate=audio.codec_context.sample_rate, channels=audio.codec_context.channels
        )
        return MediaInfo(max(durations, default=None), video is not None, audio is not None, **of_video, **of_audio)


def frame_times(path: str | Path) -> np.ndarray:
    """(N,) float64 seconds at which each frame comes on screen, increasing; nothing is decoded.

    Raises: MissingFile; NoStream without video; EmptyStream without a frame; DamagedMedia if the file
        ends much before the duration it declares.
    """
    return frame_index(path).times


def frame_index(path: str | Path) -> FrameIndex:
    """What :func:`read_frames` needs to know of a file, so that several reads find it out once.

    Raises: as :func:`frame_times`.
    """
    with _opened(path) as container:
        return _index(container, path)


def sound_span(path: str | Path) -> tuple[float, float]:
    """Seconds at which a file's sound begins and ends, by its packets; nothing is decoded.

    Raises: MissingFile; DamagedMedia; NoStream without sound; EmptyStream for sound of no length.
    """
    with _opened(path) as container:
        stream = _audio_of(container)
        if stream is None:
            raise NoStream(f"{path} has no audio stream")
        origin, base = (container.start_time or 0) / MICROSECONDS, float(stream.time_base)
        begin, end = stream.start_time, None
        for packet in _demux(container, path, stream):
            if packet.pts is not None:
                begin = packet.pts if begin is None else begin
                end = packet.pts + (packet.duration or 0)
        if end is None or end <= begin:
            raise EmptyStream(f"{path} has an audio stream without a sample")
        return begin * base - origin, end * base - origin


def read_frames(
    path: str | Path, times: Sequence[float], index: FrameIndex | None = None
) -> tuple[list[np.ndarray], np.ndarray]:
    """The frames on screen at ``times`` (s, any order, repeats allowed) and the stamps they have.

    On screen is the last frame whose stamp is not after the asked time; before the first frame, the first.

    Args:
        index: the file's :func:`frame_index`, where it is known already.

    Returns: list of (H, W, 3) uint8 RGB, each an array of its own, and (len(times),) float64 seconds.
    Raises: as :func:`frame_times`, and DamagedMedia if one of these frames does not decode.
    """
    with _opened(path) as container:
        index = _index(container, path) if index is None else index
        wanted = index.at(times)
        frames = sorted(set(wanted.tolist()))
        try:
            pictures = {} if index.by_order else _decode_by_keys(container, path, index, frames)
        except DamagedMedia:  # the file's fault, or the jump's?
            pictures = {}
    if len(pictures) < len(frames):
        # Open groups of pictures, stamps that the decoder does not keep, containers that cannot jump.
        pictures = _decode_from_start(path, index, frames)
    return [pictures[i].copy() for i in wanted.tolist()], index.times[wanted]


@dataclass(frozen=True)
class FrameIndex:
    """Every frame of a file's video in the order of display."""

    stamps: np.ndarray  # (N,) int64, in units of the stream's time base
    keys: np.ndarray  # (N,) bool: decoding can start here
    times: np.ndarray  # (N,) float64 s
    by_order: bool  # frames are told apart by counting, not by stamp
    size: tuple[int, int]  # (H, W) as the header has it
    end: float  # s; the last frame stays as long as its predecessor did, a single one has no length

    def at(self, times: Sequence[float]) -> np.ndarray:
        """Numbers of the frames on screen at ``times`` (s)."""
        # A stamp that went through float may come back a hair too small.
        numbers = np.searchsorted(self.times, np.asarray(times, np.float64) + 1e-6, side="right") - 1
        return np.clip(numbers, 0, len(self.times) - 1)


def _index(container: av.container.InputContainer, path: str | Path) -> FrameIndex:
    stream = _video_of(container)
    if stream is None:
        raise NoStream(f"{path} has no video stream")
    origin = (container.start_time or 0) / MICROSECONDS
    bases = {s.index: float(s.time_base) for s in container.streams if s.time_base}
    packets, first, end, furthest = [], None, None, 0.0
    for packet in _demux(container, path, None):
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None or not packet.size or packet.stream_index not in bases:
            continue
        stop = stamp + (packet.duration or 0)
        furthest = max(furthest, stop * bases[packet.stream_index] - origin)
        if packet.stream is not stream:
            continue
        first = stamp if first is None else min(first, stamp)
        end = stop if end is None else max(end, stop)
        packets.append((stamp, packet.is_keyframe, packet.pts is None, packet.is_discard))
    while packets and not packets[0][1]:  # before the first key frame nothing can be decoded
        packets.pop(0)
    packets = [packet[:3] for packet in packets if not packet[3]]  # an edit list hides frames, maybe the key frame too
    if not packets:
        _check_length(path, "media", furthest, (container.duration or 0) / MICROSECONDS, JITTER)
        if stream.frames:
            raise DamagedMedia(f"{path} is truncated: its header declares {stream.frames} frames, none is there")
        raise EmptyStream(f"{path} has a video stream without a frame")
    guessed = any(no_stamp for *_, no_stamp in packets) or "avi" in container.format.name
    packets.sort()
    stamps = np.array([stamp for stamp, *_ in packets], np.int64)
    base = bases[stream.index]
    gap = float(np.diff(stamps).max(initial=0)) * base
    _check_size(path)
    declared = _declared(container, stream)
    if declared is None:
        _check_length(path, "media", furthest, (container.duration or 0) / MICROSECONDS, 2 * gap)
    else:
        _check_length(path, "video", (end - first) * base, declared, 2 * gap)
    times = stamps * base - origin
    return FrameIndex(
        stamps,
        np.array([key or i == 0 for i, (_, key, _) in enumerate(packets)]),  # a hidden key frame may come before
        times,
        # AVI has no stamps for display, and libavformat's guess is wrong for two B frames in a row.
        guessed and bool(stream.codec_context.has_b_frames),
        (stream.codec_context.height, stream.codec_context.width),
        float(times[-1] + (times[-1] - times[-2] if len(times) > 1 else 0)),
    )


def _declared(container, stream) -> float | None:
    """The seconds that the header gives this stream; None where they are or may be the whole file's.

    libavformat gives a stream without a duration of its own (Matroska) that of the container.
    """
    if not stream.duration:
        return None
    seconds = float(stream.duration * stream.time_base)
    return None if abs(seconds - (container.duration or 0) / MICROSECONDS) < 1e-3 else seconds


def _check_length(path: str | Path, kind: str, found: float, declared: float, tolerance: float) -> None:
    if declared - found > max(LOST * declared, tolerance):
        raise DamagedMedia(
            f"{path} is truncated: its header declares {declared:.2f} s of {kind}, {found:.2f} s are there"
        )


def _check_size(path: str | Path) -> None:
    """libavformat shortens the duration of an AVI or wav file that was cut off; the header knows better."""
    with open(path, "rb") as file:
        head = file.read(8)
    declared, found = int.from_bytes(head[4:8], "little") + 8, Path(path).stat().st_size
    # 0, 2^31 - 1 and 2^32 - 1, less a block or two, stand for "not known" where a file was written to a pipe.
    if head[:4] == b"RIFF" and 8 < declared < 0x7FFF0000 and found < (1 - LOST) * declared:
        raise DamagedMedia(f"{path} is truncated: its header declares {declared} bytes, {found} are there")


def _decode_by_keys(container, path: str | Path, index: FrameIndex, wanted: list[int]) -> dict[int, np.ndarray]:
    """RGB pictures by frame number, decoded from the key frame before each; what does not turn up is left out."""
    keys = np.flatnonzero(index.keys)
    key_of = {i: int(keys[np.searchsorted(keys, i, side="right") - 1]) for i in wanted}
    pictures: dict[int, np.ndarray] = {}
    for key in sorted(set(key_of.values())):
        number_of = {int(index.stamps[i]): i for i in wanted if key_of[i] == key}
        stream = _video_of(container)
        container.seek(int(index.stamps[key]), stream=stream, backward=True)
        previous = None
        for frame, whole in _pictures(container, path, stream):
            # A jump into intra refresh, where no frame is whole, shows nothing of the key frame.
            late = previous is None and frame.pts is not None and frame.pts > index.stamps[key]
            if frame.pts is None or late or (previous is not None and frame.pts <= previous):
                return {}
            previous = frame.pts
            if frame.pts in number_of:
                i = number_of[frame.pts]
                pictures[i] = _rgb(frame, whole, path, index.times[i])
            if frame.pts >= max(number_of):
                break
    return pictures


def _decode_from_start(path: str | Path, index: FrameIndex, wanted: list[int]) -> dict[int, np.ndarray]:
    """As :func:`_decode_by_keys`, but complete: without any jump."""
    pictures, number_of = {}, {int(stamp): i for i, stamp in enumerate(index.stamps)}
    with _opened(path) as container:
        for k, (frame, whole) in enumerate(_pictures(container, path, _video_of(container))):
            i = k if index.by_order else number_of.get(frame.pts)
            if i in wanted:
                pictures[i] = _rgb(frame, whole, path, index.times[i])
            if len(pictures) == len(wanted):
                return pictures
    lost = next(i for i in wanted if i not in pictures)
    raise DamagedMedia(
        f"{path} is damaged: frame {lost} of {len(index.times)}, at {index.times[lost]:.3f} s, does not decode"
    )


def _pictures(container, path, stream) -> Iterator[tuple[av.VideoFrame, bool]]:
    """Decoded frames, each with whether neither it nor those it builds on, back to a key frame, had errors."""
    whole = True
    for frame in _frames(container, path, stream):
        whole = not frame.is_corrupt and (whole or bool(frame.key_frame))
        yield frame, whole


def _rgb(frame: av.VideoFrame, whole: bool, path: str | Path, time: float) -> np.ndarray:
    if not whole:
        raise DamagedMedia(f"{path} is damaged: the frame at {time:.3f} s decodes with errors")
    return frame.to_ndarray(format="rgb24", **ONE_THREAD)


def read_sound(
    path: str | Path, start: float = 0.0, duration: float | None = None, sample_rate: int | None = None
) -> tuple[np.ndarray, int]:
    """Sound of ``duration`` seconds from ``start`` on, averaged to mono; of any container and of wav files.

    The window is cut by time stamps. Where a file's sound begins after ``start``, the silence that a
    player gives stands before it, and in holes of up to 0.1 s; where it ends early, fewer samples come back, and
    nothing is added.
    Damage that a decoder conceals without a word (H.264, MP3) cannot be told.

    Args:
        duration: None: to the end.
        sample_rate: Hz; None: as stored.

    Returns: (samples,) float32 in [-1, 1], and the sample rate.
    Raises: MissingFile; NoStream without sound; EmptyStream if there is none in the window; DamagedMedia
        if it does not decode, has a longer hole, or ends much before the duration the file declares.
    """
    with _opened(path) as container:
        stream = _audio_of(container)
        if stream is None:
            raise NoStream(f"{path} has no audio stream")
        rate = stream.codec_context.sample_rate
        if not rate:
            raise DamagedMedia(f"{path} states no sample rate")
        target = sample_rate or rate
        stop = np.inf if duration is None else start + duration
        jump = start > PREROLL and container.format.name not in INEXACT_SEEK
        try:
            sound, begin = _decode_sound(container, path, stream, start - PREROLL if jump else 0.0, stop + PREROLL)
        except DamagedMedia:  # the file's fault, or the jump's?
            if not jump:
                raise
            sound, begin = np.zeros(0, np.float32), 0.0
    if jump and (begin > start or _misses(sound, begin, rate, start, stop)):  # the jump, or the whole sound?
        with _opened(path) as container:
            sound, begin = _decode_sound(container, path, _audio_of(container), 0.0, stop + PREROLL)
    if not len(sound):
        raise EmptyStream(f"{path} has an audio stream without a sample")
    edge = f"begins at {begin:.3f} s" if begin >= stop else f"ends at {begin + len(sound) / rate:.3f} s"
    nothing = EmptyStream(f"{path} has no sound between {start:.3f} s and {stop:.3f} s; its sound {edge}")
    if _misses(sound, begin, rate, start, stop):
        raise nothing
    if not np.isfinite(sound).all():
        raise DamagedMedia(f"{path} is damaged: its sound holds values that are not finite")
    # Begin where samples of both rates coincide, so that a window equals the same part of the whole.
    lead = round(begin * rate) % (rate // math.gcd(rate, target))
    sound = _resample(np.concatenate([np.zeros(lead, np.float32), sound]), rate, target)
    offset = round(start * target) - round((begin - lead / rate) * target)
    if offset < 0:
        sound = np.concatenate([np.zeros(-offset, np.float32), sound])
        offset = 0
    number = len(sound) if duration is None else round(duration * target)
    sound = sound[offset : offset + number]
    if not len(sound):  # less than one sample of the window
        raise nothing
    return np.clip(sound, -1.0, 1.0), target


def _misses(sound: np.ndarray, begin: float, rate: int, start: float, stop: float) -> bool:
    return not len(sound) or begin + len(sound) / rate <= start or begin > max(start, 0.0) and begin >= stop


def _decode_sound(container, path, stream, start: float, stop: float) -> tuple[np.ndarray, float]:
    """Mono sound at its own rate around [start, stop] and the time of its first sample."""
    rate, origin = stream.codec_context.sample_rate, (container.start_time or 0) / MICROSECONDS
    if start > 0:
        container.seek(int((start + origin) / float(stream.time_base)), stream=stream, backward=True)
    bases = {s.index: float(s.time_base) for s in container.streams if s.time_base}
    parts, begin, total, due, furthest, silence = [], 0.0, 0, 0.0, 0.0, None
    for packet in _demux(container, path, None):
        if packet.pts is not None and packet.stream_index in bases:
            furthest = max(furthest, (packet.pts + (packet.duration or 0)) * bases[packet.stream_index] - origin)
        if packet.stream is not stream:
            continue
        for frame in _decoded(packet, path):
            end = begin + total / rate
            at = end if frame.pts is None else float(frame.pts * frame.time_base) - origin
            if not parts:
                begin = at
            elif min(abs(at - end), abs(at - due)) > JITTER:  # a clock that runs a little off makes no hole
                raise DamagedMedia(f"{path} is damaged: its sound jumps by {at - due:.3f} s at {due:.3f} s")
            elif at - end > ROUNDING:
                silence = len(parts)
                parts.append(np.zeros(round((at - end) * rate), np.float32))
                total += len(parts[-1])
            elif end - at > ROUNDING and silence is not None:  # the stamp before it was late by chance, and no hole
                kept = parts[silence][round((end - at) * rate) :]
                total -= len(parts[silence]) - len(kept)
                parts[silence] = kept
            parts.append(_mono(frame))
            total += len(parts[-1])
            due = at + len(parts[-1]) / rate
        if begin + total / rate >= stop:
            return np.concatenate(parts), begin
    end = begin + total / rate
    _check_size(path)
    guessed = container.format.name in RAW
    declared = None if guessed else _declared(container, stream)
    if declared is None and not guessed:
        _check_length(path, "media", max(furthest, end), (container.duration or 0) / MICROSECONDS, JITTER)
    last = float(((stream.start_time or 0) + (stream.duration or 0)) * stream.time_base) - origin
    if declared is not None:
        _check_length(path, "sound", end, last, JITTER)
    padding = round((end - last) * rate) if stream.duration and not guessed else 0
    if 0 < padding < min(JITTER * rate, total):  # what fills the encoder's last packet
        return np.concatenate(parts)[:-padding], begin
    return np.concatenate(parts) if parts else np.zeros(0, np.float32), begin


def _mono(frame: av.AudioFrame) -> np.ndarray:
    """(samples,) float32; integers are scaled to [-1, 1) by their own full range."""
    samples = frame.to_ndarray()
    channels = frame.layout.nb_channels
    if not frame.format.is_planar:
        samples = samples.reshape(-1, channels).T
    if samples.dtype == np.uint8:
        samples = samples.astype(np.float32) / 128 - 1
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float64) / float(2 ** (8 * samples.dtype.itemsize - 1))
    return samples.mean(0).astype(np.float32)


def _resample(sound: np.ndarray, rate: int, target: int) -> np.ndarray:
    if rate == target:
        return sound
    resampler = av.AudioResampler(format="flt", layout="mono", rate=target)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None]), format="flt", layout="mono")
    frame.sample_rate = rate
    parts = [part.to_ndarray()[0] for given in (frame, None) for part in resampler.resample(given)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def write_clip(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float,
    sound: np.ndarray | None = None,
    sample_rate: int | None = None,
) -> None:
    """Write an mp4 file: H.264 (MPEG-4 Part 2 where the build has no encoder for it) and mono AAC.

    Args:
        frames: (H, W, 3) uint8 RGB, all of one size with H and W even.
        fps: frames per second.
        sound: (samples,) float in [-1, 1]; None: no audio stream.
        sample_rate: of ``sound``, one that AAC knows (8,000, 16,000, 22,050, 44,100 Hz, ...).

    Raises: ValueError for frames or sound that cannot be stored so.
    """
    if (sound is None) != (sample_rate is None):
        raise ValueError(f"write_clip({path}): give both sound and sample_rate or neither")
    frames = iter(frames)
    picture = next(frames, None)
    if picture is None:
        raise ValueError(f"write_clip({path}): no frame")
    H, W = picture.shape[:2]
    if H % 2 or W % 2:
        raise ValueError(f"write_clip({path}): height and width must be even, got {H}x{W}")
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream(_encoder(), rate=Fraction(fps).limit_denominator(60000))
        video.width, video.height, video.pix_fmt = W, H, "yuv420p"
        video.codec_context.thread_count = 1  # the same file on any number of cores
        if video.codec_context.name == "mpeg4":
            video.codec_context.bit_rate = 20 * H * W
        else:
            video.options = {"mbtree": "0"}  # x264's look-ahead over small frames is not reproducible
        audio = None if sound is None else container.add_stream("aac", rate=sample_rate, layout="mono")
        number = 0
        while picture is not None:
            if picture.shape != (H, W, 3) or picture.dtype != np.uint8:
                raise ValueError(
                    f"write_clip({path}): frame {number} is {picture.shape} {picture.dtype}, expected "
                    f"({H}, {W}, 3) uint8"
                )
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = number
            container.mux(video.encode(frame))
            picture, number = next(frames, None), number + 1
        container.mux(video.encode())
        if audio is not None:
            samples = np.ascontiguousarray(np.asarray(sound, np.float32)[None])
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
            container.mux(audio.encode(frame))
            container.mux(audio.encode())


def _encoder() -> str:
    return "libx264" if "libx264" in av.codecs_available else "mpeg4"


def write_wav(path: str | Path, sound: np.ndarray, sample_rate: int) -> None:
    """Write (samples,) floats in [-1, 1] as a mono 16-bit PCM file."""
    samples = np.clip(np.round(np.asarray(sound, np.float64) * 32768), -32768, 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.tobytes())


@contextmanager
def _opened(path: str | Path) -> Iterator[av.container.InputContainer]:
    if not Path(path).is_file():  # also refuses pipes and devices, which may never answer
        raise MissingFile(f"{path}: no such file")
    with open(path, "rb"):  # what the system refuses, such as permission, is no fault of the file
        pass
    try:
        container = av.open(os.path.abspath(path), **ANY_METADATA)  # "12:30.mp4" would be a protocol
    except av.FFmpegError as error:
        raise DamagedMedia(f"{path} cannot be opened as a media file: {_reason(error)}") from error
    with container:
        if not len(container.streams):
            raise DamagedMedia(f"{path} cannot be read: no stream is found in it")
        for stream in container.streams:
            if stream.type in ("video", "audio"):
                if stream.codec_context is None:
                    raise DamagedMedia(f"{path} cannot be read: FFmpeg knows no decoder for its {stream.type} (stream "
                                       f"{stream.index}); convert the file, or leave it out of the list")
                stream.codec_context.thread_count = 1  # loader workers are the parallel part
        yield container


def _video_of(container) -> av.video.stream.VideoStream | None:
    """The first video stream that is no cover picture."""
    cover = av.stream.Disposition.attached_pic
    return next((s for s in container.streams.video if not s.disposition & cover), None)


def _audio_of(container) -> av.audio.stream.AudioStream | None:
    return next(iter(container.streams.audio), None)


def _demux(container, path, stream) -> Iterator[av.Packet]:
    try:
        yield from container.demux() if stream is None else container.demux(stream)
    except av.FFmpegError as error:
        raise DamagedMedia(f"{path} is damaged: {_reason(error)}") from error


def _frames(container, path, stream) -> Iterator[av.frame.Frame]:
    for packet in _demux(container, path, stream):
        yield from _decoded(packet, path)


def _decoded(packet: av.Packet, path: str | Path) -> list[av.frame.Frame]:
    try:
        return packet.decode()
    except av.FFmpegError as error:
        at = "" if packet.pts is None else f" at {float(packet.pts * packet.time_base):.3f} s"
        raise DamagedMedia(f"{path} is damaged{at}: {_reason(error)}") from error


def _reason(error: av.FFmpegError) -> str:
    return error.strerror or type(error).__name__
