"""Does a training survive what happens to trainings? Ten checks, one table; exit code 1 if one does not hold.

    python tools/benchmarks/trust.py                 # all, with reduced counts
    python tools/benchmarks/trust.py 1 3 --full      # two of them, with the full counts (see --help)
    python tools/benchmarks/trust.py 9 --inputs 500  # one count changed

 1 killed and resumed = unbroken, bit for bit      6 same seed, workers, one process against two
 2 killed while saving; full disk                  7 bfloat16 against float32; range of float16
 3 truncated and flipped checkpoints               8 hostile checkpoints and archives
 4 losses and inputs that are not finite           9 fuzzed files and lists
 5 broken samples; killed loaders and trainings    10 memory over many steps

Everything runs on small models and made-up data on the CPU, with the plugin's own data sets, models, necks and hooks.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import trust_fuzz
import trust_inputs
import trust_runs
from mmengine.logging import MMLogger
from trust_cases import Row


@dataclass
class Counts:
    """How much of everything: reduced, as continuous integration can afford."""

    kills: int = 2  # for each of 2 tasks x 2 loops x 2 numbers of workers
    saves: int = 6
    flips: int = 20
    patience: int = 3
    steps: int = 1000
    inputs: int = 50


FULL = Counts(kills=30, saves=100, flips=100, patience=20, steps=2000, inputs=10_000)
CHECKS = {
    1: lambda c, d: trust_runs.resumed_equals_unbroken(d, c.kills),
    2: lambda c, d: trust_runs.killed_while_saving(d, c.saves),
    3: lambda c, d: trust_inputs.damaged_checkpoints(d, c.flips),
    4: lambda c, d: trust_inputs.not_finite(c.patience),
    5: lambda c, d: trust_runs.broken_samples(d),
    6: lambda c, d: trust_runs.equal_runs(d),
    7: lambda c, d: trust_inputs.precisions(),
    8: lambda c, d: trust_inputs.hostile_files(d),
    9: lambda c, d: trust_fuzz.fuzzed_files(d, c.inputs),
    10: lambda c, d: trust_runs.memory(d, c.steps),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", type=int, metavar="N", help=f"of {min(CHECKS)} to {max(CHECKS)}; all")
    parser.add_argument("--full", action="store_true", help="the full counts")
    for field in fields(Counts):
        parser.add_argument(f"--{field.name}", type=int, metavar="N",
                            help=f"{field.default}, with --full {getattr(FULL, field.name)}")
    args = parser.parse_args()
    unknown = sorted(set(args.checks) - set(CHECKS))
    if unknown:
        parser.error(f"there is no check {unknown}; known are {list(CHECKS)}")
    return args


def run(numbers: list[int], counts: Counts, folder: Path) -> list[tuple[int, Row, float]]:
    """(number of the check, row, seconds since the last row), printed as they come."""
    rows = []
    print("| check | case | count | found | seconds | holds |\n|---|---|---|---|---|---|", flush=True)
    for number in numbers:
        begin = time.perf_counter()
        for row in CHECKS[number](counts, folder / str(number)):
            seconds = time.perf_counter() - begin
            rows.append((number, row, seconds))
            print(f"| {number} | {row.case} | {row.count} | {row.found} | {seconds:.1f} | "
                  f"{'yes' if row.holds else '**no**'} |", flush=True)
            begin = time.perf_counter()
    return rows


def main() -> None:
    args = parse_args()
    counts = Counts(**vars(FULL)) if args.full else Counts()
    for field in fields(Counts):
        if getattr(args, field.name) is not None:
            setattr(counts, field.name, getattr(args, field.name))
    warnings.simplefilter("ignore")
    MMLogger.get_instance("trust", log_level="ERROR")
    torch.set_num_threads(1)  # the same order of additions, and forks without threads
    with tempfile.TemporaryDirectory(prefix="trust_") as folder:
        rows = run(args.checks or list(CHECKS), counts, Path(folder))
    failed = sum(not row.holds for _, row, _ in rows)
    print(f"\n{len(rows) - failed} of {len(rows)} hold")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
