"""A search for SCFAE's form on validation parts, with seeds that no table uses; test rows are never read.

    python tools/benchmarks/scfae_search.py handwritten6 --data-root data/handwritten6 --render
    python tools/benchmarks/scfae_search.py digit-clips --data-root data/digit_clips --render

Six views: every fourth training row is for validation. Digit clips: their validation part. CMU-MOSI cannot be
searched like that: its features were fitted to the training labels by those who published them, so any part of
train.npz is solved by the text alone, and the rest is the test part. One option is changed at a time; the bar are three
plain fusions with LayerNorm and modality dropout, of which none is searched. Ranked by the mean over the columns.
"""
from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
import scfae_forms  # noqa: F401  registers its necks, here and in the processes that train
from features_table import TASKS as FEATURES

from mmfusion_plugin.analysis import Column, Job, add_table_arguments, neck_options, render_columns, run_table_tool

CONFIGS = Path(__file__).parents[2] / "configs" / "recognition"
METRIC = "acc/fused_top1"
FOLD = dict(number=4, index=0)
SEEDS = [100, 101]


def head(**options: Any) -> dict[str, Any]:
    return {f"model.cls_head.{key}": value for key, value in options.items()}


def neck_rate(factor: float) -> dict[str, Any]:
    return {"optim_wrapper.paramwise_cfg": dict(custom_keys=dict(neck=dict(lr_mult=factor)))}


BAR = {"concat + LN, dropout": "concat", "concat, MLP + LN, dropout": "mlp", "gated + LN, dropout": "gated"}
FORMS: dict[str, dict[str, Any]] = {
    "SCFAE": {},
    "no residual": neck_options(residual=False),
    "head reads Z alone": neck_options(head_reads="post"),
    "no reconstruction": neck_options(recon_weight=0.0),
    "lambda 0.1": neck_options(recon_weight=0.1),
    "target attached": neck_options(detach_target=False),
    "no exchange": neck_options(exchange=False),
    "n = 1": neck_options(expansion=1),
    "width 1/2": neck_options(width=0.5),
    "width 1/4": neck_options(width=0.25),
    "dropout 0.3": neck_options(modality_dropout=0.3),
    "dropout 0.7": neck_options(modality_dropout=0.7),
    "learned stand-in": neck_options(missing_fill="token"),
    "neck's rate x 0.3": neck_rate(0.3),
    "neck's rate x 3": neck_rate(3.0),
    "encoders' rate x 0.3": {"optim_wrapper.paramwise_cfg": dict(custom_keys=dict(backbone=dict(lr_mult=0.3)))},
    "gated exchange": neck_options(type="GatedExchangeSCFAE"),
    "reconstruction from the other": neck_options(recon_reads="received"),
    "gated exchange, reconstruction from the other": neck_options(type="GatedExchangeSCFAE", recon_reads="received"),
    "inputs not normalised": neck_options(norm=None),
}
MORE = {
    "digit-clips": {"missing neighbour: own": neck_options(missing_neighbour="own"), "no heads": head(aux_weight=0.0)},
    "handwritten6": {
        "heads": head(aux_weight=1.0),
        "heads, reconstruction from the other": {
            **head(aux_weight=1.0), **neck_options(recon_reads="received")},
        "heads, both": {**head(aux_weight=1.0), **neck_options(type="GatedExchangeSCFAE", recon_reads="received")}}}
HOLDS = {"digit-clips": "train.txt", "handwritten6": FEATURES["handwritten6"].holds}
DROPOUT = {"digit-clips": 0.3, "handwritten6": 0.5}


def validation(name: str) -> dict[str, Any]:
    """Config options that put a part of the training data in the place of the test data."""
    if name == "digit-clips":
        return {"test_dataloader.dataset.ann_file": "val.txt"}
    return {"train_dataloader.dataset.fold": dict(FOLD, part="train"),
            "test_dataloader.dataset.fold": dict(FOLD, part="validation"), "test_dataloader.dataset.split": "train"}


def jobs(name: str, data_root: str, seeds: Sequence[int]) -> list[Job]:
    """Every row once per seed, row by row within a seed."""
    configs = "{}_small_digit-clips.py" if name == "digit-clips" else "{}_handwritten6.py"
    dropout = neck_options(modality_dropout=DROPOUT[name])
    rows = [(row, config, {**dropout, **neck_options(norm="layer")}) for row, config in BAR.items()]
    rows += [(row, "scfae", {**dropout, **options}) for row, options in {**FORMS, **MORE[name]}.items()
             if options != dropout]
    paths = {f"{part}_dataloader.dataset.data_root": data_root for part in ("train", "val", "test")}
    return [
        Job(row, str(CONFIGS / configs.format(config)), seed, {**options, **validation(name)}, paths,
            evaluations(name), name == "digit-clips")
        for seed in seeds for row, config, options in rows]


def evaluations(name: str) -> dict[str, list[str]]:
    if name == "digit-clips":
        return {"complete": [], "without visual": ["visual"], "without audio": ["audio"]}
    task = FEATURES[name]
    return {"complete": [], **task.without, **task.more, **task.alone}


def columns(name: str) -> list[Column]:
    def score(names: Sequence[str]) -> Any:
        return lambda record: 100 * statistics.fmean(record["metrics"][n][METRIC] for n in names)

    groups: dict[str, Sequence[str]] = {c: [c] for c in evaluations(name)}
    if name != "digit-clips":
        task = FEATURES[name]
        groups = {"complete": ["complete"], "one missing": list(task.without), **{c: [c] for c in task.more},
                  "one alone": list(task.alone)}
    found = [Column(heading, score(names)) for heading, names in groups.items()]
    return [*found, Column("mean", lambda r: statistics.fmean(c.value(r) for c in found))]


def draw(name: str, records: Sequence[Mapping[str, Any]]) -> str:
    shown = columns(name)
    means: dict[str, list[float]] = {}
    for record in records:
        means.setdefault(record["row"], []).append(shown[-1].value(record))
    rows = sorted(means, key=lambda row: -statistics.fmean(means[row]))
    cost = sum(r["train_seconds"] + r["evaluation_seconds"] for r in records) / 60
    return f"{render_columns(records, shown, rows)}\n\n{len(records)} trainings, {cost:.0f} minutes of a core together."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=list(HOLDS))
    name = next((word for word in sys.argv[1:] if word in HOLDS), next(iter(HOLDS)))
    stem = name.replace("-", "_")
    add_table_arguments(parser, f"data/{stem}", f"results/scfae_search_{stem}.jsonl", HOLDS[name])
    parser.set_defaults(seeds=SEEDS)
    args = parser.parse_args()
    if min(args.seeds) < 100:
        print(f"--seeds {args.seeds}: the tables use the small ones; search with 100 and up", file=sys.stderr)
        return 2
    return run_table_tool(
        args, jobs(name, args.data_root, args.seeds), [], "Accuracy (%) on the validation part after the last epoch.",
        METRIC, 100, draw=lambda records: draw(name, records), reads=HOLDS[name])


if __name__ == "__main__":
    sys.exit(main())
