"""How far each fusion is from the best of each column, in standard deviations, over all tables of fusion methods.

    python tools/benchmarks/preset_ranking.py

Reads results/{digit_clips,handwritten6,cmu_mosi,cwfid}.jsonl and trains nothing. A distance is (best mean - own mean)
over the larger of the two standard deviations over seeds, at least --floor points: three runs that agree by luck are no
yardstick. A row is shown with its worst column in each table; the recommended preset is the row that has the smallest
worst distance over all, among the rows that every table holds. Where a table has a row both without and with a
classifier for each encoder ("heads"), as the other data sets' configs have one, the latter stands for it. On CWFID
every SCFAE but the literal one runs at 9/32 of the width, and stands for the rows at a quarter, too.
"""
from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
import cwfid_table
import digit_clips_table
import features_table

from mmfusion_plugin.analysis import Job, read_results, spread
from mmfusion_plugin.analysis.evidence import markdown_table

SEEDS = (0, 1, 2)
HEADS = ", heads"
# on CWFID, whose configs are narrow: row -> the row that stands for it
NARROW = {"SCFAE, width 1/4, dropout": "SCFAE, dropout",
          "SCFAE, width 1/4, received, dropout": "SCFAE, received, dropout"}
ACCURACY = "acc/fused_top1"
Record = dict[str, Any]
Distances = dict[str, dict[str, float]]  # row -> column -> distance


class Table:
    """Records of one results file, as its own command selects them, and its columns in points."""

    def __init__(self, name: str, jobs: Sequence[Job], columns: Sequence[str], metric: str, scale: float,
                 derive: Callable[[Record], Record] = lambda record: record) -> None:
        self.name, self.jobs, self.columns = name, jobs, columns
        self.metric, self.scale, self.derive = metric, scale, derive

    def scores(self, folder: Path) -> dict[str, dict[str, list[float]]]:
        """row -> column -> values over seeds, of rows with more than one seed and every column."""
        wanted = {job.settings() for job in self.jobs}
        found: dict[str, dict[str, list[float]]] = {}
        for record in map(self.derive, read_results(folder / f"{self.name}.jsonl")):
            if record["settings"] in wanted and record["seed"] in SEEDS and set(self.columns) <= set(record["metrics"]):
                row = found.setdefault(record["row"], {column: [] for column in self.columns})
                for column in self.columns:
                    row[column].append(self.scale * record["metrics"][column][self.metric])
        return {row: columns for row, columns in found.items() if len(columns[self.columns[0]]) > 1}


def tables() -> list[Table]:
    clips = digit_clips_table
    found = [Table("digit_clips", clips.jobs("", [0]), list(clips.EVALUATIONS), ACCURACY, 100)]
    for name, task in features_table.TASKS.items():
        found.append(Table(
            Path(task.out).stem, features_table.jobs(name, "", [0]), task.columns, ACCURACY, 100,
            lambda record, task=task: features_table.with_means(task, record)))
    pictures = cwfid_table.jobs("", [0], None, True, True)
    found.append(Table("cwfid", pictures, list(cwfid_table.EVALUATIONS), "mIoU", 1))
    return found


def distances(scores: Mapping[str, Mapping[str, Sequence[float]]], columns: Sequence[str], floor: float) -> Distances:
    """row -> column -> how many standard deviations it is below the column's best row."""
    found: Distances = {row: {} for row in scores}
    for column in columns:
        known = {row: spread(values[column]) for row, values in scores.items()}
        best, best_sd = max(known.values())
        for row, (mean, sd) in known.items():
            found[row][column] = (best - mean) / max(sd, best_sd, floor)
    return found


def headed(rows: Distances) -> Distances:
    """Rows with heads in the place of those without."""
    plain = {row: of for row, of in rows.items() if not row.endswith(HEADS)}
    return {**plain, **{row.removesuffix(HEADS): of for row, of in rows.items() if row.endswith(HEADS)}}


def ranking(found: Mapping[str, Distances]) -> list[tuple[str, float, float, int, int]]:
    """(row, worst distance, mean distance, columns within one, columns), best first, of rows that every table holds."""
    alike = [headed(rows) for rows in found.values()]
    common = set.intersection(*map(set, alike)) if alike else set()
    lines = []
    for row in common:
        values = [d for rows in alike for d in rows[row].values()]
        lines.append((row, max(values), statistics.fmean(values), sum(d <= 1 for d in values), len(values)))
    return sorted(lines, key=lambda line: line[1:3])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default="results", help="folder of the results files (default: results)")
    parser.add_argument("--floor", type=float, default=0.5, help="smallest yardstick, in points (default: 0.5)")
    parser.add_argument("--columns", action="store_true", help="every column of every row, too")
    args = parser.parse_args()
    if not args.floor > 0:
        print(f"--floor {args.floor}: above 0", file=sys.stderr)
        return 2
    found: dict[str, Distances] = {}
    for table in tables():
        scores = table.scores(Path(args.results))
        if not scores:
            print(f"no results of {table.name} in --results {args.results}", file=sys.stderr)
            return 2
        found[table.name] = distances(scores, table.columns, args.floor)
        if table.name == "cwfid":
            of = found[table.name]
            of |= {row: of[same] for row, same in NARROW.items() if same in of}
    rows = list(dict.fromkeys(row for rows in found.values() for row in rows))
    if args.columns:
        for name, of in found.items():
            columns = list(next(iter(of.values())))
            print(f"{name}\n")
            print(markdown_table(["", *columns], [[r, *(f"{of[r][c]:.1f}" for c in columns)] for r in of]), end="\n\n")
    lines = []
    for row in rows:
        cells = []
        for of in found.values():
            worst = max(of[row].items(), key=lambda item: item[1]) if row in of else None
            cells.append("-" if worst is None else f"{worst[1]:.1f} ({worst[0]})")
        lines.append([row, *cells])
    print("Worst column of each row, in standard deviations below the best\n")
    print(markdown_table(["", *found], lines))
    print("\nRows of every table, the smallest worst distance first\n")
    print(markdown_table(
        ["", "worst", "mean", "columns within 1 sd"],
        [[row, f"{worst:.1f}", f"{mean:.1f}", f"{near} of {number}"] for row, worst, mean, near, number in
         ranking(found)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
