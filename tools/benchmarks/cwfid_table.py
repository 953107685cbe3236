"""The table of fusion methods on CWFID (red and near infrared): complete, and with one sensor missing.

    python tools/benchmarks/cwfid_table.py --data-root data/cwfid --out results/cwfid.jsonl --render

17 rows x 3 seeds = 51 trainings, two side by side on one thread each. Resumable: kill it and run the
same command again. Two cores, nothing else running: estimated 75 to 85 minutes. --normalised adds sum, concat,
gated and cross-attention with LayerNorm on their inputs, each with and without modality dropout: 8 rows,
24 trainings, half as long again. Every row is the model after the last iteration: no checkpoint is
picked on the validation pictures.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmfusion_plugin.analysis import Job, add_table_arguments, neck_options, run_table_tool, with_and_without_dropout

CONFIGS = Path(__file__).parents[2] / "configs" / "segmentation"
EVALUATIONS = {"complete": [], "without red": ["red"], "without nir": ["nir"]}
UNIMODAL = {"red only": "red", "nir only": "nir"}
FUSED = {
    "sum": "sum", "concat": "concat", "concat, MLP + LN": "mlp", "gated": "gated",
    "cross-attention": "cross-attention", "SCFAE literal": "scfae-literal", "SCFAE": "scfae"}
NORMALISED = ("sum", "concat", "gated", "cross-attention")
DROPOUT = 0.3


def jobs(
    data_root: str, seeds: Sequence[int], iters: int | None, normalised: bool, channels_last: bool
) -> list[Job]:
    """Jobs of the whole table, row by row within a seed: an interrupted run holds whole seeds first."""
    paths = {f"{part}_dataloader.dataset.data_root": data_root for part in ("train", "val", "test")}
    schedule = {} if iters is None else {
        "train_cfg.max_iters": iters, "train_cfg.val_interval": iters,
        "param_scheduler.0.end": max(1, iters // 10), "param_scheduler.1.begin": max(1, iters // 10),
        "param_scheduler.1.end": iters}
    rows = [(row, name, {}, {"complete": []}) for row, name in UNIMODAL.items()]
    for row, name in FUSED.items():
        variants = {row: {}}
        if normalised and row in NORMALISED:
            variants[f"{row} + LN"] = {"model.neck.norm": "layer"}
        for variant, options in variants.items():
            rows += [(label, name, more, EVALUATIONS)
                     for label, more in with_and_without_dropout(variant, options, DROPOUT)]
    received = neck_options(recon_reads="received", modality_dropout=DROPOUT)
    rows.append(("SCFAE, received, dropout", "scfae", received, EVALUATIONS))
    return [
        Job(row, str(CONFIGS / f"{name}_r18-segformer_cwfid.py"), seed, {**schedule, **options}, paths,
            evaluations, channels_last)
        for seed in seeds for row, name, options, evaluations in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_table_arguments(parser, "data/cwfid", "results/cwfid.jsonl", "red/, nir/, label/, train.txt and val.txt")
    parser.add_argument("--iters", type=int, help="another number of iterations than the configs'")
    parser.add_argument("--normalised", action="store_true", help="add baselines with normalised inputs")
    parser.add_argument("--contiguous", action="store_true", help="no channels-last weights (slower)")
    args = parser.parse_args()
    table = jobs(args.data_root, args.seeds, args.iters, args.normalised, not args.contiguous)
    return run_table_tool(
        args, table, list(EVALUATIONS),
        "mIoU on the validation pictures after the last iteration, mean ± sd over seeds.", reads="train.txt")


if __name__ == "__main__":
    sys.exit(main())
