"""One sensor and one plausible batch per kind."""
from __future__ import annotations

import math

import torch

from mmfusion_plugin.corruptions import CORRUPTIONS, Sensor

SENSORS = {
    "image": Sensor("image"),
    "depth": Sensor("depth", valid_range=(0.1, 10.0)),
    "waveform": Sensor("waveform", rate=1000.0),
    "spectrogram": Sensor("spectrogram", valid_range=(-12.0, 4.0), empty=-12.0, decibel=math.log(10) / 20, rate=100.0),
    "vector": Sensor("vector"),
}
SHAPES = {"image": (3, 24, 20), "depth": (1, 24, 20), "waveform": (400,), "spectrogram": (1, 16, 30), "vector": (50,)}
# from mild to severe, inside each type's limits
STRENGTHS = {
    "gaussian": (0.05, 0.5, 2.0),
    "salt_and_pepper": (0.05, 0.3, 0.9),
    "blur": (0.4, 1.0, 4.0),
    "occlusion": (0.05, 0.4, 0.95),
    "gain": (1.0, 6.0, 20.0),
    "depth_holes": (0.05, 0.3, 0.9),
    "depth_noise": (1.0, 5.0, 30.0),
    "sound_snr": (30.0, 10.0, -5.0),
    "sound_snr_pink": (30.0, 10.0, -5.0),
    "time_masking": (0.1, 0.4, 0.9),
    "misalignment": (1.5, 4.0, 11.0),
    "time_shift": (20.0, 80.0, 200.0),
}
MOVES = ("misalignment", "time_shift")  # what damage they do depends on how smooth the readings are
PAIRS = [(name, kind) for name, corruption in CORRUPTIONS.items() for kind in corruption.kinds]


def readings(kind: str, batch: int = 2, shape=None, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, *(SHAPES[kind] if shape is None else shape))
    uniform = torch.rand(shape, generator=generator)
    if kind == "depth":
        depth = 1 + 6 * uniform
        return torch.where(torch.rand(shape, generator=generator) < 0.1, 0.0, depth)
    low, high = {"image": (0, 255), "waveform": (-0.5, 0.5), "spectrogram": (-8, 1), "vector": (-1, 1)}[kind]
    return low + (high - low) * uniform


def corrupt(name: str, x: torch.Tensor, strength: float, sensor: Sensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return CORRUPTIONS[name](x, torch.full((len(x),), strength), generator, sensor)
