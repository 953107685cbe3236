"""How faithfully trained UDML models read noise, and whether they notice faults that training never showed.

    python tools/benchmarks/udml_table.py digit-clips --data-root data/digit_clips --keep
    python tools/benchmarks/noise_estimates.py digit-clips --data-root data/digit_clips

Reads the weights that the table of UDML kept and evaluates them on its test set. By modality: rank correlation
(Spearman) of predicted and injected level over samples and levels 0 to 14, and up to 4; whether the levels' means
rise; the clean samples' mean estimate; and for each fault that training never showed the area under the ROC of clean
against faulty samples, by the level that the weights read. Mean ± sd over seeds. Resumable.
"""
from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
from udml_table import TASKS, Task, ablations, jobs

from mmfusion_plugin.analysis.noise_response import respond, roc_area, summarise
from mmfusion_plugin.analysis.table_runs import Job, kept_runner, kept_weights, read_results

LEVELS = (0, 1, 2, 3, 4, 6, 8, 11, 14)
LOW = 4
ROWS = ("UDML released", "UDML default", "UDML default, variance read alone", "UDML(SCFAE)")
# strength at level 1, in the type's unit
PICTURE = dict(occlusion=0.25, blur=1.0, salt_and_pepper=0.1, gain=6.0)
SOUND = dict(occlusion=0.25, time_masking=0.3, salt_and_pepper=0.1, blur=1.0)


def faults(task: Task) -> dict[str, dict[str, float]]:
    return {m: SOUND if sensor["kind"] == "spectrogram" else PICTURE for m, sensor in task.noise.items()}


def measure(job: Job, weights: Path, task: Task) -> dict[str, Any]:
    """{m: dict(spearman, spearman_low, rising, clean, areas {type: area})} of one trained model."""
    def describe(cfg: Any) -> None:
        noise = cfg.model.data_preprocessor.train_noise.noise
        for m, types in faults(task).items():
            noise[m].scale.update(types)
            noise[m].update({key: task.occlusion[m][key] for key in ("empty",) if key in task.occlusion[m]})

    runner = kept_runner(job, weights, describe)
    batches = list(runner.test_loop.dataloader)
    found = {}
    for m, types in faults(task).items():
        rows = respond(runner.model, batches, m, "gaussian", LEVELS)
        summary = summarise(rows, m, LOW)
        clean = [row[f"level.{m}"] for row in rows if row["level"] == 0]
        areas = {
            name: roc_area(clean, [row[f"level.{m}"] for row in respond(runner.model, batches, m, name, [1])])
            for name in types}
        found[m] = dict(
            spearman=summary["spearman"], spearman_low=summary["spearman_low"], rising=summary["rising"],
            means=list(summary["means"].values()), weights=list(summary["weights"].values()), areas=areas)
    return found


def render(records: Sequence[Mapping[str, Any]], task: Task) -> str:
    lines = []
    for m, types in faults(task).items():
        columns = ["Spearman", f"up to level {LOW}", "means rise", "clean reads", *types]
        lines += [f"**{m}**", "", f"| | {' | '.join(columns)} | n |", "|---|" + "---|" * (len(columns) + 1)]
        for row in dict.fromkeys(record["row"] for record in records):
            of_row = [record["found"][m] for record in records if record["row"] == row]
            values = [[one["spearman"] for one in of_row], [one["spearman_low"] for one in of_row], None,
                      [one["means"][0] for one in of_row], *[[one["areas"][name] for one in of_row] for name in types]]
            cells = [f"{sum(one['rising'] for one in of_row)} of {len(of_row)}" if v is None else _cell(v)
                     for v in values]
            lines.append(f"| {row} | {' | '.join(cells)} | {len(of_row)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if any(math.isnan(value) for value in values):  # a rank correlation with a constant
        return "-"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--data-root", help="folder of the data (default: the table's)")
    parser.add_argument("--results", help="results of udml_table.py (default: its own)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    task = TASKS[args.task]
    results = Path(args.results or task.out)
    out = results.with_name(f"{results.stem}_estimates.jsonl")
    data_root = args.data_root or task.data_root
    table = [job for job in jobs(task, data_root, args.seeds) + ablations(task, data_root, args.seeds)
             if job.row in ROWS]
    there = {job.key(): kept_weights(results, job) for job in table}
    done = {record["key"] for record in read_results(out)}
    if not any(path.is_file() for path in there.values()):
        print(f"no kept weights beside {results}; run udml_table.py {args.task} with --keep", file=sys.stderr)
        return 2
    for job in table:
        key = job.key()
        if key in done or not there[key].is_file():
            continue
        found = measure(job, there[key], task)
        with out.open("a") as file:
            file.write(json.dumps(dict(key=key, row=job.row, seed=job.seed, found=found)) + "\n")
    keys = {job.key() for job in table}
    print(render([record for record in read_results(out) if record["key"] in keys], task))
    print("A fault's column: area under the ROC, clean against it at " + "; ".join(
        f"{m}: " + ", ".join(f"{name} {strength:g}" for name, strength in types.items())
        for m, types in faults(task).items()) + ".")
    return 0


if __name__ == "__main__":
    sys.exit(main())
