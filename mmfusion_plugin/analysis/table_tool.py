"""What the commands that make a table share: arguments, which rows to run, the printed result."""
from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .evidence import markdown_table
from .table_columns import Column, render
from .table_runs import Job, TableError, read_results, run_table, train_and_evaluate

__all__ = ["add_table_arguments", "fusion_rows", "neck_options", "run_table_tool", "single_modality",
           "with_and_without_dropout"]

Record = dict[str, Any]
FUSED = {
    "sum": "sum", "concat": "concat", "concat, MLP": "mlp", "gated": "gated", "FiLM": "film",
    "cross-attention": "cross-attention", "SCFAE": "scfae"}


def neck_options(**options: Any) -> dict[str, Any]:
    """Config options of the neck, as a job's overrides."""
    return {f"model.neck.{key}": value for key, value in options.items()}


def single_modality(m: str, channels: int | Sequence[int]) -> dict[str, Any]:
    """Config options that let one modality alone be read; the other encoders run idle beside it."""
    return {"model.neck": dict(
        _delete_=True, type="SingleModality", modality=m, in_channels=channels, out_channels=channels)}


SCFAE = {
    "SCFAE literal": neck_options(norm=None, residual=False, head_reads="post"),
    "SCFAE, no residual": neck_options(norm="layer", residual=False, head_reads="post"),
    "SCFAE, residual": neck_options(norm="layer", residual=True, head_reads="post"),
    "SCFAE": neck_options(norm="layer", residual=True, head_reads="post_and_input")}
# with dropout alone: without it SCFAE is nowhere near the best where a modality is missing
NARROW_AND_RECEIVED = {
    "SCFAE, received, dropout": neck_options(recon_reads="received"),
    "SCFAE, width 1/4, dropout": neck_options(width=0.25),
    "SCFAE, width 1/4, received, dropout": neck_options(width=0.25, recon_reads="received")}


def add_table_arguments(parser: argparse.ArgumentParser, data_root: str, out: str, holds: str) -> None:
    """Arguments of every table command; ``holds`` says what the data folder has to hold."""
    parser.add_argument("--data-root", default=data_root, help=f"folder with {holds}")
    parser.add_argument("--out", default=out, help="results, one line of JSON per training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="trainings side by side, one thread each")
    parser.add_argument("--rows", nargs="+", action="extend", metavar="ROW",
                        help="only these rows, as the table names them")
    parser.add_argument("--retry-failed", action="store_true", help="run failed trainings again")
    parser.add_argument("--keep", action="store_true", help="keep each training's last weights in its folder")
    parser.add_argument("--render", action="store_true", help="print the table when all is done")
    parser.add_argument("--render-only", action="store_true", help="train nothing, print what is there")
    parser.add_argument("--list-rows", action="store_true",
                        help="train nothing, print each row's config, options and the seeds that are there")


def with_and_without_dropout(row: str, options: Mapping[str, Any], p: float) -> list[tuple[str, dict[str, Any]]]:
    """A row without modality dropout and one with it: (name, config options)."""
    return [(row, {**options, **neck_options(modality_dropout=0.0)}),
            (f"{row}, dropout", {**options, **neck_options(modality_dropout=p)})]


def fusion_rows(p: float, parameters: int) -> list[tuple[str, str, dict[str, Any]]]:
    """Seven fusions with plain and with normalised inputs, SCFAE in four forms, each without and with dropout p; and,
    with dropout, SCFAE that reconstructs from what it received alone, at a quarter of the width, and both.

    Args:
        p: share of samples that modality dropout strikes.
        parameters: of SCFAE's neck; a normalised MLP as large is one more row.

    Returns: (row, first word of the config's name, config options) of 37 rows.
    """
    rows = []
    for row, config in FUSED.items():
        variants = SCFAE if row == "SCFAE" else {
            row: {"model.neck.norm": None}, f"{row} + LN": {"model.neck.norm": "layer"}}
        if config == "mlp":
            variants["concat, large MLP + LN"] = {"model.neck.norm": "layer", "model.neck.match_params": parameters}
        for variant, options in variants.items():
            rows += [(label, config, more) for label, more in with_and_without_dropout(variant, options, p)]
    return rows + [(row, "scfae", {**SCFAE["SCFAE"], **options, **neck_options(modality_dropout=p)})
                   for row, options in NARROW_AND_RECEIVED.items()]


def listed(table: Sequence[Job], records: Sequence[Record]) -> str:
    """Markdown: each row's config, options and seeds among ``records``; a dash where none is there."""
    lines = []
    for job in {job.row: job for job in table}.values():
        settings = job.settings()
        seeds = sorted(r["seed"] for r in records if r["settings"] == settings)
        options = " ".join(f"{key}={value}" for key, value in job.overrides.items())
        lines.append([job.row, Path(job.config).name, options or "-", " ".join(map(str, seeds)) or "-"])
    return markdown_table(["row", "config", "options", "seeds"], lines)


def run_table_tool(
    args: argparse.Namespace,
    table: Sequence[Job],
    columns: Sequence[str],
    note: str,
    metric: str = "mIoU",
    scale: float = 1.0,
    derive: Callable[[Record], Record] | None = None,
    *,
    reads: str,
    more: Sequence[Column] = (),
    draw: Callable[[Sequence[Record]], str] | None = None,
    examine: Callable[[Any, Path], dict[str, Any]] | None = None,
) -> int:
    """Run what ``args`` asks for and print the table. Returns the exit code: 0, 1 (failures) or 2 (usage).

    Args:
        table: jobs of the whole table, in the order in which they are to run.
        note: printed below the table.
        metric, scale: see :func:`render`.
        derive: computes more columns from a record before it is rendered.
        reads: a file below ``--data-root``, without which nothing can be trained; what is there can be listed and
            printed without it.
        more: see :func:`render`.
        draw: records -> markdown, instead of :func:`render`.
        examine: what else is asked of each trained model, see :func:`train_and_evaluate`.
    """
    names = list(dict.fromkeys(job.row for job in table))
    unknown = sorted(set(args.rows or ()) - set(names))
    if unknown:
        print(f"--rows {unknown}: the table has {names}", file=sys.stderr)
        return 2
    table = [job for job in table if args.rows is None or job.row in args.rows]
    try:
        if args.list_rows:
            print(listed(table, read_results(args.out)))
            return 0
        failed = []
        if not args.render_only:
            if not (Path(args.data_root) / reads).is_file():
                print(f"no {reads} in --data-root {args.data_root}; see Data in README.md", file=sys.stderr)
                return 2
            run_job = functools.partial(train_and_evaluate, keep=args.keep, examine=examine)
            failed = run_table(
                table, args.out, run_job, workers=args.workers, retry_failed=args.retry_failed).failed
        if args.render or args.render_only:
            keys = {job.key() for job in table}
            records = [record for record in read_results(args.out) if record["key"] in keys]
            records = records if derive is None else [derive(r) for r in records]
            print(render(records, columns, names, metric, scale, more) if draw is None else draw(records))
            print(f"\n{note}\nBold: within one standard deviation of the column's best.")
        if failed:
            print(f"{len(failed)} trainings failed; see {Path(args.out).stem}.failures.jsonl beside {args.out}",
                  file=sys.stderr)
        return 1 if failed else 0
    except TableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
