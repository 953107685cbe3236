"""Clips whose frames and sound tell their time, and the loader that most tests of them begin with."""
from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from mmfusion_plugin.recognition.media import write_clip, write_wav
from mmfusion_plugin.recognition.transforms import LoadClip

RATE, FPS, STEP = 8000, 20, 3
SOUND = dict(sample_rate=RATE, seconds=1.0)


def ramp(seconds):
    """Sound whose value tells its time: -0.5 at 0 s, rising by 0.2 a second."""
    return (np.arange(round(seconds * RATE)) / RATE * 0.2 - 0.5).astype(np.float32)


def write_files(root: Path) -> None:
    """4 s of frames whose grey level is 3 times their number, and a separate ramp of sound; faulty ones."""
    frames = [np.full((48, 64, 3), STEP * i, np.uint8) for i in range(80)]
    write_clip(root / "clip.mp4", frames, FPS, ramp(4), RATE)
    write_clip(root / "silent.mp4", frames, FPS)
    write_clip(root / "one.mp4", frames[20:21], FPS, ramp(2), RATE)
    write_clip(root / "short_sound.mp4", frames, FPS, ramp(2), RATE)
    write_clip(root / "short_video.mp4", frames[:20], FPS, ramp(4), RATE)
    write_wav(root / "ramp.wav", ramp(4), RATE)
    write_wav(root / "short.wav", ramp(0.3), RATE)
    with wave.open(str(root / "empty.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
    content = (root / "clip.mp4").read_bytes()
    (root / "cut.mp4").write_bytes(content[: len(content) // 2])


def load(files, visual="clip.mp4", audio="ramp.wav", **options):
    media = {m: None if name is None else str(files / name) for m, name in (("visual", visual), ("audio", audio))}
    given = dict(num_frames=4, sound=SOUND) | options
    return LoadClip(**given)(dict(media=media, label=2, filename="x"))
