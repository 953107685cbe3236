"""What SCFAE's light form costs and what it brings: multiply-adds against mIoU over width, rank and stages, on CWFID.

    python tools/benchmarks/light_form_curve.py --data-root data/cwfid --render

SCFAE's default with modality dropout at widths of 1/16, 1/8, 9/32 (the default), 1/2 and the encoders' own; at the
default's width with an expansion of 1/2, whose two parts have a quarter of its rank; and at 1/16 on the two finer or
the two coarser of the four stages; beside plain concatenation with the same dropout: 9 rows x 3 seeds, of which
cwfid_table.py runs two, into the same results file. Resumable. About three minutes of one core a training, more for the
widest. --render prints the table and draws light_form_cwfid.png beside the results.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cwfid_table
import fusion_cost
import torch

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmfusion_plugin.analysis import Column, Job, add_table_arguments, render_columns, run_table_tool, spread
from mmfusion_plugin.analysis.evidence import figure_panels, save_figure

Record = Mapping[str, Any]
WIDTHS = (0.0625, 0.125, 0.28125, 0.5, 1.0)
DEFAULT = 0.28125
CONCAT, SCFAE = "concat, dropout", "SCFAE, dropout"
NARROW = dict(width=0.0625)
OTHERS: dict[str, dict[str, Any]] = {  # of the default's width: (row, the neck's further options)
    "SCFAE, expansion 1/2, dropout": dict(expansion=0.5),
    "SCFAE, width 1/16 on the finer two stages, dropout": dict(level_options=[NARROW, NARROW, {}, {}]),
    "SCFAE, width 1/16 on the coarser two stages, dropout": dict(level_options=[{}, {}, NARROW, NARROW]),
}
MARKS = dict(zip(OTHERS, "^v<"))
SIZE = (480, 640)
TICKS = (1, 2, 5, 10, 20, 50, 100)


def row_of(width: float) -> str:
    return SCFAE if width == DEFAULT else f"SCFAE, width {width:g}, dropout"


def jobs(data_root: str, seeds: Sequence[int]) -> list[Job]:
    """Row by row within a seed; the two rows that are cwfid_table.py's have its settings and its names."""
    known = {job.row: job for job in cwfid_table.jobs(data_root, [0], None, False, True)}
    rows = [known[CONCAT], known[SCFAE]]
    rows += [replace(known[SCFAE], row=row_of(width), overrides={**known[SCFAE].overrides, "model.neck.width": width})
             for width in WIDTHS if width != DEFAULT]
    rows += [replace(known[SCFAE], row=row, overrides={
        **known[SCFAE].overrides, **{f"model.neck.{key}": value for key, value in options.items()}})
        for row, options in OTHERS.items()]
    return [replace(job, seed=seed) for seed in seeds for job in rows]


def costs() -> dict[str, float]:
    """Each row's multiply-adds as a share of the encoders', on maps of 480x640."""
    cfg = Config.fromfile(cwfid_table.CONFIGS / "scfae_r18-segformer_cwfid.py")
    init_default_scope(cfg.default_scope)
    backbone = MODELS.build(cfg.model.backbone).eval()
    image = torch.zeros(1, sum(backbone.in_channels.values()), *SIZE)
    encoders = fusion_cost.multiply_adds(lambda: backbone(image))
    with torch.no_grad():
        feats = backbone(image)
    shared = {key: cfg.model.neck[key] for key in ("modalities", "in_channels", "out_channels")}
    necks = {CONCAT: dict(type="ConcatFusion"), **{row_of(w): dict(type="SCFAE", width=w) for w in WIDTHS},
             **{row: dict(type="SCFAE", width=DEFAULT, **options) for row, options in OTHERS.items()}}
    return {row: fusion_cost.neck_cost({**neck, **shared}, feats)[0] / encoders for row, neck in necks.items()}


def draw(records: Sequence[Record], out: Path) -> str:
    """The table; the curves as a picture."""
    shares = costs()
    columns = [Column("multiply-adds, % of the encoders'", lambda r: 100 * shares[r["row"]], best=False)]
    columns += [Column(name, lambda r, name=name: r["metrics"][name]["mIoU"]) for name in cwfid_table.EVALUATIONS]
    figure, axes = figure_panels(len(cwfid_table.EVALUATIONS))
    for axis, column in zip(axes, columns[1:]):
        found = {row: spread([column.value(r) for r in records if r["row"] == row]) for row in shares}
        found = {row: value for row, value in found.items() if value is not None}
        widths = [width for width in WIDTHS if row_of(width) in found]
        rows = [row_of(width) for width in widths]
        axis.errorbar([100 * shares[row] for row in rows], [found[row][0] for row in rows],
                      [found[row][1] for row in rows], marker="o", capsize=3, label="SCFAE by width")
        for row, mark in {CONCAT: "s", **MARKS}.items():
            if row in found:
                label = row.removesuffix(", dropout").removeprefix("SCFAE, ")
                axis.errorbar([100 * shares[row]], [found[row][0]], [found[row][1]], marker=mark, capsize=3,
                              linestyle="", label=label)
        axis.set_xscale("log")
        axis.set_xticks(TICKS, labels=map(str, TICKS))
        axis.minorticks_off()
        for row, width in zip(rows, widths):
            axis.annotate(str(Fraction(width)), (100 * shares[row], found[row][0]), (4, 4), textcoords="offset points",
                          fontsize=8)
        axis.set(title=column.name, xlabel="multiply-adds, % of the encoders'", ylabel="mIoU, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    return f"{render_columns(records, columns, list(shares))}\n\n{save_figure(figure, out)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_table_arguments(parser, "data/cwfid", "results/cwfid.jsonl", "red/, nir/, label/, train.txt and val.txt")
    args = parser.parse_args()
    return run_table_tool(
        args, jobs(args.data_root, args.seeds), list(cwfid_table.EVALUATIONS),
        "mIoU on the validation pictures after the last iteration, mean ± sd over seeds.",
        draw=lambda records: draw(records, Path(args.out).with_name("light_form_cwfid.png")), reads="train.txt")


if __name__ == "__main__":
    sys.exit(main())
