"""What every piece of evidence shares: where it lies, what made it, how it is written and coloured."""
from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "COLOURS", "EvidenceError", "as_share", "choose_metric", "figure_panels", "markdown_table", "provenance",
    "publish", "read_evidence", "read_record", "replace_file", "save_figure", "write_evidence",
]

FOLDER = "evidence"  # below the work dir: what tools/report.py looks for
# Okabe and Ito's palette, told apart with every common colour blindness; yellow is left out: too pale for lines
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# mmsegmentation's IoUMetric reports these in percent, mmaction2's AccMetric shares
PERCENT = ("mIoU", "aAcc", "mAcc", "mDice", "mFscore", "mPrecision", "mRecall")
PREFERRED = ("mIoU", "acc/fused_top1", "acc/top1")


class EvidenceError(ValueError):
    """A file of an evaluation is damaged or belongs to another one. The message names the file."""


def choose_metric(names: Sequence[str], asked: str | None = None) -> str:
    """The metric that tables and curves show: ``asked``, or the first of mIoU, acc/fused_top1, acc/top1, any.

    Raises: ValueError if the evaluator does not report ``asked``, or reports nothing.
    """
    if not names:
        raise ValueError("test_evaluator reports no metric")
    if asked is None:
        return next((name for name in PREFERRED if name in names), names[0])
    if asked not in names:
        raise ValueError(f"metric {asked!r}: test_evaluator reports {sorted(names)}")
    return asked


def as_share(name: str, value: float) -> float:
    """A metric as a share of 1, whichever library reported it."""
    return value / 100 if name.split("/")[-1] in PERCENT else value


def provenance(config: str, checkpoint: str, cfg: Mapping[str, Any], key: str) -> dict[str, Any]:
    """What made a piece of evidence: config, checkpoint, the training's seed, the exact command."""
    return dict(
        config=str(config), checkpoint=str(checkpoint), seed=(cfg.get("randomness") or {}).get("seed"),
        command=shlex.join(["python", *sys.argv]), key=key)


def write_evidence(folder: str | Path, name: str, record: Mapping[str, Any], markdown: str) -> list[Path]:
    """``name``.json and ``name``.md in ``folder``, each replaced as a whole. Returns both paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {".json": json.dumps(record, indent=1), ".md": markdown.rstrip() + "\n"}
    return [replace_file(folder / f"{name}{suffix}", text) for suffix, text in texts.items()]


def replace_file(path: Path, text: str) -> Path:
    """Write whole or not at all: a killed tool leaves what was there. Returns ``path``."""
    partial = path.with_suffix(f"{path.suffix}.partial")
    partial.write_text(text)
    os.replace(partial, path)
    return path


def publish(
    folder: str | Path, name: str, record: Mapping[str, Any], markdown: Callable[[Mapping[str, Any]], str],
    plot: Callable[[Mapping[str, Any], Path], Path] | None = None
) -> None:
    """How every evidence command ends: the text on the screen, then the paths of its json, markdown and picture.

    ``name``.partial, what the evaluation could have gone on from, is removed when the record is there.
    """
    text = markdown(record)
    print(text)
    paths = write_evidence(folder, name, record, text)
    Path(folder, f"{name}.partial").unlink(missing_ok=True)
    if plot is not None:
        paths.append(plot(record, Path(folder) / f"{name}.png"))
    print(*paths, sep="\n")


def read_evidence(folder: str | Path, name: str, key: str | None = None) -> dict[str, Any] | None:
    """``name``.json of ``folder``; None where there is none, or where it is of another ``key``.

    Raises: EvidenceError for a file that is no record.
    """
    path = Path(folder) / f"{name}.json"
    record = read_record(path) if path.is_file() else None
    if record is not None and "command" not in record:
        raise EvidenceError(f"{path} is no record of one of the commands; remove it and run its command again")
    return record if record is None or key is None or record.get("key") == key else None


def read_record(path: str | Path) -> dict[str, Any]:
    """A JSON object that one of the commands wrote.

    Raises: EvidenceError for any other content; OSError for an absent file.
    """
    try:
        record = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise EvidenceError(f"{path} is no JSON ({error}); remove it and run its command again") from error
    if not isinstance(record, dict):
        raise EvidenceError(f"{path} holds {type(record).__name__}, expected a JSON object as this library writes; "
                            "remove it and run its command again")
    return record


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A markdown table; numbers as they come, text as it is."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def figure_panels(number: int, columns: int = 3, width: float = 4.2, height: float = 3.4):
    """(figure, list of ``number`` axes) in rows of ``columns``; no pyplot, so nothing global and no display."""
    from cycler import cycler
    from matplotlib.figure import Figure

    columns = min(columns, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes[number:]:
        axis.remove()
    for axis in axes[:number]:
        axis.set_prop_cycle(cycler(color=COLOURS))
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[:number]


def save_figure(figure, out: str | Path) -> Path:
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
    return out
