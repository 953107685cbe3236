"""A checkpoint over corruption type, strength and modality, and what the curves amount to."""
from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from mmfusion_plugin.corruptions import CORRUPTIONS, Sensor
from mmfusion_plugin.corruptions.injection import ModalityNoise

from .conditions import Condition
from .evidence import COLOURS, as_share, choose_metric, figure_panels, markdown_table, save_figure

__all__ = [
    "DEFAULT_STRENGTHS", "FORMULAS", "check_reference", "mean_corruption_error", "noise_conditions", "noise_markdown",
    "plot_noise_curves", "robustness", "sensors_of", "summarise_noise",
]

CLEAN = "clean"
ALL = "all"
SEPARATE = 3  # modalities whose strengths still fit below one tick
FORMULAS = (
    "Severity x = i / L for the i-th of L strengths, x = 0 clean; a(x) is the metric as a share. "
    "Relative robustness: area under a(x) over [0, 1], trapezoids (MultiBench's, without its min-max over methods). "
    "Effective robustness against a reference r: mean over the L strengths of a(x) - [a_r(x) + a(0) - a_r(0)] "
    "(MultiBench sums over x and takes late fusion as r). "
    "Mean corruption error: mean over types of E_c / E_c,r with E_c = sum over strengths of 1 - a(x) "
    "(Hendrycks and Dietterich, ICLR 2019); without a reference the mean of 1 - a(x) itself.")
# five strengths from mild to severe by kind of sensor, in the type's own unit
DEFAULT_STRENGTHS: dict[str, dict[str, tuple[float, ...]]] = {
    "image": dict(gaussian=(10, 30, 50, 80, 110), blur=(0.5, 1, 2, 4, 8), occlusion=(0.1, 0.2, 0.3, 0.5, 0.7),
                  misalignment=(1, 2, 4, 8, 16)),
    "depth": dict(depth_noise=(2, 5, 10, 20, 40), depth_holes=(0.1, 0.2, 0.4, 0.6, 0.8),
                  occlusion=(0.1, 0.2, 0.3, 0.5, 0.7), misalignment=(1, 2, 4, 8, 16)),
    "waveform": dict(sound_snr=(20, 10, 5, 0, -5), time_masking=(0.1, 0.2, 0.3, 0.5, 0.7),
                     time_shift=(50, 100, 200, 400, 800)),
    "spectrogram": dict(gaussian=(0.3, 0.9, 1.5, 2.4, 3.3), time_masking=(0.1, 0.2, 0.3, 0.5, 0.7),
                        time_shift=(50, 100, 200, 400, 800)),
    "vector": dict(gaussian=(0.25, 0.5, 1, 2, 4)),
}
DESCRIPTION = ("kind", "valid_range", "empty", "decibel", "unit", "rate")


def sensors_of(preprocessor: Any, stated: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Sensor]:
    """{m: sensor} of every modality: what ``data_preprocessor.train_noise`` says, with ``stated`` laid over it.

    Raises: ValueError if neither says what a modality's sensor is, or for an impossible one.
    """
    stated = dict(stated or {})
    unknown = sorted(set(stated) - set(preprocessor.modalities))
    if unknown:
        raise ValueError(f"--sensor names {unknown}, data_preprocessor.modalities is {list(preprocessor.modalities)}")
    trained = _trained(preprocessor)
    sensors = {}
    for m in preprocessor.modalities:
        known = {key: getattr(trained[m].sensor, key) for key in DESCRIPTION} if m in trained else {}
        given = {**known, **stated.get(m, {})}
        if "kind" not in given:
            raise ValueError(
                f"what kind of sensor {m!r} is stands nowhere; add it to data_preprocessor.train_noise.noise, or say "
                f"--sensor {m}.kind=image (or depth, waveform, spectrogram, vector)")
        others = sorted(set(given) - set(DESCRIPTION))
        if others:
            raise ValueError(f"--sensor {m}.{others[0]}: a sensor has {list(DESCRIPTION)}")
        sensors[m] = Sensor(**given)
    return sensors


def noise_conditions(
    preprocessor: Any, sensors: Mapping[str, Sensor], sweep: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    together: bool = True, seed: int = 0
) -> tuple[list[Condition], dict[str, dict[str, Any]]]:
    """Clean first; then for each type and strength each modality alone, and with ``together`` all at once.

    A type that ``train_noise`` scales is given at the level that has this strength, so that a neck which is told
    levels is told the right one; any other type is given as level 1.

    Args:
        sensors: from :func:`sensors_of`.
        sweep: {m: {type: strengths from mild to severe}}; None: ``DEFAULT_STRENGTHS`` of each sensor's kind, as far
            as the sensor states what the type needs.
        together: co-occurring noise: the i-th strength on every modality, for types that all of them have in equal
            numbers; where there is no such type, the first type of each (named ``all: a=gaussian, b=blur``).
        seed: of the noise; a sample's draw depends on it and the sample's name alone.

    Returns: conditions, and by their names what they did: dict(target=, type=, severity=, strengths={m: value},
        units={m: text}, levels={m: level}).
    Raises: ValueError for modalities, types or strengths that do not fit.
    """
    modalities, trained = list(preprocessor.modalities), _trained(preprocessor)
    if sweep is None:
        sweep = {m: {t: s for t, s in DEFAULT_STRENGTHS[sensors[m].kind].items() if _fits(t, sensors[m])}
                 for m in modalities}
    unknown = sorted(set(sweep) - set(modalities))
    if unknown:
        raise ValueError(f"the sweep names {unknown}, data_preprocessor.modalities is {modalities}")
    sweep = {m: sweep[m] for m in modalities if m in sweep}
    entries = {(m, t, i): _entry(m, t, float(s), sensors[m], trained.get(m), seed)
               for m, types in sweep.items() for t, strengths in types.items() for i, s in enumerate(strengths, 1)}
    if not entries:
        raise ValueError("the sweep names no strength")
    for m, types in sweep.items():
        for t, strengths in types.items():
            identity = CORRUPTIONS[t].identity
            damage = [-s if identity == math.inf else abs(s - identity) for s in strengths]
            if any(a >= b for a, b in zip(damage, damage[1:])):
                raise ValueError(f"{m}:{t}={','.join(f'{s:g}' for s in strengths)}: strengths go from mild to severe, "
                                 f"{'falling' if identity == math.inf else f'away from {identity:g}'}, each once")
    (m, _, _), (noise, _) = next(iter(entries.items()))
    # level 0 changes nothing, and tells so to a neck that asks for levels
    conditions = [Condition(CLEAN, noise={m: {**noise, "level": 0}})]
    described = {CLEAN: dict(target=CLEAN, type=CLEAN, severity=0, strengths={}, units={}, levels={})}

    def add(target: str, label: str, i: int, types: Mapping[str, str]) -> None:
        name = f"{target}: {label}, {i}"
        chosen = {m: entries[m, t, i] for m, t in types.items()}
        conditions.append(Condition(name, noise={m: noise for m, (noise, _) in chosen.items()}, group=f"{label} {i}"))
        described[name] = dict(
            target=target, type=label, severity=i, strengths={m: float(sweep[m][t][i - 1]) for m, t in types.items()},
            units={m: CORRUPTIONS[t].unit_on(sensors[m]) for m, t in types.items()},
            levels={m: level for m, (_, level) in chosen.items()})

    shared = [t for t in next(iter(sweep.values()), {}) if together and len(sweep) == len(modalities) and all(
        len(types.get(t, ())) == len(sweep[modalities[0]][t]) for types in sweep.values())]
    every = dict.fromkeys(t for types in sweep.values() for t in types)
    for t in every:
        longest = max(len(types.get(t, ())) for types in sweep.values())
        for i in range(1, longest + 1):
            for m in sweep:
                if i <= len(sweep[m].get(t, ())):
                    add(m, t, i, {m: t})
            if t in shared:
                add(ALL, t, i, dict.fromkeys(modalities, t))
    if together and not shared and len(sweep) == len(modalities) and all(sweep.values()):
        firsts = {m: next(iter(types)) for m, types in sweep.items()}
        label = ", ".join(f"{m}={t}" for m, t in firsts.items())
        for i in range(1, min(len(sweep[m][t]) for m, t in firsts.items()) + 1):
            add(ALL, label, i, firsts)
    return conditions, described


def summarise_noise(
    outcomes: Mapping[str, Mapping[str, Any]], described: Mapping[str, Mapping[str, Any]], metric: str | None = None,
    reference: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """``metric`` shown, ``rows`` (what was done and what came out) and ``summary``.

    Args:
        reference: a record of the same sweep of another model.

    Returns: ``summary`` holds dict(target=, type=, relative=, effective=, error=, relative_error=) for each curve and,
        as type ``mean``, for each target; ``effective`` and ``relative_error`` are None without a reference.
    Raises: ValueError if the reference lacks a row of this sweep or its metric.
    """
    shown = choose_metric(list(outcomes[CLEAN]["metrics"]), metric)
    rows = [dict(name=name, **described[name], **outcomes[name]) for name in outcomes]
    theirs = None
    if reference is not None:
        check_reference(reference, described)
        theirs = {row["name"]: row for row in reference["rows"]}
        lacking = [name for name in described if shown not in theirs[name]["metrics"]]
        if lacking:
            raise ValueError(f"the reference has no {shown} for {lacking[:3]}; name a --metric of both")

    def curve(rows_: Sequence[Mapping], clean: Mapping) -> list[float]:
        return [as_share(shown, row["metrics"][shown]) for row in (clean, *rows_)]

    summary = []
    noisy = sorted((row for row in rows if row["severity"] > 0), key=lambda r: (r["target"], r["type"], r["severity"]))
    for (target, name), group in groupby(noisy, key=lambda r: (r["target"], r["type"])):
        members = list(group)
        own = curve(members, rows[0])
        other = None if theirs is None else curve([theirs[r["name"]] for r in members], theirs[CLEAN])
        summary.append(dict(target=target, type=name, **robustness(own, other)))
    for target, group in groupby(list(summary), key=lambda r: r["target"]):
        members = list(group)
        means = {k: _mean([r[k] for r in members]) for k in ("relative", "effective", "error", "relative_error")}
        summary.append(dict(target=target, type="mean", **means))
    return dict(metric=shown, formulas=FORMULAS, rows=rows, summary=summary,
                reference=None if reference is None else reference.get("checkpoint"))


def check_reference(reference: Mapping[str, Any], described: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ValueError unless ``reference`` is a record of the sweep that ``described`` describes."""
    try:
        strengths = {row["name"]: row["strengths"] for row in reference["rows"] if isinstance(row["metrics"], Mapping)}
    except (KeyError, TypeError):
        raise ValueError("the reference is no noise.json: expected rows with name, strengths and metrics") from None
    lacking = [name for name, row in described.items() if strengths.get(name) != row["strengths"]]
    if lacking:
        raise ValueError(f"the reference has no row, or other strengths, for {lacking[:3]}; run it with the same "
                         "--sweep on the same test data")


def robustness(curve: Sequence[float], reference: Sequence[float] | None = None) -> dict[str, float | None]:
    """Numbers of one curve, clean value first, then by rising severity; see ``FORMULAS``.

    Returns: dict(relative=, effective=, error=, relative_error=).
    Raises: ValueError unless there are two or more values, as many as in the reference.
    """
    if len(curve) < 2 or reference is not None and len(reference) != len(curve):
        raise ValueError(f"a curve of {len(curve)} values and a reference of {len(reference or ())}")
    L = len(curve) - 1
    errors = [1 - a for a in curve[1:]]
    found = dict(relative=sum((a + b) / 2 for a, b in zip(curve, curve[1:])) / L, effective=None,
                 error=statistics.fmean(errors), relative_error=None)
    if reference is not None:
        offset = curve[0] - reference[0]
        found["effective"] = statistics.fmean(a - (r + offset) for a, r in zip(curve[1:], reference[1:]))
        below = sum(1 - r for r in reference[1:])
        found["relative_error"] = sum(errors) / below if below > 0 else math.nan
    return found


def mean_corruption_error(summary: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """{target: mean over types of E_c / E_c,r}, None without a reference."""
    return {row["target"]: row["relative_error"] for row in summary if row["type"] == "mean"}


def noise_markdown(record: Mapping[str, Any]) -> str:
    """Every row in physical units, the summary, the formulas and what made it."""
    metric, weighted = record["metric"], sorted({m for row in record["rows"] for m in row["weights"]})
    rows = []
    for row in record["rows"]:
        strength = _strength(row)
        error = row["calibration_error"]
        rows.append([
            row["target"], row["type"], strength, f"{100 * as_share(metric, row['metrics'][metric]):.1f}",
            "-" if error is None else f"{100 * error:.1f}",
            *(f"{row['weights'][m]:.3f}" if m in row["weights"] else "-" for m in weighted)])
    head = ["on", "corruption", "strength", f"{metric} (%)", "ECE, 15 bins (%)", *(f"weight of {m}" for m in weighted)]
    types = {(r["target"], r["type"]) for r in record["summary"]}
    single = {target for target, _ in types if sum(t == target for t, _ in types) == 2}  # its mean is that one type's
    compared = record["reference"] is not None
    shares = ("relative", "error", "effective") if compared else ("relative", "error")
    short = [[r["target"], r["type"], *(_percent(r[k]) for k in shares),
              *(["-" if r["relative_error"] is None else f"{r['relative_error']:.3f}"] if compared else [])]
             for r in record["summary"] if r["type"] != "mean" or r["target"] not in single]
    against = "" if record["reference"] is None else f" Reference: {record['reference']}."
    samples = record["rows"][0]["samples"]
    return (
        f"Noise on {samples} samples, seed {record['noise_seed']}.\n\n{markdown_table(head, rows)}\n\n"
        + markdown_table(
            ["on", "corruption", "relative robustness (%)", "mean error (%)",
             *(["effective robustness (points)", "corruption error against the reference"] if compared else [])], short)
        + f"\n\n{record['formulas']}{against}\n\n`{record['command']}`\n")


def plot_noise_curves(record: Mapping[str, Any], out: str | Path) -> Path:
    """One panel per type: the metric over severity, a line per target; below it the fusion weights, where there are."""
    rows, metric = record["rows"], record["metric"]
    types = list(dict.fromkeys(row["type"] for row in rows if row["severity"]))
    weighted = sorted({m for row in rows for m in row["weights"]})
    targets = list(dict.fromkeys(row["target"] for row in rows if row["severity"]))
    style = {t: dict(color=COLOURS[i % len(COLOURS)], marker="osD^vP*"[i % 7]) for i, t in enumerate(targets)}
    figure, axes = figure_panels(len(types) * (2 if weighted else 1), columns=len(types) if weighted else 3)
    weights = [w for row in rows for w in row["weights"].values()]
    top = 1.1 * max(0.01, *(100 * as_share(metric, row["metrics"][metric]) for row in rows))
    for axis, name in zip(axes, types):
        curves = _curves(rows, name)
        for target, members in curves.items():
            axis.plot([r["severity"] for r in members], [100 * as_share(metric, r["metrics"][metric]) for r in members],
                      markersize=4, label=target, **style[target])
        axis.set(title=_wrapped(name), ylabel=f"{metric} (%)")
        axis.set_ylim(0, top)  # one scale for all types
        _label_strengths(axis, curves)
        axis.legend(fontsize=8, title="noise on", title_fontsize=8)
    for axis, name in zip(axes[len(types):], types) if weighted else ():
        curves = _curves(rows, name)
        for target, members in curves.items():
            for m, line in zip(weighted, ("-", "--", ":", "-.")):
                axis.plot([r["severity"] for r in members], [r["weights"].get(m, math.nan) for r in members], line,
                          markersize=3, label=f"{m}'s, noise on {target}", **style[target])
        axis.set(title=_wrapped(name), ylabel="fusion weight, mean")
        axis.set_ylim(min(weights) - 0.05, max(weights) + 0.05)
        _label_strengths(axis, curves)
        axis.legend(fontsize=7, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.3), frameon=False, handlelength=3)
    return save_figure(figure, out)


def _strength(row: Mapping[str, Any]) -> str:
    """Each modality's strength and unit, once where all have the same."""
    said = {m: f"{s:g} {row['units'][m]}" for m, s in row["strengths"].items()}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return "; ".join(f"{m}: {text}" for m, text in said.items()) or "-"


def _curves(rows: Sequence[Mapping], name: str) -> dict[str, list[Mapping]]:
    """{target: clean row, then rising severity}."""
    found: dict[str, list[Mapping]] = {}
    for row in rows:
        if row["type"] == name:
            found.setdefault(row["target"], [rows[0]]).append(row)
    return {target: sorted(members, key=lambda r: r["severity"]) for target, members in found.items()}


def _label_strengths(axis, curves: Mapping[str, Sequence[Mapping]]) -> None:
    """Strengths in their unit below a panel, by modality where they differ; for many, the severity's number."""
    members = [row for rows in curves.values() for row in rows if row["severity"]]
    units = {unit for row in members for unit in row["units"].values()}
    strengths = {(row["severity"], s) for row in members for s in row["strengths"].values()}
    places = sorted({row["severity"] for row in members})
    shared = len(units) == 1 and len(strengths) == len(places)
    by_modality = {m: {r["severity"]: r["strengths"][m] for r in members if m in r["strengths"]}
                   for m in dict.fromkeys(m for row in members for m in row["strengths"])}
    if shared:
        axis.set_xlabel(units.pop())
        labels = [f"{dict(strengths)[i]:g}" for i in places]
    elif len(by_modality) <= SEPARATE and all(set(s) == set(places) for s in by_modality.values()):
        of = {m: unit for row in members for m, unit in row["units"].items()}
        axis.set_xlabel("\n".join(f"{m}: {of[m]}" for m in by_modality), fontsize=8)
        labels = ["\n".join(f"{s[i]:g}" for s in by_modality.values()) for i in places]  # lines as in the label
    else:
        axis.set_xlabel("severity")
        labels = [str(i) for i in places]
    axis.set_xticks([0, *places], ["clean", *labels], fontsize=8)


def _wrapped(name: str) -> str:
    return name.replace(", ", "\n")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _mean(values: Sequence[float | None]) -> float | None:
    return None if any(v is None for v in values) else statistics.fmean(values)


def _trained(preprocessor: Any) -> Mapping[str, ModalityNoise]:
    injection = preprocessor.noise.train_noise
    return {} if injection is None else injection.noise


def _fits(name: str, sensor: Sensor) -> bool:
    try:
        CORRUPTIONS[name].check_sensor(sensor)
    except ValueError:
        return False
    return True


def _entry(
    m: str, name: str, strength: float, sensor: Sensor, trained: ModalityNoise | None, seed: int
) -> tuple[dict[str, Any], float]:
    """(``test_noise.<m>``, level)."""
    if name not in CORRUPTIONS:
        raise ValueError(f"{m!r}: no corruption {name!r}, there are {list(CORRUPTIONS)}")
    corruption = CORRUPTIONS[name]
    corruption.check_sensor(sensor)
    corruption.check_strength(strength)
    if strength == corruption.identity:
        raise ValueError(f"{m!r}: {name} of strength {strength:g} changes nothing; the clean row is there anyway")
    described = {key: getattr(sensor, key) for key in DESCRIPTION if getattr(sensor, key) is not None}
    scale, offset, level = None, 0.0, 1.0
    if trained is not None and name in trained.scale:
        scale, offset = trained.scale[name], trained.offset.get(name, 0.0)
        level = (strength - offset) / scale
    if scale is None or level <= 0:  # training has no level of this strength
        scale, level = (-1.0, 1.0) if corruption.identity == math.inf else (strength, 1.0)
        offset = strength - scale
    return dict(type=name, level=level, seed=seed, scale={name: scale}, offset={name: offset}, **described), level
