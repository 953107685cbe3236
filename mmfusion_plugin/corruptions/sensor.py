"""What a modality's readings are before normalisation: layout, unit, limits, and the reading of "nothing"."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

__all__ = ["KINDS", "Sensor"]


@dataclass(frozen=True)
class _Kind:
    layout: str
    ranks: tuple[int, ...]  # of one sample
    unit: str
    valid_range: tuple[float, float] | None
    empty: float | None


# N frames, clips or crops; S samples of sound; F frequencies; T time.
KINDS = {
    "image": _Kind("(C, H, W), (N, C, H, W) or (N, C, T, H, W)", (3, 4, 5), "grey levels", (0.0, 255.0), 0.0),
    "depth": _Kind("(1, H, W) or (N, 1, H, W)", (3, 4), "metres", None, 0.0),
    "waveform": _Kind("(..., S)", (1, 2, 3), "share of full scale", (-1.0, 1.0), 0.0),
    "spectrogram": _Kind("(..., F, T)", (2, 3, 4), "log magnitude", None, None),
    "vector": _Kind("(C,) or (T, C)", (1, 2), "the features' own unit", None, None),
}


@dataclass(frozen=True)
class Sensor:
    """Readings of one modality.

    Args:
        kind: ``image``, ``depth``, ``waveform``, ``spectrogram`` or ``vector``.
        valid_range: lowest and highest reading; what noise pushes out is clipped. None: the kind's own
            (image 0..255, waveform -1..1, spectrogram and vector unbounded); depth must state it.
        empty: reading where nothing reaches the sensor. None: the kind's own (image, waveform and depth 0;
            spectrogram and vector have none). In depth it means "no value": such readings stay as they are.
        decibel: spectrogram alone: change per decibel, ln(10) / 20 for the natural logarithm of magnitudes,
            ln(10) / 10 for that of powers.
        unit: for reports; None: the kind's own.
        rate: waveform and spectrogram alone: samples or columns per second, so that a delay can be stated in time.

    Raises: ValueError for an unknown kind, a range that is none, a rate that is not positive or of another kind, and
        depth whose range holds ``empty``.
    """

    kind: str
    valid_range: tuple[float, float] | None = None
    empty: float | None = None
    decibel: float | None = None
    unit: str | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {list(KINDS)}, got {self.kind!r}")
        own = KINDS[self.kind]
        for key in ("valid_range", "empty", "unit"):
            if getattr(self, key) is None:
                object.__setattr__(self, key, getattr(own, key))
        if self.valid_range is not None:
            object.__setattr__(self, "valid_range", _interval("valid_range", self.valid_range))
        for key in ("empty", "decibel"):
            value = getattr(self, key)
            if value is not None and not is_finite(value):
                raise ValueError(f"{key} must be a finite number, got {value!r}")
        if self.decibel is not None and (self.kind != "spectrogram" or self.decibel <= 0):
            raise ValueError(
                f"decibel is the positive change of a spectrogram per dB, got {self.decibel} for kind={self.kind!r}"
            )
        if self.rate is not None and not (
            self.kind in ("waveform", "spectrogram") and is_finite(self.rate) and self.rate > 0
        ):
            raise ValueError(
                f"rate is the positive number of samples or columns per second of a waveform or spectrogram, got "
                f"{self.rate!r} for kind={self.kind!r}"
            )
        if self.kind == "depth":
            # Noise must neither invent a missing reading nor lose one without being asked to.
            if self.valid_range is None:
                raise ValueError("kind='depth' needs valid_range in metres, for example (0.1, 10.0)")
            low, high = self.valid_range
            if low <= self.empty <= high:
                raise ValueError(
                    f"depth's valid_range {self.valid_range} holds empty={self.empty}, which means 'no value'; "
                    "raise its lower end, for example to 0.1 m"
                )

    def check(self, x: Tensor, name: str) -> None:
        """Raises ValueError unless ``x`` is one sample of this sensor."""
        own = KINDS[self.kind]
        if x.ndim not in own.ranks:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)} per sample, {self.kind} is {own.layout}; set kind to one of "
                f"{list(KINDS)} or reshape in the pipeline"
            )
        if self.kind == "depth" and x.shape[-3] != 1:
            raise ValueError(f"{name} has {x.shape[-3]} channels (shape {tuple(x.shape)}), depth has one")
        if not x.is_floating_point() and not (self.kind == "image" and x.dtype == torch.uint8):
            raise ValueError(
                f"{name} holds {x.dtype}; {self.kind} is read as floating point ({self.unit})"
                f"{' or uint8' if self.kind == 'image' else ''}; convert in the pipeline"
            )

    def known(self, x: Tensor) -> Tensor:
        """Where ``x`` is a reading: finite, and in depth not ``empty``."""
        known = torch.isfinite(x)
        return known & (x != self.empty) if self.kind == "depth" else known

    def clip(self, x: Tensor) -> Tensor:
        return x if self.valid_range is None else x.clamp(*self.valid_range)


def _interval(key: str, given: Sequence[float]) -> tuple[float, float]:
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 2 or not all(map(is_finite, given)):
        raise ValueError(f"{key} must be two finite numbers (low, high), got {given!r}")
    low, high = (float(v) for v in given)
    if not low < high:
        raise ValueError(f"{key} must rise from low to high, got {given!r}")
    return low, high


def is_finite(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
