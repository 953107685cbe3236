"""Noise of known level on a batch: in training at random, in evaluation as told.

Every sample and modality has a generator of its own, seeded from a hash of what names it. So the noise on
a sample depends neither on the rest of the batch nor on how often anybody else has drawn.
"""
from __future__ import annotations

import hashlib
import math
import operator
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import torch
from torch import Tensor, nn

from .sensor import Sensor, is_finite
from .types import CORRUPTIONS, as_float

__all__ = ["FixedNoise", "ModalityNoise", "NoiseInjection", "wrong_keys"]

MODES = ("one", "independent")
TYPES = tuple(CORRUPTIONS)  # a type's number is its place here

Samples = Tensor | Sequence[Tensor]
Noisy = tuple[dict[str, Samples], dict[str, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class ModalityNoise:
    """How one modality is corrupted: ``noise.<modality>`` in the config.

    Args:
        kind, valid_range, empty, decibel, unit, rate: the sensor, see :class:`Sensor`.
        levels: (low, high) drawn in training, 0 < low <= high.
        scale, offset: by type: strength = offset + scale x level, in the type's unit. ``scale`` may name
            types that training does not use, for :meth:`NoiseInjection.fixed`; ``offset`` is 0 unless given.
        types: drawn in training, each equally often.
        whole_levels: draw integers (the released protocol's 1..11); False: real numbers.

    Raises: ValueError for anything that does not fit.
    """

    kind: str
    levels: tuple[float, float]
    scale: Mapping[str, float]
    offset: Mapping[str, float] = field(default_factory=dict)
    types: Sequence[str] = ("gaussian",)
    whole_levels: bool = True
    valid_range: tuple[float, float] | None = None
    empty: float | None = None
    decibel: float | None = None
    unit: str | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        self._check_levels()
        for key in ("scale", "offset"):
            by_type = getattr(self, key)
            if not isinstance(by_type, Mapping) or not all(is_finite(v) for v in by_type.values()):
                raise ValueError(
                    f"{key} must be a dict of numbers by type such as dict(gaussian=10.0), got {by_type!r}"
                )
            _check_types(key, list(by_type))
        if isinstance(self.types, str) or not self.types or len(set(self.types)) != len(self.types):
            raise ValueError(f"types must be a list of different names such as ['gaussian'], got {self.types!r}")
        _check_types("types", self.types)
        for name, scale in self.scale.items():
            CORRUPTIONS[name].check_sensor(self.sensor)
            worse = -1 if CORRUPTIONS[name].identity == math.inf else 1
            if scale * worse <= 0:
                raise ValueError(
                    f"scale.{name} is {scale} ({CORRUPTIONS[name].unit_on(self.sensor)}, per level), but a higher "
                    f"level must do more damage: give a {'negative' if worse < 0 else 'positive'} number"
                )
        for name in self.types:
            for level in self.levels:
                self.strength(name, level)

    @cached_property
    def sensor(self) -> Sensor:
        return Sensor(self.kind, self.valid_range, self.empty, self.decibel, self.unit, self.rate)

    def strength(self, name: str, level: float) -> float:
        """Strength of type ``name`` at ``level`` > 0. Raises ValueError if there is none."""
        _check_types("type", [name])
        if name not in self.scale:
            raise ValueError(
                f"scale has no entry for {name!r}, only {sorted(self.scale)}; state its change per level, "
                f"{CORRUPTIONS[name].unit_on(self.sensor)}"
            )
        if not is_finite(level) or level <= 0:
            raise ValueError(f"a noise level must be a positive number, got {level!r}; 0 is clean")
        strength = self.offset.get(name, 0.0) + self.scale[name] * level
        strength = next((limit for limit in CORRUPTIONS[name].limits if math.isclose(strength, limit)), strength)
        try:
            CORRUPTIONS[name].check_strength(strength)
        except ValueError as error:
            raise ValueError(f"level {level:g}: {error}") from None
        return strength

    def _check_levels(self) -> None:
        levels = self.levels
        pair = isinstance(levels, Sequence) and not isinstance(levels, str) and len(levels) == 2
        if not pair or not all(map(is_finite, levels)) or not 0 < levels[0] <= levels[1]:
            raise ValueError(f"levels must be (low, high) with 0 < low <= high, got {levels!r}")
        if self.whole_levels and any(level != int(level) for level in levels):
            raise ValueError(f"levels is {tuple(levels)}: give whole numbers, or set whole_levels=False")


class NoiseInjection(nn.Module):
    """Corrupt random training samples at known levels; in evaluation change nothing.

    A training draw depends on (seed, rank, step, place in the batch) and on which modalities the sample
    has; seed and step are buffers, so that a resumed run draws what the unbroken one would have drawn, and
    the global generators are left alone. Levels and types are the same on every device; the noise itself is
    drawn where the data are, and CPU and GPU generators differ.

    Args:
        modalities: names of everything in the batch.
        noise: what is done to which modality, see :class:`ModalityNoise`; modalities not named here stay
            as they are.
        clean_share: share of the samples left clean; with ``mode='independent'``, of each modality.
        clean_level: level reported for what is clean; a released convention makes it small and positive.
        mode: ``one``: a noisy sample has one noisy modality, equally likely among those it has;
            ``independent``: each modality decides for itself.
        seed: None takes torch's initial seed, which the runner sets.

    Shapes: batch {m: (B, ...) or list of B tensors (...)}, available {m: (B,)} bool or None for "all there" ->
        batch as floating point, levels {m: (B,)} float32, types {m: (B,)} int64. A type is its place in
        ``CORRUPTIONS``, -1 is clean. A missing modality keeps its values, level 0 and type -1.
    Raises: ValueError for options, names and shapes that do not fit and a batch of no sample; TypeError for masks
        that are not bool.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        noise: Mapping[str, Mapping],
        clean_share: float = 0.5,
        clean_level: float = 0.0,
        mode: str = "one",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(modalities, str) or not modalities or len(set(modalities)) != len(modalities):
            raise ValueError(f"noise.modalities must be a list of different names, got {modalities!r}")
        if not isinstance(noise, Mapping) or not noise:
            raise ValueError(
                f"noise must name at least one modality such as dict({modalities[0]}=dict(...)), got {noise!r}"
            )
        unknown = sorted(set(noise) - set(modalities))
        if unknown:
            raise ValueError(f"noise names {unknown}, modalities names {list(modalities)}")
        if not 0.0 <= clean_share <= 1.0:
            raise ValueError(f"clean_share must be in [0, 1], got {clean_share}")
        if not is_finite(clean_level) or clean_level < 0:
            raise ValueError(f"clean_level must be a number of 0 or more, got {clean_level!r}")
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        self.modalities = tuple(modalities)
        # in the order of modalities: mmengine sorts the keys of dicts when it saves a config
        self.noise = {m: _modality_noise(m, noise[m]) for m in modalities if m in noise}
        self.clean_share = clean_share
        self.clean_level = float(clean_level)
        self.mode = mode
        seed = torch.initial_seed() if seed is None else seed
        # below 2^24: mmengine's SyncBuffersHook averages buffers over ranks as float32
        self.register_buffer("seed", torch.tensor(seed % 2**24, dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        batch: Mapping[str, Samples],
        available: Mapping[str, Tensor] | None = None,
        keys: Sequence[int | str] | None = None,
        force: bool = False,
    ) -> Noisy:
        """Args: keys: names of the samples; with them the draw depends on seed and name alone, and step stays.
        force: corrupt outside training too."""
        number, there = _check_batch(self.modalities, self.noise, batch, available)
        if not (self.training or force):
            return _inject(self, batch, there, [{}] * number, [()] * number)
        if keys is None:
            base = ("step", int(self.seed), _rank(), int(self.step))
            streams = [(*base, b) for b in range(number)]
            self.step += 1
        else:
            streams = _named_streams(int(self.seed), keys, number)
        plan = [self._draw(stream, [m for m in self.noise if there[m][b]]) for b, stream in enumerate(streams)]
        return _inject(self, batch, there, plan, streams)

    def fixed(self, modality: str, type: str, level: float, seed: int = 0) -> FixedNoise:
        """What evaluates one row of a sweep: ``type`` at ``level`` on ``modality`` of every sample.

        Types and levels that training does not use are welcome, as long as ``noise.<modality>.scale`` names
        the type. Raises: ValueError for a modality without noise, or a type or level that has no strength.
        """
        return FixedNoise(self, modality, type, level, seed)

    def _draw(self, stream: tuple, there: Sequence[str]) -> dict[str, tuple[str, float]]:
        """{modality: (type, level)} of one sample; what is missing takes no part and shifts no other draw."""
        generator = random.Random(repr(stream))
        noisy = generator.random() >= self.clean_share
        names = sorted(self.noise)
        first = next((m for m in generator.sample(names, len(names)) if m in there), None)
        drawn = {}
        for m in names:
            noise = self.noise[m]
            own = generator.random() >= self.clean_share
            name = generator.choice(noise.types)
            low, high = noise.levels
            level = generator.randint(int(low), int(high)) if noise.whole_levels else generator.uniform(low, high)
            if m in there and (noisy and m == first if self.mode == "one" else own):
                drawn[m] = (name, float(level))
        return drawn

    def extra_repr(self) -> str:
        lines = [f"mode={self.mode}, clean_share={self.clean_share}, clean_level={self.clean_level}"]
        for m, noise in self.noise.items():
            for name in noise.types:
                low, high = (noise.strength(name, level) for level in noise.levels)
                lines.append(
                    f"{m}: {name} at levels {noise.levels[0]:g}..{noise.levels[1]:g}: {low:g}..{high:g}, "
                    f"{CORRUPTIONS[name].unit_on(noise.sensor)}"
                )
        return "\n".join(lines)


class FixedNoise(nn.Module):
    """One type at one level on one modality of every sample that has it; made by :meth:`NoiseInjection.fixed`.

    Active in training and evaluation alike. With ``keys`` the noise on a sample depends on (seed, key) alone:
    on no batch size, order or rank. Without, it depends on (seed, rank, how many samples came before): the
    same for every batch size, as long as the order is; a new object starts again. All levels of a sweep
    share their random numbers, so that their differences are those of the level.

    Shapes, Raises: as :class:`NoiseInjection`.
    """

    def __init__(self, noise: NoiseInjection, modality: str, type: str, level: float, seed: int = 0) -> None:
        super().__init__()
        if modality not in noise.noise:
            raise ValueError(
                f"no noise is defined for {modality!r}, only for {list(noise.noise)}; add noise.{modality}=dict(...)"
            )
        if level != 0:  # 0 is clean, whatever the type
            _named(modality, noise.noise[modality].strength, type, level)
        _check_types("type", [type])
        self.modalities, self.noise, self.clean_level = noise.modalities, noise.noise, noise.clean_level
        self.modality, self.type, self.level, self.seed = modality, type, float(level), seed
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(
        self,
        batch: Mapping[str, Samples],
        available: Mapping[str, Tensor] | None = None,
        keys: Sequence[int | str] | None = None,
    ) -> Noisy:
        number, there = _check_batch(self.modalities, self.noise, batch, available)
        if keys is None:
            streams = [("seen", self.seed, _rank(), int(self.seen) + b) for b in range(number)]
            self.seen += number
        else:
            streams = _named_streams(self.seed, keys, number)
        drawn = {self.modality: (self.type, self.level)} if self.level else {}
        return _inject(self, batch, there, [drawn if there[self.modality][b] else {} for b in range(number)], streams)

    def extra_repr(self) -> str:
        return f"{self.modality}: {self.type} at level {self.level:g}, seed={self.seed}"


def _inject(
    module: NoiseInjection | FixedNoise,
    batch: Mapping[str, Samples],
    there: Mapping[str, Sequence[bool]],
    plan: Sequence[Mapping[str, tuple[str, float]]],
    streams: Sequence[tuple],
) -> Noisy:
    """Do to each sample what ``plan`` says: {modality: (type, level)}."""
    noisy, levels, types = {}, {}, {}
    for m, x in batch.items():
        if m in module.noise:
            samples = [as_float(x_b) for x_b in x]
        else:  # passed on as it is: it may be anything, numbers of words for instance
            samples = list(x)
        levels_B = [module.clean_level if here else 0.0 for here in there[m]]
        types_B = [-1] * len(samples)
        for b, drawn in enumerate(plan):
            if m not in drawn:
                continue
            name, level = drawn[m]
            device = samples[b].device
            generator = torch.Generator(device).manual_seed(_seed(*streams[b], m, "noise"))
            strength = module.noise[m].strength(name, level)
            samples[b] = CORRUPTIONS[name].on_sample(samples[b], strength, generator, module.noise[m].sensor)
            levels_B[b], types_B[b] = level, TYPES.index(name)
        device = samples[0].device
        levels[m] = torch.tensor(levels_B, dtype=torch.float32, device=device)
        types[m] = torch.tensor(types_B, dtype=torch.int64, device=device)
        noisy[m] = torch.stack(samples) if isinstance(x, Tensor) else samples
    return noisy, levels, types


def _check_batch(
    modalities: Sequence[str],
    noise: Mapping[str, ModalityNoise],
    batch: Mapping[str, Samples],
    available: Mapping[str, Tensor] | None,
) -> tuple[int, dict[str, list[bool]]]:
    """Number of samples, and who has what."""
    if set(batch) != set(modalities):
        raise ValueError(
            f"noise.modalities is {list(modalities)}, the batch holds {sorted(batch)}; "
            "rename it in the config or the stream in the pipeline"
        )
    numbers = {m: len(batch[m]) for m in modalities}
    if len(set(numbers.values())) > 1:
        raise ValueError(f"the batch holds different numbers of samples by modality: {numbers}")
    number = numbers[modalities[0]]
    if number == 0:
        raise ValueError("the batch holds no sample")
    for m in noise:
        for x in batch[m][:1] if isinstance(batch[m], Tensor) else batch[m]:
            noise[m].sensor.check(x, f"the batch's {m!r}")
    if available is None:
        return number, {m: [True] * number for m in modalities}
    if set(available) != set(modalities):
        raise ValueError(f"available names {sorted(available)}, noise.modalities is {list(modalities)}")
    for m in modalities:
        if available[m].dtype != torch.bool:
            raise TypeError(f"available[{m!r}] must be bool, got {available[m].dtype}")
        if available[m].shape != (number,):
            raise ValueError(f"available[{m!r}] has shape {tuple(available[m].shape)}, expected ({number},)")
    return number, {m: available[m].tolist() for m in modalities}


def _modality_noise(m: str, given: Mapping) -> ModalityNoise:
    if not isinstance(given, Mapping):
        raise ValueError(f"noise.{m} must be a dict such as dict(kind='image', levels=(1, 11), ...), got {given!r}")
    names = [option.name for option in fields(ModalityNoise)]
    unknown = sorted(set(given) - set(names))
    missing = sorted({"kind", "levels", "scale"} - set(given))
    if unknown or missing:
        raise ValueError(f"noise.{m} {wrong_keys(unknown, missing)}; it takes {names}")
    return _named(m, ModalityNoise, **given)


def _named(m: str, build, *args, **kwargs):
    """Say which part of the config an error is about."""
    try:
        return build(*args, **kwargs)
    except ValueError as error:
        raise ValueError(f"noise.{m}: {error}") from None


def _check_types(key: str, names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in CORRUPTIONS]
    if unknown:
        raise ValueError(f"{key} names {unknown}, known types are {list(CORRUPTIONS)}")


def _named_streams(seed: int, keys: Sequence[int | str], number: int) -> list[tuple]:
    if len(keys) != number:
        raise ValueError(f"keys must name each of the {number} samples, got {len(keys)}")
    # an int of numpy or torch must give the draw of the same Python int
    return [("key", seed, key if isinstance(key, str) else operator.index(key)) for key in keys]


def _seed(*parts: int | str) -> int:
    """32 bits, as many as torch's CPU generator reads of a seed."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "little")


def _rank() -> int:
    # as in fusion.ranks; the two rooms do not import each other
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if there else 0


def wrong_keys(unknown: Sequence[str], missing: Sequence[str]) -> str:
    """What is wrong with a dict's keys, in words."""
    said = [f"has unknown keys {list(unknown)}"] if unknown else []
    return " and ".join([*said, f"lacks {list(missing)}"] if missing else said)
