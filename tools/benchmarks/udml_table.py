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

    python tools/benchmarks/udml_table.py {crema-d,kinetics-sound,nyuv2} --data-root DIR --workers 1 --ablations

The data of the paper's own tables, for a GPU: its figures stand beside the clean ones. So far CREMA-D's alone has been
trained, at toy length. The paper's models are not ours to the letter: it states neither encoders' weights nor schedule
for NYU Depth v2.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmfusion_plugin.analysis import Column, Job, add_table_arguments, neck_options, run_table_tool

CONFIGS = Path(__file__).parents[2] / "configs"
LEVELS = (2, 5, 8, 11, 14)
# row: (first word of its config, its neck's options over udml-default's where a data set has no config of that word)
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "static": ("udml-static", dict(quality=None, embedding=False, form="multiplicative")),
    "static, probabilistic heads": ("udml-static-pe", dict(quality=None, norm="batch", form="multiplicative")),
    "PE dynamic": ("udml-pe", dict(quality="variance", dependency=False, law="inverse_square", temperature=1.0,
                                   form="residual", norm="batch")),
    "QMF-like": ("udml-qmf", dict(quality="energy", law="exponential", temperature=1.0, form="residual",
                                  dependency=False, embedding=False)),
    "UDML released": ("udml-released", dict(preset="released")),
    "UDML default": ("udml-default", {}),
    "UDML(SCFAE)": ("udml-scfae", {})}
CLEAN = "static, clean training"
DEFAULT = "UDML default"
ABLATIONS = {
    "no estimator": {"quality": "equal", "novelty": None},
    "no dependency": {"dependency": False},
    "no embedding": {"embedding": False},
    "no novelty": {"novelty": None},
    "variance read alone": {"reads": ["variance"], "novelty": None}}
BY_POSITION = (DEFAULT, "UDML(SCFAE)")  # also run with weights for each position, where features are maps


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
    configured: Sequence[str] = tuple(config for config, _ in FORMS.values())  # which configs it has
    lists: str = "train.txt"  # a file that the folder must hold
    paper: Mapping[str, float] = field(default_factory=dict)  # {row: the paper's figure, clean}

    def config(self, word: str) -> tuple[str, dict[str, Any]]:
        """(file, options) of a row's config, as a file of its own or over that of udml-default."""
        if word in self.configured:
            return str(CONFIGS / self.configs.format(word)), {}
        own = next(options for config, options in FORMS.values() if config == word)
        return str(CONFIGS / self.configs.format("udml-default")), neck_options(**own)


def _half_hidden(**sensor: Any) -> dict[str, Any]:
    return dict(type="occlusion", level=1, scale=dict(occlusion=0.5), **sensor)


IMAGE = dict(kind="image")
DEPTH = dict(kind="depth", valid_range=(0.1, 10.0))
# floor and ceiling of log(|STFT| + 1e-2) of sound at RMS 1, as in _base_/models/udml_digit_clips.py
SPECTROGRAM = dict(kind="spectrogram", valid_range=(-4.61, 6.5))
RGBD = dict(
    noise=dict(rgb=dict(IMAGE, scale=dict(gaussian=10.0)), depth=dict(DEPTH, scale=dict(gaussian=0.2))),
    occlusion=dict(rgb=_half_hidden(**IMAGE), depth=_half_hidden(**DEPTH)), metric="mIoU", scale=1)
# of log(|STFT| + 1e-7) nothing is clipped; the floor is what silence reads
OPEN_SPECTROGRAM = dict(kind="spectrogram")
CLIPS = dict(
    noise=dict(visual=dict(IMAGE, scale=dict(gaussian=10.0)), audio=dict(OPEN_SPECTROGRAM, scale=dict(gaussian=0.3))),
    occlusion=dict(visual=_half_hidden(**IMAGE), audio=_half_hidden(**OPEN_SPECTROGRAM, empty=-16.12)),
    metric="acc/fused_top1", scale=100)
FEW = ("udml-default", "udml-scfae")
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
        holds="RGB/, Depth/, Label/, train.txt and val.txt", schedule={
            "model.data_preprocessor.size": (128, 160), "train_dataloader.dataset.pipeline.3.crop_size": (128, 160),
            "train_cfg.max_iters": 600, "param_scheduler.1.end": 600}, **RGBD),
    # the paper's own tables; static, PE, UDML from the main one, the two others from its ablation
    "nyuv2": Task(
        "segmentation/{}_r18-segformer_nyuv2-480x640.py", "data/nyuv2", "results/udml_nyuv2.jsonl",
        holds="RGB/, Depth/, Label/, train.txt and test.txt", configured=FEW,
        paper={"static": 51.2, "PE dynamic": 50.8, "UDML released": 53.1}, **RGBD),
    "crema-d": Task(
        "recognition/{}_r18_crema-d.py", "data/crema_d", "results/udml_crema_d.jsonl",
        holds="the clips and their lists", configured=FEW, lists="usual_train.txt",
        paper={"static": 67.2, "PE dynamic": 65.8, "UDML released": 71.5, "UDML default, no dependency": 69.8,
               "UDML default, no embedding": 70.1}, **CLIPS),
    "kinetics-sound": Task(
        "recognition/{}_r18_kinetics-sound.py", "data/kinetics400", "results/udml_kinetics_sound.jsonl",
        holds="the clips and their lists", configured=FEW, lists="ks31_train.txt",
        paper={"static": 64.1, "PE dynamic": 63.5, "UDML released": 66.8}, **CLIPS),
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
    rows = [(row, word, {}) for row, (word, _) in FORMS.items()]
    rows.append((CLEAN, FORMS["static"][0], {"model.data_preprocessor.train_noise": None}))
    return _jobs(task, data_root, seeds, rows, channels_last)


def ablations(task: Task, data_root: str, seeds: Sequence[int], channels_last: bool = True) -> list[Job]:
    """Jobs of UDML default without each of its parts and, in segmentation, of UDML with weights for each position."""
    rows = [(f"{DEFAULT}, {row}", FORMS[DEFAULT][0], neck_options(**options)) for row, options in ABLATIONS.items()]
    if task.metric == "mIoU":
        by_position = neck_options(per_position=True)
        rows += [(f"{row}, weights per position", FORMS[row][0], by_position) for row in BY_POSITION]
    return _jobs(task, data_root, seeds, rows, channels_last)


def _jobs(task: Task, data_root: str, seeds: Sequence[int], rows: Sequence[tuple], channels_last: bool) -> list[Job]:
    paths = {f"{part}_dataloader.dataset.data_root": data_root for part in ("train", "val", "test")}
    return [
        Job(row, config, seed, {**task.schedule, **own, **options}, paths, evaluations(task), channels_last)
        for seed in seeds for row, word, options in rows for config, own in [task.config(word)]]


def paper(task: Task) -> list[Column]:
    """The paper's figure, where the data are the same."""
    shown = Column("clean, in the paper", lambda record: task.paper.get(record["row"]), best=False, spread=False)
    return [shown] if task.paper else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    # the task decides two defaults
    name = next((word for word in sys.argv[1:] if word in TASKS), next(iter(TASKS)))
    task = TASKS[name]
    parser.add_argument("--ablations", action="store_true", help="UDML default without each of its parts, too")
    add_table_arguments(parser, task.data_root, task.out, task.holds)
    args = parser.parse_args()
    table = jobs(task, args.data_root, args.seeds)
    table += ablations(task, args.data_root, args.seeds) if args.ablations else []
    return run_table_tool(
        args, table, list(evaluations(task)),
        f"{task.metric} (%) after the last iteration, mean ± sd over seeds. A number beside a modality is the level of "
        "Gaussian noise on it.", task.metric, task.scale, more=paper(task), reads=task.lists)


if __name__ == "__main__":
    sys.exit(main())
