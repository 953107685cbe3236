"""How far UDML's weights are from the best ones, found by search, at each noise level.

    python tools/benchmarks/udml_table.py digit-clips --data-root data/digit_clips --keep
    python tools/benchmarks/weight_oracle.py digit-clips --data-root data/digit_clips

Reads the weights that the table of UDML kept for one row, and evaluates them on the validation part (--split) under
noise on one modality, with the noisy one's weight set to each of several values, the other's to what is left of 2,
alike for all samples: the best of them is the oracle. Beside it: the model's own weights, weights of 1, and other laws
in the place of its own, without training again. The mean regret is what a column loses to the oracle.
"""
from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
import torch
from torch import Tensor, nn
from udml_table import TASKS, Task, jobs

from mmfusion_plugin.analysis.table_runs import Job, kept_runner, kept_weights, read_results
from mmfusion_plugin.fusion.weighting import FusionWeights

GRID = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
LEVELS = (0, 5, 11, 14)
LAWS = {
    "1/s^2": ("inverse_square", 1.0), "1/s": ("inverse", 1.0), "s^-1/2": ("inverse", 2.0), "s^-1/3": ("inverse", 3.0)}


class FixedWeight(nn.Module):
    """The same weight of one modality for every sample, the rest of M for the others; 0 for what is missing."""

    def __init__(self, modality: str, weight: float, modalities: tuple[str, ...]) -> None:
        super().__init__()
        rest = (len(modalities) - weight) / (len(modalities) - 1)
        self.values = {m: weight if m == modality else rest for m in modalities}
        self.gain, self.curves = None, {}

    def forward(self, s: Mapping[str, Tensor], alpha: Any, available: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: available[m].float() * value for m, value in self.values.items()}


def conditions(task: Task) -> dict[str, tuple[str, dict[str, Any]]]:
    """{name: (noisy modality, test noise)}."""
    found = {}
    for m, sensor in task.noise.items():
        for level in LEVELS:
            found[f"{m} {level}"] = m, {m: dict(type="gaussian", level=level, **sensor)}
        found[f"{m} occluded"] = m, {m: task.occlusion[m]}
    return found


def measure(job: Job, weights: Path, task: Task, split: str) -> dict[str, dict[str, float]]:
    """{condition: {weights: metric in percent}}."""
    def choose(cfg: Any) -> None:
        cfg.test_dataloader = cfg.val_dataloader if split == "val" else cfg.test_dataloader

    runner = kept_runner(job, weights, choose)
    udml, preprocessor = runner.model.neck.udml, runner.model.data_preprocessor
    own, found = udml.weigh, {}
    for name, (m, noise) in conditions(task).items():
        preprocessor.noise.set_test_noise(noise)
        tried = {"own": own, **{f"{w:g}": FixedWeight(m, w, udml.modalities) for w in GRID}}
        tried |= {law: FusionWeights(udml.modalities, kind, t, udml.span) for law, (kind, t) in LAWS.items()}
        found[name] = {}
        for which, weigh in tried.items():
            udml.weigh = weigh
            found[name][which] = task.scale * float(runner.test()[task.metric])
        print(name, found[name], flush=True)
    return found


def render(records: list[Mapping[str, Any]]) -> str:
    names = list(records[0]["found"])

    def mean(name: str, which: str) -> float:
        return statistics.fmean(record["found"][name][which] for record in records)

    columns = ["own", "1", *LAWS]
    lines = [f"| | best weight | oracle | {' | '.join('weights of 1' if c == '1' else c for c in columns)} |",
             "|---|" + "---|" * (len(columns) + 2)]
    regret = dict.fromkeys(columns, 0.0)
    for name in names:
        best = max(GRID, key=lambda w: mean(name, f"{w:g}"))
        oracle = mean(name, f"{best:g}")
        lines.append(f"| {name} | {best:g} | {oracle:.1f} | "
                     + " | ".join(f"{mean(name, column):.1f}" for column in columns) + " |")
        for column in columns:
            regret[column] += (oracle - mean(name, column)) / len(names)
    lines.append("| mean regret | | 0 | " + " | ".join(f"{regret[column]:.1f}" for column in columns) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--data-root", help="folder of the data (default: the table's)")
    parser.add_argument("--results", help="results of udml_table.py (default: its own)")
    parser.add_argument("--row", default="UDML default", help="row of the table (default: UDML default)")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    task = TASKS[args.task]
    results = Path(args.results or task.out)
    out = results.with_name(f"{results.stem}_oracle.jsonl")
    table = [job for job in jobs(task, args.data_root or task.data_root, args.seeds) if job.row == args.row]
    done = {(record["key"], record["split"]) for record in read_results(out)}
    for job in table:
        weights = kept_weights(results, job)
        if (job.key(), args.split) in done or not weights.is_file():
            continue
        record = dict(key=job.key(), row=job.row, seed=job.seed, split=args.split,
                      found=measure(job, weights, task, args.split))
        with out.open("a") as file:
            file.write(json.dumps(record) + "\n")
    keys = {job.key() for job in table}
    records = [r for r in read_results(out) if r["key"] in keys and r["split"] == args.split]
    if not records:
        print(f"no kept weights of {args.row!r} beside {results}; run udml_table.py {args.task} with --keep",
              file=sys.stderr)
        return 2
    print(render(records))
    print(f"\n{args.row}, {len(records)} seeds, {args.split}; {task.metric} in percent.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
