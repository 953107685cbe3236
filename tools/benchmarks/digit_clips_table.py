"""The table of fusion methods on the digit clips: complete, and with one modality missing.

    python tools/make_digit_clips.py --out data/digit_clips --workers 2
    python tools/benchmarks/digit_clips_table.py --data-root data/digit_clips --render

Pictures alone, sound alone, and seven fusions, each with plain and with normalised inputs, an MLP as large as SCFAE,
and SCFAE in four forms, each without and with modality dropout, and SCFAE at a quarter of the width and with a
reconstruction from what it received: 39 rows x 3 seeds = 117 trainings, two side by side on one thread each.
Resumable: kill it and run the same command again. Every row is the model after the last epoch: no checkpoint is
picked on test clips.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmfusion_plugin.analysis import Job, add_table_arguments, fusion_rows, run_table_tool

CONFIGS = Path(__file__).parents[2] / "configs" / "recognition"
EVALUATIONS = {"complete": [], "without visual": ["visual"], "without audio": ["audio"]}
UNIMODAL = {"visual only": "visual", "audio only": "audio"}
DROPOUT = 0.3
SCFAE_PARAMETERS = 405_052


def jobs(data_root: str, seeds: Sequence[int], channels_last: bool = True) -> list[Job]:
    """Jobs of the whole table, row by row within a seed: an interrupted run holds whole seeds first."""
    paths = {f"{part}_dataloader.dataset.data_root": data_root for part in ("train", "val", "test")}
    rows = [(row, name, {}, {"complete": []}) for row, name in UNIMODAL.items()]
    rows += [(*row, EVALUATIONS) for row in fusion_rows(DROPOUT, SCFAE_PARAMETERS)]
    return [
        Job(row, str(CONFIGS / f"{name}_small_digit-clips.py"), seed, options, paths, evaluations, channels_last)
        for seed in seeds for row, name, options, evaluations in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_table_arguments(parser, "data/digit_clips", "results/digit_clips.jsonl", "the clips and their lists")
    args = parser.parse_args()
    return run_table_tool(
        args, jobs(args.data_root, args.seeds), list(EVALUATIONS),
        "Accuracy (%) on the 1,000 test clips (another speaker, other images) after the last epoch, mean ± sd over "
        "seeds.", "acc/fused_top1", 100, reads="train.txt")


if __name__ == "__main__":
    sys.exit(main())
