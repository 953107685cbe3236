"""A checkpoint with every non-empty subset of its modalities."""
from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import nn

from mmfusion_plugin.fusion import SCFAE
from mmfusion_plugin.fusion.masking import MissingFill

from .conditions import Condition
from .evidence import COLOURS, as_share, choose_metric, figure_panels, markdown_table, save_figure

__all__ = [
    "fill_of", "left_out", "plot_subsets", "subset_conditions", "subsets_markdown", "summarise_subsets",
]

JOIN = " + "


def subset_conditions(modalities: Sequence[str], sizes: Sequence[int] | None = None) -> list[Condition]:
    """One condition per non-empty subset, the complete one first, then by falling size, in the order of the list.

    Args:
        sizes: of the subsets wanted beside the complete one; None: all.

    Raises: ValueError for a size outside 1..M.
    """
    M = len(modalities)
    wanted = set(range(1, M + 1)) if sizes is None else set(sizes) | {M}
    if not wanted <= set(range(1, M + 1)):
        raise ValueError(f"sizes {sorted(wanted)}: the model has {M} modalities ({', '.join(modalities)})")
    return [
        Condition(JOIN.join(kept), tuple(m for m in modalities if m not in kept))
        for size in sorted(wanted, reverse=True) for kept in combinations(modalities, size)]


def fill_of(model: nn.Module) -> str:
    """What stands in for a missing modality's features in this model, for reports."""
    fills = sorted({part.fill for part in model.modules() if isinstance(part, MissingFill)})
    neighbours = sorted({part.missing_neighbour for part in model.modules() if isinstance(part, SCFAE)})
    said = f"missing_fill={'/'.join(fills)}" if fills else "the neck fills nothing in"
    return said + (f", SCFAE's missing_neighbour={'/'.join(neighbours)}" if neighbours else "")


def summarise_subsets(
    outcomes: Mapping[str, Mapping[str, Any]], conditions: Sequence[Condition], modalities: Sequence[str],
    metric: str | None = None
) -> dict[str, Any]:
    """``rows`` (name, modalities, metrics, calibration_error, confusion, weights), ``metric`` shown, and means of
    every metric over all subsets (``mean``) and over the incomplete ones (``mean_incomplete``, None if there is none).
    """
    names = list(outcomes[conditions[0].name]["metrics"])
    shown = choose_metric(names, metric)
    rows = [
        dict(name=c.name, modalities=[m for m in modalities if m not in c.missing], **outcomes[c.name])
        for c in conditions]
    incomplete = [row for row in rows if len(row["modalities"]) < len(modalities)]

    def means(chosen: Sequence[Mapping]) -> dict[str, float] | None:
        return {n: statistics.fmean(row["metrics"][n] for row in chosen) for n in names} if chosen else None

    return dict(metric=shown, rows=rows, mean=means(rows), mean_incomplete=means(incomplete))


def left_out(samples: Mapping[str, int]) -> str:
    """A sentence for a report on the rows that had fewer samples than others; empty where none had."""
    most = max(samples.values())
    fewer = [f"{name} {number}" for name, number in samples.items() if number < most]
    return f" Samples that have nothing of a row's modalities are left out of it: {', '.join(fewer)} of {most}." \
        if fewer else ""


def subsets_markdown(record: Mapping[str, Any]) -> str:
    """The table, its means and what made it."""
    names = list(record["mean"])
    # a modality's own head, withheld its input, scores every class alike: its accuracy is that of the first class
    own = {f"acc/{m}_top1": m for m in record["rows"][0]["modalities"]}

    def cells(metrics: Mapping[str, float], error: float | None, there: Sequence[str]) -> list[str]:
        shares = [f"{100 * as_share(n, metrics[n]):.1f}" if own.get(n) in (None, *there) else "-" for n in names]
        return [*shares, "-" if error is None else f"{100 * error:.1f}"]

    rows = [[r["name"], *cells(r["metrics"], r["calibration_error"], r["modalities"])] for r in record["rows"]]
    rows.append(["mean of all", *cells(record["mean"], None, ())])
    if record["mean_incomplete"]:
        rows.append(["mean of the incomplete", *cells(record["mean_incomplete"], None, ())])
    head = [f"{n} (%)" for n in names]
    sizes = sorted({len(r["modalities"]) for r in record["rows"]})
    which = "Every subset of" if len(sizes) == sizes[-1] else f"Subsets of {' or '.join(map(str, sizes))}"
    return (
        f"{which} modalities, {record['rows'][0]['samples']} samples. Missing ones: {record['fill']}."
        f"{left_out({r['name']: r['samples'] for r in record['rows']})}\n\n"
        + markdown_table(["modalities", *head, "ECE, 15 bins (%)"], rows) + f"\n\n`{record['command']}`\n")


def plot_subsets(record: Mapping[str, Any], out: str | Path) -> Path:
    """One bar per subset, its value beside it, and the mean as a line."""
    metric, rows = record["metric"], record["rows"]
    values = [100 * as_share(metric, row["metrics"][metric]) for row in rows]
    figure, (axis,) = figure_panels(1, width=6.0, height=0.32 * len(rows) + 1.2)
    full = len(rows[0]["modalities"])
    colours = [COLOURS[min(full - len(row["modalities"]), len(COLOURS) - 1)] for row in rows]
    axis.barh(range(len(rows)), values, color=colours)
    for i, value in enumerate(values):
        axis.text(value + 1, i, f"{value:.1f}", va="center", fontsize=8, bbox=dict(  # over the mean's line
            boxstyle="square,pad=0.1", facecolor="white", edgecolor="none"))
    mean = 100 * as_share(metric, record["mean"][metric])
    axis.axvline(mean, color="black", linestyle=":", label=f"mean of all, {mean:.1f}")
    axis.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel=f"{metric} (%)", xlim=(0, max(100, max(values)) * 1.08))
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return save_figure(figure, out)
