"""Evaluate a checkpoint over corruption type, strength and modality, one at a time and on all modalities at once.

    python tools/evaluate_noise.py CONFIG CHECKPOINT [--sensor audio.kind=spectrogram audio.valid_range=-4.6,6.5]
        [--sweep visual:gaussian=10,50,110 audio:time_masking=0.1,0.3] [--reference OTHER/noise.json] [--out DIR]

Strengths are in physical units: grey levels, pixels, metres, dB, milliseconds, shares. What a modality's sensor is
stands in data_preprocessor.train_noise, or in --sensor. Without --sweep five strengths of every ordinary corruption of
that sensor are taken. The noise on a sample depends on the seed and the sample's name alone. Reports the metric,
calibration error and, where the neck gives them, fusion weights; relative and (with --reference) effective robustness
and mean corruption error. Writes noise.json, noise.md and noise.png. Started again, it goes on where it was stopped.
"""
from __future__ import annotations

import argparse
from typing import Any

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
from mmfusion_plugin.analysis import conditions, evidence, robustness
from mmfusion_plugin.analysis.identity import fingerprint
from mmfusion_plugin.engine import launch


def sensors_from(words: list[str]) -> dict[str, dict[str, Any]]:
    """``audio.kind=spectrogram audio.valid_range=-4.6,6.5`` -> {audio: dict(kind=..., valid_range=(...))}."""
    found: dict[str, dict[str, Any]] = {}
    for word in words:
        name, _, text = word.partition("=")
        modality, _, key = name.partition(".")
        if not (modality and key and text):
            raise launch.UsageError(f"--sensor {word}: expected MODALITY.KEY=VALUE such as audio.kind=spectrogram")
        if key in ("kind", "unit"):
            value: Any = text
        else:
            value = numbers(f"--sensor {word}", text)
            value = value[0] if len(value) == 1 else value
        found.setdefault(modality, {})[key] = value
    return found


def sweep_from(words: list[str] | None) -> dict[str, dict[str, tuple[float, ...]]] | None:
    """``visual:gaussian=10,50`` -> {visual: {gaussian: (10, 50)}}."""
    if words is None:
        return None
    found: dict[str, dict[str, tuple[float, ...]]] = {}
    for word in words:
        name, _, text = word.partition("=")
        modality, _, kind = name.partition(":")
        if not (modality and kind and text):
            raise launch.UsageError(f"--sweep {word}: expected MODALITY:TYPE=S1,S2,... such as visual:gaussian=10,50")
        if kind in found.setdefault(modality, {}):
            raise launch.UsageError(f"--sweep {word}: {modality}:{kind} is there before; give its strengths at once")
        found[modality][kind] = numbers(f"--sweep {word}", text)
    return found


def numbers(where: str, text: str) -> tuple[float, ...]:
    try:
        # the library's messages write pairs as Python does: (0.1, 10.0)
        return tuple(float(part) for part in text.removeprefix("(").removesuffix(")").split(","))
    except ValueError:
        raise launch.UsageError(f"{where}: {text!r} is no list of numbers such as 0.1,10.0") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    launch.add_evidence_arguments(parser)
    parser.add_argument("--sensor", nargs="+", action="extend", default=[], metavar="M.KEY=VALUE",
                        help="what a modality's sensor is")
    parser.add_argument("--sweep", nargs="+", action="extend", metavar="M:TYPE=S1,S2",
                        help="strengths from mild to severe")
    parser.add_argument("--one-at-a-time", action="store_true", help="leave out noise on all modalities at once")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--reference", metavar="JSON", help="noise.json of the model to compare with, same sweep")
    parser.add_argument("--metric", help="shown in table and picture (default: mIoU or acc/fused_top1)")
    args = parser.parse_args()
    stated, sweep = sensors_from(args.sensor), sweep_from(args.sweep)
    reference = evidence.read_record(launch.existing(args.reference, "reference")) if args.reference else None
    cfg, model, out = launch.load_checkpoint(args)
    try:
        sensors = robustness.sensors_of(model.data_preprocessor, stated)
        asked, described = robustness.noise_conditions(
            model.data_preprocessor, sensors, sweep, not args.one_at_a_time, args.seed)
        if reference is not None:
            robustness.check_reference(reference, described)
    except ValueError as error:
        raise launch.UsageError(str(error)) from None
    key = fingerprint(cfg, args.checkpoint, "noise", [[c.name, c.noise] for c in asked])
    record = evidence.read_evidence(out, "noise", key)
    if record is None:
        outcomes = conditions.evaluate_conditions(
            model, cfg.test_dataloader, cfg.test_evaluator, asked, partial=out / "noise.partial", key=key,
            report=launch.progress())
    else:  # other ways to sum up the same numbers cost nothing
        outcomes = {row["name"]: {k: v for k, v in row.items() if k != "name" and k not in described[row["name"]]}
                    for row in record["rows"]}
    try:
        found = robustness.summarise_noise(outcomes, described, args.metric, reference)
    except ValueError as error:
        raise launch.UsageError(str(error)) from None
    record = dict(evidence.provenance(args.config, args.checkpoint, cfg, key), noise_seed=args.seed, **found)
    evidence.publish(out, "noise", record, robustness.noise_markdown, robustness.plot_noise_curves)


if __name__ == "__main__":
    launch.run_tool(main, evidence.EvidenceError)
