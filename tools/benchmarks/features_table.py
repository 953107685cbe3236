"""The table of fusion methods on ready-made features of three or six modalities: complete, and with some missing.

    python tools/benchmarks/features_table.py handwritten6 --data-root data/handwritten6 --render
    python tools/benchmarks/features_table.py cmu-mosi --data-root data/cmu_mosi --render

37 rows x 3 seeds = 111 trainings, two side by side on one thread each. Resumable: kill it and run the same command
again. Every row is the model after the last epoch. The encoders of CMU-MOSI have a classifier each; on the six views
eight rows more have them, too.
"""
from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmfusion_plugin.analysis import Job, add_table_arguments, fusion_rows, run_table_tool

CONFIGS = Path(__file__).parents[2] / "configs" / "recognition"
METRIC = "acc/fused_top1"
DROPOUT = 0.5
HEADED = ("sum + LN, dropout", "concat + LN, dropout", "concat, MLP + LN, dropout", "gated + LN, dropout",
          "SCFAE, dropout", "SCFAE, received, dropout", "SCFAE, width 1/4, dropout",
          "SCFAE, width 1/4, received, dropout")


@dataclass(frozen=True)
class Task:
    """One data set: its modalities, which columns the table shows, what the folder must hold."""

    data_root: str
    out: str
    modalities: Sequence[str]
    columns: Sequence[str]
    holds: str
    rows: int
    scfae_parameters: int
    more: Mapping[str, Sequence[str]] = field(default_factory=dict)  # what else is withheld

    @property
    def without(self) -> dict[str, list[str]]:
        return {f"without {m}": [m] for m in self.modalities}

    @property
    def alone(self) -> dict[str, list[str]]:
        return {f"{m} alone": [k for k in self.modalities if k != m] for m in self.modalities}


TASKS = {
    "handwritten6": Task(
        "data/handwritten6", "results/handwritten6.jsonl", ("pix", "fou", "fac", "zer", "kar", "mor"),
        ["complete", "one missing", "without pix, fac, kar", "one alone"], "handwritten_6views.mat", 400,
        676_984,
        # the two strongest views and one more
        {"without pix, fac, kar": ["pix", "fac", "kar"]}),
    "cmu-mosi": Task(
        "data/cmu_mosi", "results/cmu_mosi.jsonl", ("text", "audio", "video"),
        ["complete", "without text", "without audio", "without video", "text alone", "audio alone", "video alone"],
        "val.npz", 326, 284_428),
}


def with_heads(rows: Sequence[tuple[str, str, dict]]) -> list[tuple[str, str, dict]]:
    """The rows of :data:`HEADED`, each encoder with a classifier of its own."""
    return [(f"{row}, heads", config, {**options, "model.cls_head.aux_weight": 1.0})
            for row, config, options in rows if row in HEADED]


def jobs(name: str, data_root: str, seeds: Sequence[int]) -> list[Job]:
    """Jobs of the whole table, row by row within a seed: an interrupted run holds whole seeds first."""
    task = TASKS[name]
    paths = {f"{part}_dataloader.dataset.data_root": data_root for part in ("train", "val", "test")}
    evaluations = {"complete": [], **task.without, **task.more, **task.alone}
    rows = fusion_rows(DROPOUT, task.scfae_parameters)
    rows += with_heads(rows) if name == "handwritten6" else []
    return [
        Job(row, str(CONFIGS / f"{config}_{name}.py"), seed, options, paths, evaluations)
        for seed in seeds for row, config, options in rows]


def with_means(task: Task, record: dict) -> dict:
    """Adds the means over which modality is missing, and over which is left alone."""
    found = dict(record["metrics"])
    for column, group in (("one missing", task.without), ("one alone", task.alone)):
        found[column] = {METRIC: statistics.fmean(found[name][METRIC] for name in group)}
    return {**record, "metrics": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    # the task decides two defaults
    name = next((word for word in sys.argv[1:] if word in TASKS), next(iter(TASKS)))
    task = TASKS[name]
    add_table_arguments(parser, task.data_root, task.out, task.holds)
    args = parser.parse_args()
    return run_table_tool(
        args, jobs(args.task, args.data_root, args.seeds), task.columns,
        f"Accuracy (%) on the {task.rows} test rows after the last epoch, mean ± sd over seeds. One missing, one "
        "alone: means over the modalities.", METRIC, 100, lambda record: with_means(task, record),
        reads=task.holds)


if __name__ == "__main__":
    sys.exit(main())
