"""The table of fusion methods on CWFID (red and near infrared): complete, and with one sensor missing.

    python tools/benchmarks/cwfid_table.py --data-root data/cwfid --out results/cwfid.jsonl --render

16 rows x 3 seeds = 48 trainings, two side by side on one thread each. Resumable: kill it and run the
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

from mmfusion_plugin.analysis import Job, read_results, render, run_table

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
            for label, p in ((variant, 0.0), (f"{variant}, dropout", DROPOUT)):
                rows.append((label, name, {**options, "model.neck.modality_dropout": p}, EVALUATIONS))
    return [
        Job(row, str(CONFIGS / f"{name}_r18-segformer_cwfid.py"), seed, {**schedule, **options}, paths,
            evaluations, channels_last)
        for seed in seeds for row, name, options, evaluations in rows]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data/cwfid",
                        help="folder with red/, nir/, label/, train.txt and val.txt")
    parser.add_argument("--out", default="results/cwfid.jsonl", help="results, one line of JSON per training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="trainings side by side, one thread each")
    parser.add_argument("--iters", type=int, help="another number of iterations than the configs'")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows, as the table names them")
    parser.add_argument("--normalised", action="store_true", help="add baselines with normalised inputs")
    parser.add_argument("--contiguous", action="store_true", help="no channels-last weights (slower)")
    parser.add_argument("--retry-failed", action="store_true", help="run failed trainings again")
    parser.add_argument("--render", action="store_true", help="print the table when all is done")
    parser.add_argument("--render-only", action="store_true", help="train nothing, print what is there")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    if not (Path(args.data_root) / "train.txt").is_file():
        print(f"no train.txt in --data-root {args.data_root}", file=sys.stderr)
        return 2
    table = jobs(args.data_root, args.seeds, args.iters, args.normalised, not args.contiguous)
    names = list(dict.fromkeys(job.row for job in table))
    unknown = sorted(set(args.rows or ()) - set(names))
    if unknown:
        print(f"--rows {unknown}: the table has {names}", file=sys.stderr)
        return 2
    table = [job for job in table if args.rows is None or job.row in args.rows]
    failed = []
    if not args.render_only:
        failed = run_table(table, args.out, workers=args.workers, retry_failed=args.retry_failed).failed
    if args.render or args.render_only:
        keys = {job.key() for job in table}
        records = [record for record in read_results(args.out) if record["key"] in keys]
        print(render(records, list(EVALUATIONS), names))
        print("\nmIoU on the validation pictures after the last iteration, mean ± sd over seeds."
              "\nBold: within one standard deviation of the column's best.")
    if failed:
        print(f"{len(failed)} trainings failed; see {Path(args.out).stem}.failures.jsonl beside {args.out}",
              file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
