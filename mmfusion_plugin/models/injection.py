"""Noise of known level on the readings of a batch, as both data preprocessors inject it before they normalise."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields

import torch
from torch import Tensor, nn

from mmfusion_plugin.corruptions import CORRUPTIONS, FixedNoise, NoiseInjection, Sensor
from mmfusion_plugin.corruptions.injection import ModalityNoise, wrong_keys
from mmfusion_plugin.fusion.host_copy import HostCopy

from .samples import sample_key

__all__ = ["BatchNoise"]

NAMES = tuple(CORRUPTIONS)
CLEAN = "clean"
LEAST = 1e-6
TRAIN, TEST = "data_preprocessor.train_noise", "data_preprocessor.test_noise"
# of a modality's entry in test_noise; the rest describes the noise itself
APPLIED = ("type", "level", "seed")
DESCRIBED = tuple(f.name for f in fields(ModalityNoise) if f.name not in ("levels", "types", "whole_levels"))


# B batch
class BatchNoise(nn.Module):
    """Random noise in training, a stated one in evaluation; each sample's metainfo tells what was injected.

    Args:
        modalities: names of everything in the batch.
        train_noise: options of :class:`NoiseInjection` (``noise``, ``clean_share``, ``mode``, ``seed``, ...) and
            ``start``, the share of training after which noise begins (default 0.5); None: training stays clean.
        test_noise: by modality ``dict(type='gaussian', level=5, seed=0)``: every evaluated sample that has the
            modality gets it; several modalities may be named. What one level means is taken from
            ``train_noise.noise``, or stated here (``kind``, ``scale``, ... of :class:`ModalityNoise`). Level 0
            changes nothing and tells the neck so.

    In evaluation a sample's noise is drawn from its name, that of the first of ``modalities`` which has a file: the
    same for any two models that list the same first one.

    Shapes: batch {m: list of B tensors}, available [{m: bool}] -> the same batch, noisy. Metainfo: ``noise_level``
        {m: float} and ``noise_type`` {m: name, or 'clean'}; nothing is recorded where no noise is configured, or
        before its start. A missing modality is left alone: level 0.
    Raises: ValueError for options that do not fit, naming the config's key, and for ``test_noise`` on samples
        without a name.
    """

    def __init__(self, modalities: Sequence[str], train_noise: Mapping | None, test_noise: Mapping | None) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self.start = 0.0
        self._told = False
        self.train_noise: NoiseInjection | None = None
        if train_noise is not None:
            self.train_noise, self.start = _training(self.modalities, train_noise)
            self.register_buffer("progress", torch.zeros(()))
            self._share = HostCopy()
        self.set_test_noise(test_noise)

    def set_test_noise(self, test_noise: Mapping | None) -> None:
        """Evaluate with other noise from now on; as the argument of the same name."""
        # in a list: mmengine sorts the keys of dicts when it saves a config
        self.test_noise = nn.ModuleList(_evaluation(self.modalities, test_noise, self.train_noise))

    @property
    def sensors(self) -> dict[str, tuple[str, Sensor]]:
        """{m: (key in the config, sensor)} of the modalities that can get noise."""
        found = {fixed.modality: (f"{TEST}.{fixed.modality}", fixed.noise[fixed.modality].sensor)
                 for fixed in self.test_noise}
        trained = {} if self.train_noise is None else self.train_noise.noise
        return found | {m: (f"{TRAIN}.noise.{m}", noise.sensor) for m, noise in trained.items()}

    @property
    def injects(self) -> bool:
        """Whether training gets noise of known level, sooner or later."""
        return self.train_noise is not None

    @property
    def awaits_progress(self) -> str | None:
        """What cannot start because nobody has told how far training is; None if nothing waits."""
        waiting = self.train_noise is not None and self.start > 0 and not self._told
        return f"{TRAIN} starts at {self.start:g} of training" if waiting else None

    def set_progress(self, share: float) -> None:
        """Tell how much of training is done, in [0, 1]; saved with the model."""
        if not 0 <= share <= 1:
            raise ValueError(f"progress is a share of training in [0, 1], got {share}")
        self._told = True
        if self.train_noise is not None:
            self._share.fill(self.progress, share)

    def active(self, training: bool) -> bool:
        """Whether a batch would be changed, or its levels recorded."""
        if training:
            return self.train_noise is not None and self._share.reached(self.progress, self.start)
        return len(self.test_noise) > 0

    def forward(
        self,
        batch: Mapping[str, Sequence[Tensor]],
        available: Sequence[Mapping[str, bool]],
        data_samples: Sequence,
        training: bool,
    ) -> dict[str, list[Tensor]]:
        if not self.active(training):
            return dict(batch)
        there = {m: torch.tensor([bool(known[m]) for known in available]) for m in self.modalities}
        if training:
            with _keyed(f"{TRAIN}.noise: "):
                # the preprocessor is told whether it trains, whatever the mode of the model
                noisy, levels, types = self.train_noise(batch, there, force=True)
            _record(data_samples, levels, types)
            return noisy
        keys = self._keys(data_samples)
        levels, types = {}, {}
        for fixed in self.test_noise:
            with _keyed(f"{TEST}: "):
                batch, found, kinds = fixed(batch, there, keys)
            m = fixed.modality
            levels, types = {**found, **levels, m: found[m]}, {**kinds, **types, m: kinds[m]}
        _record(data_samples, levels, types)
        return batch

    def _keys(self, data_samples: Sequence) -> list[str]:
        keys = [sample_key(self.modalities, sample) for sample in data_samples]
        if None in keys:
            raise ValueError(
                f"{TEST} draws each sample's noise from its name, but sample {keys.index(None)} of the batch has none; "
                "keep 'filename', 'img_path' or 'modality_paths' in the meta_keys of the pipeline's packing"
            )
        return keys


def _training(modalities: tuple[str, ...], given: Mapping) -> tuple[NoiseInjection, float]:
    if not isinstance(given, Mapping) or "noise" not in given:
        raise ValueError(f"{TRAIN} must be a dict such as dict(noise=dict({modalities[0]}=dict(...))), got {given!r}")
    options = dict(given)
    start = options.pop("start", 0.5)
    if isinstance(start, bool) or not isinstance(start, (int, float)) or not 0 <= start <= 1:
        raise ValueError(f"{TRAIN}.start is a share of training in [0, 1], got {start!r}")
    unknown = sorted(set(options) - {"noise", "clean_share", "clean_level", "mode", "seed"})
    if unknown:
        raise ValueError(f"{TRAIN} has {unknown}, it takes noise, clean_share, clean_level, mode, seed and start")
    with _keyed(f"{TRAIN}."):
        return NoiseInjection(modalities, **options), float(start)


def _evaluation(
    modalities: tuple[str, ...], given: Mapping | None, trained: NoiseInjection | None
) -> list[FixedNoise]:
    if given is None:
        return []
    if not isinstance(given, Mapping) or not all(isinstance(options, Mapping) for options in given.values()):
        raise ValueError(
            f"{TEST} must be a dict by modality such as dict({modalities[0]}=dict(type='gaussian', level=5)), "
            f"got {given!r}"
        )
    unknown = sorted(set(given) - set(modalities))
    if unknown:
        raise ValueError(f"{TEST} names {unknown}, modalities names {list(modalities)}")
    return [_fixed(modalities, m, dict(given[m]), trained) for m in modalities if m in given]


def _fixed(modalities: tuple[str, ...], m: str, options: dict, trained: NoiseInjection | None) -> FixedNoise:
    key = f"{TEST}.{m}"
    unknown, missing = sorted(set(options) - {*APPLIED, *DESCRIBED}), sorted({"type", "level"} - set(options))
    if unknown or missing:
        raise ValueError(f"{key} {wrong_keys(unknown, missing)}; it takes {[*APPLIED, *DESCRIBED]}")
    name, level, seed = options.pop("type"), options.pop("level"), options.pop("seed", 0)
    with _keyed(f"{key}: "):
        if not options and (trained is None or m not in trained.noise):
            raise ValueError(
                f"what a level means is not stated: {TRAIN}.noise has no {m!r}; add it there, or kind and scale here"
            )
        clean_level = 0.0 if trained is None else trained.clean_level
        if options:
            least = level or LEAST  # 0 is clean, and has no strength that could be out of range
            described = dict(options, levels=(least, least), whole_levels=False, types=[name])
            trained = NoiseInjection(modalities, {m: described}, clean_level=clean_level, seed=0)
        return trained.fixed(m, name, level, seed)


def _record(data_samples: Sequence, levels: Mapping[str, Tensor], types: Mapping[str, Tensor]) -> None:
    levels, types = ({m: x.tolist() for m, x in found.items()} for found in (levels, types))
    for b, sample in enumerate(data_samples):
        if sample is not None:
            kinds = {m: CLEAN if found[b] < 0 else NAMES[found[b]] for m, found in types.items()}
            sample.set_metainfo({"noise_level": {m: found[b] for m, found in levels.items()}, "noise_type": kinds})


@contextmanager
def _keyed(prefix: str) -> Iterator[None]:
    """Say which part of the config an error is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None
