"""Small files of every kind and fault, written as a test needs them."""
from __future__ import annotations

import struct
from fractions import Fraction

import av
import numpy as np

RATE, STEP = 16000, 4
CONTAINERS = {"mp4": ("libx264", "aac"), "matroska": ("libx264", "aac"), "mpegts": ("libx264", "aac"),
              "avi": ("mpeg4", "libmp3lame")}


def tone(seconds, rate=RATE, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def numbered(count):
    """Frames whose grey level is STEP times their number."""
    return [np.full((48, 64, 3), STEP * i, np.uint8) for i in range(count)]


def numbers_of(frames):
    return [round(float(frame.mean()) / STEP) for frame in frames]


def textured(count):
    """Moving blocks: frames that differ and build on each other."""
    blocks = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    return [np.roll(picture, (i, 2 * i), (0, 1)) for i in range(count)]


def write(path, form, frames, stamps, sound=None, sound_start=0, video_options=None, options=None,
          vcodec=None):
    """Frames at ``stamps`` (units of 1/100 s) and sound from ``sound_start`` samples on."""
    vcodec, acodec = vcodec or CONTAINERS[form][0], CONTAINERS[form][1]
    with av.open(str(path), "w", format=form, options=options or {}) as container:
        video = container.add_stream(vcodec, rate=100 if form != "avi" else 25, options=video_options or {})
        video.height, video.width = frames[0].shape[:2] if frames else (48, 64)
        video.pix_fmt = "yuv420p"
        if vcodec == "mpeg4":
            video.codec_context.bit_rate = 2_000_000
        video.codec_context.time_base = Fraction(1, 100 if form != "avi" else 25)
        audio = container.add_stream(acodec, rate=RATE, layout="mono") if sound is not None else None
        for image, stamp in zip(frames, stamps):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 100 if form != "avi" else 25)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None]), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, sound_start, Fraction(1, RATE)
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def write_pcm(path, samples, tag, bits, rate=8000):
    """A wav file as the format says it, byte by byte; ``samples`` (S, channels) of the stored type."""
    S, channels = samples.shape
    if bits == 24:
        data = b"".join(int(x).to_bytes(3, "little", signed=True) for x in samples.reshape(-1))
    else:
        data = samples.tobytes()
    block = channels * bits // 8
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, tag, channels, rate,
                       rate * block, block, bits, b"data", len(data))
    path.write_bytes(head + data)
    return path


def write_sound(path, form, codec, sound, stamps=(0.0,)):
    """A stream of sound alone, ``sound`` once at each of ``stamps`` (s)."""
    with av.open(str(path), "w", format=form) as container:
        audio = container.add_stream(codec, rate=RATE, layout="mono")
        for at in stamps:
            frame = av.AudioFrame.from_ndarray((sound[None] * 32767).astype(np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, round(at * RATE), Fraction(1, RATE)
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    return path


def decoded_in_order(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def cut(path, part, target):
    content = path.read_bytes()
    target.write_bytes(content[: int(part * len(content))])
    return target
