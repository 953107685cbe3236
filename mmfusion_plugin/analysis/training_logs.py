"""What mmengine's runner logged of a training, as series."""
from __future__ import annotations

import json
from pathlib import Path

__all__ = ["Series", "find_logs", "read_logs"]

Series = dict[str, list[tuple[int, float]]]


def find_logs(work_dir: str | Path) -> list[Path]:
    """``scalars.json`` of a run and of what it resumed from, oldest first: their folders are named by time."""
    return sorted(Path(work_dir).glob("*/vis_data/scalars.json"))


def read_logs(work_dir: str | Path) -> Series:
    """{name: [(step, value)]} of every number logged in a work dir; {} without logs.

    A step that was trained again after resuming counts as it was then. A log that begins where, or before, those before
    it did is of another training: they are left out. A last line without its end (a killed run) is
    left out.

    Raises: ValueError naming file and line where another line is no record of a step.
    """
    found: dict[str, dict[int, float]] = {}
    for log in find_logs(work_dir):
        new: dict[str, dict[int, float]] = {}
        for step, scalars in _records(log):
            for name, value in scalars.items():
                if isinstance(value, (int, float)) and name not in ("step", "iter", "epoch"):
                    new.setdefault(name, {})[step] = float(value)
        shared = found.keys() & new.keys()
        if shared and all(min(new[name]) <= min(found[name]) for name in shared):
            found = {}
        for name, points in new.items():
            found.setdefault(name, {}).update(points)
    return {name: sorted(points.items()) for name, points in found.items()}


def _records(log: Path) -> list[tuple[int, dict]]:
    *lines, unfinished = log.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate([*lines, unfinished], start=1):
        try:
            scalars = json.loads(line)
            if "step" in scalars:  # else the environment or the like
                records.append((int(scalars["step"]), dict(scalars)))
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            if number <= len(lines):
                raise ValueError(f"{log}, line {number} is no record of a step ({error}); remove that line") from error
    return records
