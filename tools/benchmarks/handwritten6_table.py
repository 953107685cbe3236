"""The table of fusion methods on six views of handwritten digits: complete, and with views missing.

    python tools/benchmarks/handwritten6_table.py --data-root data/handwritten6 --render

28 rows x 3 seeds = 84 trainings of ready-made features, two side by side on one thread each. Resumable: kill it
and run the same command again. Every row is the model after the last epoch.
"""
from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from mmfusion_plugin.analysis import Job, add_table_arguments, run_table_tool, with_and_without_dropout

CONFIGS = Path(__file__).parents[2] / "configs" / "recognition"
VIEWS = ("pix", "fou", "fac", "zer", "kar", "mor")
WITHOUT = {f"without {view}": [view] for view in VIEWS}
ALONE = {f"{view} alone": [other for other in VIEWS if other != view] for view in VIEWS}
# the two strongest views and one more
HALF = {"without pix, fac, kar": ["pix", "fac", "kar"]}
COLUMNS = ["complete", "one missing", "without pix, fac, kar", "one alone"]
METRIC = "acc/fused_top1"
FUSED = {
    "sum": "sum", "concat": "concat", "concat, MLP": "mlp", "gated": "gated", "FiLM": "film",
    "cross-attention": "cross-attention", "SCFAE": "scfae"}
DROPOUT = 0.5


def jobs(data_root: str, seeds: Sequence[int]) -> list[Job]:
    """Jobs of the whole table, row by row within a seed: an interrupted run holds whole seeds first."""
    paths = {f"{part}_dataloader.dataset.data_root": data_root for part in ("train", "val", "test")}
    evaluations = {"complete": [], **WITHOUT, **HALF, **ALONE}
    rows = []
    for row, name in FUSED.items():
        plain, normalised = ("SCFAE literal", "SCFAE") if row == "SCFAE" else (row, f"{row} + LN")
        for variant, norm in ((plain, None), (normalised, "layer")):
            rows += [(label, name, options)
                     for label, options in with_and_without_dropout(variant, {"model.neck.norm": norm}, DROPOUT)]
    return [
        Job(row, str(CONFIGS / f"{name}_handwritten6.py"), seed, options, paths, evaluations)
        for seed in seeds for row, name, options in rows]


def with_means(record: dict) -> dict:
    """Adds the means over which view is missing, and over which is left alone."""
    found = dict(record["metrics"])
    for column, group in (("one missing", WITHOUT), ("one alone", ALONE)):
        found[column] = {METRIC: statistics.fmean(found[name][METRIC] for name in group)}
    return {**record, "metrics": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_table_arguments(parser, "data/handwritten6", "results/handwritten6.jsonl", "handwritten_6views.mat")
    args = parser.parse_args()
    if not (Path(args.data_root) / "handwritten_6views.mat").is_file():
        print(f"no handwritten_6views.mat in --data-root {args.data_root}", file=sys.stderr)
        return 2
    return run_table_tool(
        args, jobs(args.data_root, args.seeds), COLUMNS,
        "Accuracy (%) on the 400 test rows after the last epoch, mean ± sd over seeds. One missing, one alone: means "
        "over the six views.", METRIC, 100, with_means)


if __name__ == "__main__":
    sys.exit(main())
