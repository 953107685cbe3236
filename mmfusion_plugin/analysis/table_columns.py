"""Tables whose columns are numbers of different kinds: a mean and a spread over seeds for each."""
from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .evidence import markdown_table

__all__ = ["Column", "render", "render_columns", "spread"]

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column: what it reads from a training's record.

    Args:
        name: heading, with the unit.
        value: record -> number, or None where the row has none.
        digits: after the point.
        signed: show a plus.
        best: larger is better, so that the best rows are bold; False where neither end is better.
        spread: show the standard deviation over seeds beside the mean.
    """

    name: str
    value: Callable[[Record], float | None]
    digits: int = 1
    signed: bool = False
    best: bool = True
    spread: bool = True


def spread(values: Sequence[float]) -> tuple[float, float] | None:
    """(mean, sample standard deviation or NaN for one value), None for none."""
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def render_columns(records: Sequence[Record], columns: Sequence[Column], rows: Sequence[str]) -> str:
    """Markdown: a row for each of ``rows`` that has records, mean ± sample standard deviation over seeds.

    Bold: within one standard deviation (the larger of the two rows') of the column's best mean. The last columns state
    how many seeds, and the parameters of the model and of its neck.

    Raises: ValueError if a row mixes results of different settings, or holds a seed twice.
    """
    grouped: dict[str, list[Record]] = {row: [] for row in rows}
    for record in records:
        if record["row"] in grouped:
            grouped[record["row"]].append(record)
    for row, members in grouped.items():
        settings, seeds = {r["settings"] for r in members}, [r["seed"] for r in members]
        if len(settings) > 1:
            raise ValueError(f"row {row!r} mixes results of {len(settings)} settings {sorted(settings)}; give one")
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"row {row!r} holds a seed twice: {sorted(seeds)}")
    grouped = {row: members for row, members in grouped.items() if members}
    cells = {
        (row, c.name): spread([v for v in (c.value(r) for r in members) if v is not None])
        for row, members in grouped.items() for c in columns}
    small = max((r["parameters"] for members in grouped.values() for r in members), default=0) < 1e6
    lines = []
    for row, members in grouped.items():
        size = [members[0][key] / (1e3 if small else 1e6) for key in ("parameters", "neck_parameters")]
        shown = [_cell(cells[row, c.name], [cells[r, c.name] for r in grouped], c) for c in columns]
        parameters = f"{size[0]:.0f} ({size[1]:.0f})" if small else f"{size[0]:.2f} ({size[1]:.2f})"
        lines.append([row, *shown, len(members), parameters])
    unit = "thousands" if small else "M"
    return markdown_table(["", *(c.name for c in columns), "n", f"parameters (neck), {unit}"], lines)


def render(
    records: Sequence[Record], columns: Sequence[str], rows: Sequence[str] | None = None, metric: str = "mIoU",
    scale: float = 1.0, more: Sequence[Column] = (),
) -> str:
    """:func:`render_columns` of one metric of the evaluations named by ``columns``, and the seconds of a run.

    Args:
        columns: names of evaluations; a dash where a row has none of that name.
        rows: order of the rows; None takes the order of the records.
        scale: factor of what is shown: 100 for shares to be printed in percent.
        more: columns after those.

    Raises: as :func:`render_columns`.
    """

    def reader(name: str) -> Callable[[Record], float | None]:
        return lambda r: scale * r["metrics"][name][metric] if name in r["metrics"] else None

    seconds = Column("s per run", lambda r: r["train_seconds"] + r["evaluation_seconds"], 0, best=False, spread=False)
    order = list(dict.fromkeys(r["row"] for r in records)) if rows is None else rows
    return render_columns(records, [*(Column(name, reader(name)) for name in columns), *more, seconds], order)


def _cell(own: tuple[float, float] | None, all_rows: Sequence[tuple[float, float] | None], column: Column) -> str:
    if own is None:
        return "-"
    mean, sd = own
    text = f"{mean:{'+' if column.signed else ''}.{column.digits}f}"
    text += "" if math.isnan(sd) or not column.spread else f" ± {sd:.{column.digits}f}"
    if not column.best:
        return text
    best = max(entry for entry in all_rows if entry is not None)
    margin = max((s for s in (sd, best[1]) if not math.isnan(s)), default=0.0)
    return f"**{text}**" if mean >= best[0] - margin else text
