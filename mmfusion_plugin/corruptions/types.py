"""Corruptions of one modality's readings, in physical units, before normalisation.

Every type keeps five rules: the input is never written to; the identity strength gives it back bit by
bit; readings leave ``Sensor.valid_range`` on neither side; non-finite readings, and depth without value,
stay where they are; one generator state gives one noise and one order of places at every strength, so that
more strength adds to the damage done by less.

Axes: B batch, C channels, N frames, H height, W width, F frequencies, T time, S samples of sound.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from .sensor import Sensor

__all__ = ["CORRUPTIONS", "Corruption"]

# Random error of Kinect's depth in m per m^2: 1/2 x 2.85e-5 cm per cm^2, the calibrated m/(fb) and half a
# disparity step in Khoshelham and Oude Elberink, Sensors 12(2), 2012, 1437-1454. 3.6 cm at 5 m.
KINECT = 1.425e-3
BLOB = 16  # pixels between the independent values behind a hole in depth; ours


@dataclass(frozen=True)
class Corruption:
    """One type of corruption; call it on a batch, or :meth:`on_sample` on one sample.

    Args:
        name: key in ``CORRUPTIONS``.
        function: (x, known, strength, generator, sensor) -> x of one sample; unknown readings come as 0
            and what it makes of them is thrown away.
        unit: of the strength; ``{unit}`` stands for the sensor's.
        kinds: sensors it fits, see ``Sensor.kind``.
        limits: lowest and highest strength.
        identity: strength that changes nothing; inf where less strength is more damage.
        needs: by kind, what the sensor must state: one name, or several.

    Shapes: x (B, ...) with samples as in ``KINDS``, strength_B (B,) -> x's shape; floating point keeps its
        type, uint8 becomes float32.
    Raises: ValueError for a kind, shape or strength that does not fit.
    """

    name: str
    function: Callable[[Tensor, Tensor, float, torch.Generator, Sensor], Tensor]
    unit: str
    kinds: tuple[str, ...]
    limits: tuple[float, float] = (0.0, math.inf)
    identity: float = 0.0
    needs: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)

    def __call__(self, x: Tensor, strength_B: Tensor, generator: torch.Generator, sensor: Sensor) -> Tensor:
        if x.ndim == 0 or len(x) == 0 or strength_B.shape != x.shape[:1]:
            raise ValueError(
                f"{self.name} needs samples and one strength for each, got strengths of shape "
                f"{tuple(strength_B.shape)} for x of shape {tuple(x.shape)}"
            )
        return torch.stack([self.on_sample(x_b, float(s), generator, sensor) for x_b, s in zip(x, strength_B)])

    def on_sample(self, x: Tensor, strength: float, generator: torch.Generator, sensor: Sensor) -> Tensor:
        self.check_sensor(sensor)
        self.check_strength(strength)
        sensor.check(x, self.name)
        x = as_float(x)
        if strength == self.identity or x.numel() == 0:
            return x
        # float16 and bfloat16 would lose grey levels and overflow in sums
        readings = x.to(torch.promote_types(x.dtype, torch.float32))
        known = sensor.known(readings)
        changed = self.function(torch.where(known, readings, 0.0), known, strength, generator, sensor)
        return torch.where(known, changed, readings).to(x.dtype)

    def check_sensor(self, sensor: Sensor) -> None:
        if sensor.kind not in self.kinds:
            fitting = [name for name, other in CORRUPTIONS.items() if sensor.kind in other.kinds]
            raise ValueError(f"{self.name!r} does not fit kind={sensor.kind!r}; types that do are {fitting}")
        keys = self.needs.get(sensor.kind, ())
        for key in (keys,) if isinstance(keys, str) else keys:
            if getattr(sensor, key) is None:
                raise ValueError(f"{self.name!r} on kind={sensor.kind!r} needs {key}; state it beside kind")

    def check_strength(self, strength: float) -> None:
        low, high = self.limits
        if strength != self.identity and not (math.isfinite(strength) and low <= strength <= high):
            raise ValueError(
                f"strength of {self.name!r} is {strength}, expected a finite number in [{low:g}, {high:g}]; "
                "change the level, or scale and offset"
            )

    def unit_on(self, sensor: Sensor) -> str:
        return self.unit.format(unit=sensor.unit)


CORRUPTIONS: dict[str, Corruption] = {}


def as_float(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.float()


def _register(unit: str, kinds: Sequence[str], **options) -> Callable:
    def register(function: Callable) -> Callable:
        # new types go to the end of this file: the place in CORRUPTIONS is the number in logs
        CORRUPTIONS[function.__name__] = Corruption(function.__name__, function, unit, tuple(kinds), **options)
        return function

    return register


@_register("standard deviation, {unit}", ["image", "depth", "waveform", "spectrogram", "vector"])
def gaussian(x: Tensor, known: Tensor, strength: float, generator: torch.Generator, sensor: Sensor) -> Tensor:
    """x + N(0, strength^2), independent per reading, then clipped."""
    return sensor.clip(x + strength * _normal(x.shape, x, generator))


@_register(
    "share of the pixels", ["image", "depth", "spectrogram"], limits=(0.0, 1.0), needs={"spectrogram": "valid_range"}
)
def salt_and_pepper(x: Tensor, known: Tensor, strength: float, generator: torch.Generator, sensor: Sensor) -> Tensor:
    """Each pixel, with all its channels, is hit with probability ``strength``: half lowest, half highest."""
    shape = list(x.shape)
    if sensor.kind != "spectrogram":
        shape[-3 if x.ndim < 5 else -4] = 1
    hit, salt = (_uniform(shape, x, generator) for _ in range(2))
    low, high = sensor.valid_range
    return torch.where(hit < strength, torch.where(salt < 0.5, x.new_tensor(low), x.new_tensor(high)), x)


@_register("sigma in pixels", ["image", "depth", "spectrogram"])
def blur(x: Tensor, known: Tensor, strength: float, generator: torch.Generator, sensor: Sensor) -> Tensor:
    """Gaussian mean, over the last two axes, of what is known and inside the picture."""
    weight = _smooth(known.to(x.dtype), strength)
    return sensor.clip(_smooth(x, strength) / weight.clamp(min=torch.finfo(x.dtype).tiny))


@_register(
    "share of the area", ["image", "depth", "spectrogram"], limits=(0.0, 1.0), needs={"spectrogram": "empty"}
)
def occlusion(x: Tensor, known: Tensor, strength: float, generator: torch.Generator, sensor: Sensor) -> Tensor:
    """Random rectangles, the same in all frames and channels, read ``empty``; the share is exact to one pixel."""
    return x.masked_fill(_rectangles(*x.shape[-2:], strength, generator).to(x.device), sensor.empty)


@_register("attenuation in dB", ["image", "waveform", "spectrogram", "vector"], needs={"spectrogram": "decibel"})
def gain(x: Tensor, known: Tensor, strength: float, generator: torch.Generator, sensor: Sensor) -> Tensor:
    """x 10^(-strength / 20); a log spectrogram loses ``strength`` x ``decibel``, down to ``empty`` where stated."""
    if sensor.kind != "spectrogram":
        return sensor.clip(x * 10 ** (-strength / 20))
    fainter = x - strength * sensor.decibel
    return sensor.clip(fainter if sensor.empty is None else fainter.clamp(min=sensor.empty))


@_register("share of the readings", ["depth"], limits=(0.0, 1.0))
def depth_holes(x: Tensor, known: Tensor, strength: float, generator: torch.Generator, sensor: Sensor) -> Tensor:
    """Blobs of readings are lost (``empty``): where a smooth random field is highest. Ours, no paper."""
    H, W = x.shape[-2:]
    coarse = _normal((x[..., 0, 0].numel(), 1, H // BLOB + 2, W // BLOB + 2), x, generator)
    field_ = functional.interpolate(coarse, (H, W), mode="bilinear", align_corners=True).reshape(x.shape)
    lost = round(strength * int(known.sum()))
    places = torch.where(known, field_, -torch.inf).flatten().topk(lost).indices
    return x.flatten().index_fill(0, places, sensor.empty).reshape(x.shape)


@_register("times Kinect's standard deviation", ["depth"])
def depth_noise(x: Tensor, known: Tensor, strength: float, generator: torch.Generator, sensor: Sensor) -> Tensor:
    """x + N(0, (strength x 1.425e-3 x^2)^2) in metres, see ``KINECT``, then clipped."""
    return sensor.clip(x + strength * KINECT * x.square() * _normal(x.shape, x, generator))


@_register("signal-to-noise ratio in dB", ["waveform"], limits=(-math.inf, math.inf), identity=math.inf)
def sound_snr(x: Tensor, known: Tensor, strength: float, generator: torch.Generator, sensor: Sensor) -> Tensor:
    """White noise of exactly this ratio of mean powers over the sample, before clipping; silence stays silent."""
    return sensor.clip(x + _at_ratio(_normal(x.shape, x, generator), x, known, strength))


@_register("signal-to-noise ratio in dB", ["waveform"], limits=(-math.inf, math.inf), identity=math.inf)
def sound_snr_pink(x: Tensor, known: Tensor, strength: float, generator: torch.Generator, sensor: Sensor) -> Tensor:
    """:func:`sound_snr` with power falling as 1 / frequency, and no constant part."""
    spectrum = torch.fft.rfft(_normal(x.shape, x, generator))
    amplitude = torch.arange(spectrum.shape[-1], device=x.device, dtype=x.dtype).clamp(min=1).rsqrt()
    amplitude[0] = 0
    noise = torch.fft.irfft(spectrum * amplitude, n=x.shape[-1])
    return sensor.clip(x + _at_ratio(noise, x, known, strength))


@_register(
    "share of the time axis", ["waveform", "spectrogram"], limits=(0.0, 1.0), needs={"spectrogram": "empty"}
)
def time_masking(x: Tensor, known: Tensor, strength: float, generator: torch.Generator, sensor: Sensor) -> Tensor:
    """One span of the last axis, the same in all channels, reads ``empty``; exact to one step."""
    T = x.shape[-1]
    length = round(strength * T)
    start = int(float(_uniform((), x, generator)) * (T - length + 1))
    changed = x.clone()
    changed[..., start : start + length] = sensor.empty
    return changed


@_register("pixels", ["image", "depth"])
def misalignment(x: Tensor, known: Tensor, strength: float, generator: torch.Generator, sensor: Sensor) -> Tensor:
    """The picture lies so many pixels off, in a random direction, the same in all frames; to the nearest pixel.

    What moves in from outside reads ``empty``. Holes in depth move along, and those in place stay.
    """
    angle = 2 * math.pi * float(_uniform((), x, generator))
    return _moved(x, (round(strength * math.sin(angle)), round(strength * math.cos(angle))), sensor.empty)


@_register(
    "milliseconds", ["waveform", "spectrogram"], needs={"waveform": "rate", "spectrogram": ("rate", "empty")}
)
def time_shift(x: Tensor, known: Tensor, strength: float, generator: torch.Generator, sensor: Sensor) -> Tensor:
    """The sound comes so much too late or, equally likely, too early; to the nearest step of the last axis.

    What moves in from outside reads ``empty``.
    """
    late = float(_uniform((), x, generator)) < 0.5
    steps = round(strength / 1000 * sensor.rate)
    return _moved(x, (steps if late else -steps,), sensor.empty)


def _moved(x: Tensor, steps: Sequence[int], empty: float) -> Tensor:
    """``x`` moved along its last axes, by a number of places for each."""
    moved = torch.full_like(x, empty)
    source, target = [...], [...]
    for size, step in zip(x.shape[-len(steps):], steps):
        step = max(-size, min(size, step))
        source.append(slice(max(0, -step), size - max(0, step)))
        target.append(slice(max(0, step), size - max(0, -step)))
    moved[tuple(target)] = x[tuple(source)]
    return moved


def _normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


def _uniform(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


def _at_ratio(noise: Tensor, signal: Tensor, known: Tensor, decibel: float) -> Tensor:
    """``noise`` scaled so that signal over noise, in power over what is known, is ``decibel``."""
    power, own = ((part.square() * known).sum() for part in (signal, noise))
    # one sample of sound has no pink noise: 0 stays 0
    return noise * (power / own.clamp(min=1e-12)).sqrt() * 10 ** (-decibel / 20)


def _smooth(x: Tensor, sigma: float) -> Tensor:
    """Gaussian sums over the last two axes with zeros outside, weight 1 at the centre."""
    rows, columns = (_weights(size, sigma, x) for size in x.shape[-2:])
    # two matrix products: on a CPU five times faster than two long convolutions of one channel
    return rows @ x @ columns


def _weights(size: int, sigma: float, like: Tensor) -> Tensor:
    place = torch.arange(size, device=like.device, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((place[:, None] - place) / sigma).square()).to(like.dtype)
    # what is too small to change a sum would only bring in denormal numbers, which are slow
    return weights.masked_fill(weights < torch.finfo(like.dtype).eps, 0.0)


def _rectangles(H: int, W: int, share: float, generator: torch.Generator) -> Tensor:
    """(H, W) bool with round(share H W) pixels set; the last rectangle is cut to fit."""
    covered = torch.zeros(H, W, dtype=torch.bool)
    missing = round(share * H * W)
    while missing > 0:
        area, aspect, y, x = torch.rand(4, generator=generator, device=generator.device).tolist()
        # 2 to 10 % of the picture whatever the share, so that a larger one adds rectangles to the same; sides
        # between 1:2 and 2:1 of the picture's; centre anywhere: corners are reached
        side = math.sqrt(0.02 + 0.08 * area)
        ratio = 2 ** (aspect - 0.5)
        h, w = max(1, round(H * side * ratio)), max(1, round(W * side / ratio))
        top, left = int(y * H) - h // 2, int(x * W) - w // 2
        new = torch.zeros_like(covered)
        new[max(top, 0) : max(top + h, 0), max(left, 0) : max(left + w, 0)] = True
        places = (new & ~covered).flatten().nonzero().flatten()[:missing]
        covered.view(-1)[places] = True
        missing -= len(places)
    return covered
