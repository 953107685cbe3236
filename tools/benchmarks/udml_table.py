"""The table of UDML and what it is compared with: clean, under noise on one modality, with one missing.

    python tools/benchmarks/udml_table.py digit-clips --data-root data/digit_clips --render
    python tools/benchmarks/udml_table.py cwfid --data-root data/cwfid --render
    python tools/benchmarks/udml_table.py nyuv2-half --data-root data/nyuv2_half --seeds 0 --render

All rows but the last train with the same noise and the same auxiliary losses and differ in the neck alone; the last
one never saw noise. Gaussian noise at five levels on either modality: levels 2, 5, 8 and 11 are trained ones, 14 is
beyond them. Occlusion is a type that training never shows. 8 rows x 3 seeds = 24 trainings, two side by side on one
thread each. Resumable. Every row is the model after the last iteration. nyuv2-half runs a shorter schedule than its
configs: 600 iterations of 128x160 crops, a quarter of an hour a row where theirs takes an hour. --ablations adds what
UDML default is without each of its parts: 5 rows more.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmfusion_plugin.analysis import Job, add_table_arguments, run_table_tool

CONFIGS = Path(__file__).parents[2] / "configs"
LEVELS = (2, 5, 8, 11, 14)
ROWS = {
    "static": "udml-static", "static, probabilistic heads": "udml-static-pe", "PE dynamic": "udml-pe",
    "QMF-like": "udml-qmf", "UDML released": "udml-released", "UDML default": "udml-default",
    "UDML(SCFAE)": "udml-scfae"}
CLEAN = "static, clean training"
DEFAULT = "UDML default"
ABLATIONS = {
    "no estimator": {"quality": "equal", "novelty": None},
    "no dependency": {"dependency": False},
    "no embedding": {"embedding": False},
    "no novelty": {"novelty": None},
    "variance read alone": {"reads": ["variance"], "novelty": None}}


@dataclass(frozen=True)
class Task:
    """One data set: its configs, what a level of noise and an occlusion mean, what is measured."""

    configs: str
    data_root: str
    out: str
    noise: Mapping[str, Mapping[str, Any]]
    occlusion: Mapping[str, Mapping[str, Any]]
    metric: str
    scale: float
    holds: str
    schedule: Mapping[str, Any] = field(default_factory=dict)  # where it is not the configs' own


def _half_hidden(**sensor: Any) -> dict[str, Any]:
    return dict(type="occlusion", level=1, scale=dict(occlusion=0.5), **sensor)


IMAGE = dict(kind="image")
DEPTH = dict(kind="depth", valid_range=(0.1, 10.0))
# floor and ceiling of log(|STFT| + 1e-2) of sound at RMS 1, as in _base_/models/udml_digit_clips.py
SPECTROGRAM = dict(kind="spectrogram", valid_range=(-4.61, 6.5))
TASKS = {
    "digit-clips": Task(
        "recognition/{}_small_digit-clips.py", "data/digit_clips", "results/udml_digit_clips.jsonl",
        dict(visual=dict(IMAGE, scale=dict(gaussian=10.0)), audio=dict(SPECTROGRAM, scale=dict(gaussian=0.3))),
        dict(visual=_half_hidden(**IMAGE), audio=_half_hidden(**SPECTROGRAM, empty=-4.61)),
        "acc/fused_top1", 100, "the clips and their lists"),
    "cwfid": Task(
        "segmentation/{}_r18-segformer_cwfid.py", "data/cwfid", "results/udml_cwfid.jsonl",
        dict(red=dict(IMAGE, scale=dict(gaussian=5.0)), nir=dict(IMAGE, scale=dict(gaussian=5.0))),
        dict(red=_half_hidden(**IMAGE), nir=_half_hidden(**IMAGE)),
        "mIoU", 1, "red/, nir/, label/, train.txt and val.txt"),
    "nyuv2-half": Task(
        "segmentation/{}_r18-segformer_nyuv2-half.py", "data/nyuv2_half", "results/udml_nyuv2_half.jsonl",
        dict(rgb=dict(IMAGE, scale=dict(gaussian=10.0)), depth=dict(DEPTH, scale=dict(gaussian=0.2))),
        dict(rgb=_half_hidden(**IMAGE), depth=_half_hidden(**DEPTH)),
        "mIoU", 1, "RGB/, Depth/, Label/, train.txt and val.txt", {
            "model.data_preprocessor.size": (128, 160), "train_dataloader.dataset.pipeline.3.crop_size": (128, 160),
            "train_cfg.max_iters": 600, "param_scheduler.1.end": 600}),
}


def evaluations(task: Task) -> dict[str, Any]:
    """By column: what is withheld, or what noise is added."""
    columns: dict[str, Any] = {"clean": []}
    for m, sensor in task.noise.items():
        for level in LEVELS:
            columns[f"{m} {level}"] = dict(noise={m: dict(type="gaussian", level=level, **sensor)})
    columns.update({f"{m} occluded": dict(noise={m: noise}) for m, noise in task.occlusion.items()})
    columns.update({f"without {m}": [m] for m in task.noise})
    return columns


def jobs(task: Task, data_root: str, seeds: Sequence[int], channels_last: bool = True) -> list[Job]:
    """Jobs of the whole table, row by row within a seed: an interrupted run holds whole seeds first."""
    rows = [(row, name, {}) for row, name in ROWS.items()]
    rows.append((CLEAN, ROWS["static"], {"model.data_preprocessor.train_noise": None}))
    return _jobs(task, data_root, seeds, rows, channels_last)


def ablations(task: Task, data_root: str, seeds: Sequence[int], channels_last: bool = True) -> list[Job]:
    """Jobs of UDML default without each of its parts."""
    rows = [(f"{DEFAULT}, {row}", ROWS[DEFAULT], {f"model.neck.{key}": value for key, value in options.items()})
            for row, options in ABLATIONS.items()]
    return _jobs(task, data_root, seeds, rows, channels_last)


def _jobs(task: Task, data_root: str, seeds: Sequence[int], rows: Sequence[tuple], channels_last: bool) -> list[Job]:
    paths = {f"{part}_dataloader.dataset.data_root": data_root for part in ("train", "val", "test")}
    return [
        Job(row, str(CONFIGS / task.configs.format(name)), seed, {**task.schedule, **options}, paths,
            evaluations(task), channels_last)
        for seed in seeds for row, name, options in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    # the task decides two defaults
    name = next((word for word in sys.argv[1:] if word in TASKS), next(iter(TASKS)))
    task = TASKS[name]
    parser.add_argument("--ablations", action="store_true", help="UDML default without each of its parts, too")
    add_table_arguments(parser, task.data_root, task.out, task.holds)
    args = parser.parse_args()
    if not (Path(args.data_root) / "train.txt").is_file():
        print(f"no train.txt in --data-root {args.data_root}; see Data in README.md", file=sys.stderr)
        return 2
    table = jobs(task, args.data_root, args.seeds)
    table += ablations(task, args.data_root, args.seeds) if args.ablations else []
    return run_table_tool(
        args, table, list(evaluations(task)),
        f"{task.metric} (%) after the last iteration, mean ± sd over seeds. A number beside a modality is the level of "
        "Gaussian noise on it.", task.metric, task.scale)


if __name__ == "__main__":
    sys.exit(main())
