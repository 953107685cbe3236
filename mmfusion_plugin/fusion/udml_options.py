"""UDML's presets, and what its options must be."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .novelty import check_signals

__all__ = ["PRESETS", "checked_options"]

QUALITIES = ("estimated", "variance", "energy", "given", "equal", None)
FORMS = ("residual", "multiplicative")
UNITS = ("level", "span")
READINGS = ("variance", "input")

PRESETS: dict[str, dict] = {
    # The released code's formulas: BatchNorm on both branches, 1 / (s^2 alpha), x + w x, estimator detached,
    # its softplus in levels.
    "released": dict(
        norm="batch", variance_norm="batch", law="inverse_square", form="residual", temperature=1.0, detach=True,
        noise_weight=0.1, noise_unit="level", reads=("variance",), novelty=None),
    "default": dict(
        norm="batch", variance_norm=None, law="inverse", form="multiplicative", temperature=3.0, detach=True,
        noise_weight=0.1, noise_unit="span", reads=("variance", "input"), novelty=("input",)),
}


def checked_options(
    preset: str, given: Mapping[str, Any], others: Iterable[str], *, quality: str | None, dependency: bool | str,
    embedding: bool, per_position: bool, kl_weight: float, clean_level: float, span: float, novelty_margin: float,
    weights_from: float, dependency_every: int,
) -> dict[str, Any]:
    """The preset's options with those ``given`` laid over them; its novelty is left out where no level is read.

    Args:
        others: names of what UDML takes beside a preset's options.

    Raises: TypeError for a name that is neither; ValueError for a value, or values together, that cannot be.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}")
    unknown = sorted(set(given) - set(PRESETS[preset]))
    if unknown:
        raise TypeError(
            f"UDML has no options {unknown} (those of the fusion go into neck.inner); it takes "
            f"{sorted(set(others) | set(PRESETS[preset]))}")
    options = {**PRESETS[preset], **given}
    for key, value, choices in (("quality", quality, QUALITIES), ("form", options["form"], FORMS),
                                ("noise_unit", options["noise_unit"], UNITS)):
        if value not in choices:
            raise ValueError(f"{key} must be one of {list(choices)}, got {value!r}")
    for key, value in (("noise_weight", options["noise_weight"]), ("kl_weight", kl_weight)):
        if not value >= 0:
            raise ValueError(f"{key} must not be negative, got {value!r}")
    if not clean_level > 0 or not span > clean_level:
        raise ValueError(f"need 0 < clean_level < span, got clean_level={clean_level}, span={span}")
    if not 0 <= weights_from <= 1:
        raise ValueError(f"weights_from is a share of training in [0, 1], got {weights_from!r}")
    if not isinstance(dependency_every, int) or dependency_every < 1:
        raise ValueError(f"dependency_every must be a positive number of steps, got {dependency_every!r}")
    if dependency not in (True, False, "per_sample"):
        raise ValueError(f"dependency must be True, False or 'per_sample', got {dependency!r}")
    if quality == "energy" and options["law"] != "exponential":
        raise ValueError(
            f"quality='energy' needs law='exponential' (energies have either sign), got law={options['law']!r}")
    if quality == "variance" and not embedding:
        raise ValueError("quality='variance' reads the embedding's variance; set embedding=True")
    if quality not in ("estimated", "given"):
        if given.get("novelty") is not None:
            raise ValueError(f"novelty is laid over a noise level: quality 'estimated' or 'given', got {quality!r}")
        options["novelty"] = None
    novelty = options["novelty"]
    if novelty is not None:
        check_signals(novelty, novelty_margin)
    reads = [] if isinstance(options["reads"], str) else list(options["reads"])
    if not reads or set(reads) - set(READINGS) or len(set(reads)) < len(reads):
        raise ValueError(f"reads must be a list of {list(READINGS)}, got {options['reads']!r}")
    if per_position and (quality != "estimated" or not (embedding or reads == ["input"])
                         or dependency == "per_sample" or set(novelty or ()) - {"input"}):
        raise ValueError(
            "per_position needs quality='estimated', embedding=True or reads=['input'], a dependency that is not "
            f"'per_sample' and no novelty but 'input'; got quality={quality!r}, embedding={embedding}, "
            f"reads={reads}, dependency={dependency!r}, novelty={novelty}")
    return {**options, "reads": tuple(reads)}
