"""How fast fusion is, in ratios: interleaved in one process, medians and interquartile ranges, as a table and JSON.

    python tools/benchmarks/speed.py blocks                # every neck's block over its matrix products' floor
    python tools/benchmarks/speed.py scaling               # cost over batch, positions, number of modalities, and width
    python tools/benchmarks/speed.py models                # two-stream ResNet-18 models, each over plain concatenation
    python tools/benchmarks/speed.py precision             # bfloat16 over float32
    python tools/benchmarks/speed.py optimiser             # AdamW: fused, group by group, foreach and a loop
    python tools/benchmarks/speed.py profile               # where a training step's time goes
    python tools/benchmarks/speed.py startup               # from the command to the end of the first training step

What a floor is stands in speed_floor.py. A ratio is the median over rounds of two times of the same round: other work
on the machine moves it less than the milliseconds. Every part takes --threads, --rounds, --json and --device; on CUDA
the times are those of events, from the first call on the host to the last kernel. Multiply-adds are counted by
fusion_cost.py, a trained model's parts by model_cost.py, data pipelines by decode_throughput.py.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

STARTED = time.perf_counter()

import mmfusion_plugin  # noqa: E402  cures the installed wheels before anything of theirs is imported

# isort: split
import torch  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from speed_cases import BLOCKS, LIGHT, TASKS, BlockCase, ModelCase  # noqa: E402
from speed_floor import Floor, graphed, products, ratios, spread, timed  # noqa: E402
from speed_profile import by_kind, by_phase  # noqa: E402

from mmfusion_plugin.analysis.evidence import markdown_table  # noqa: E402
from mmfusion_plugin.engine import launch  # noqa: E402
from mmfusion_plugin.models.measuring import PeakMemory  # noqa: E402

MODALITIES = "abcdefgh"
VECTORS = ["1:512", "32:512", "256:512"]
MAPS = ["1x15x20:512", "1x30x40:256", "1x60x80:128", "1x120x160:64"]
PASSES = ("forward", "constant", "step")
Record = dict[str, object]


def shape_of(word: str) -> tuple[tuple[int, ...], int]:
    """``32:512`` -> ((32,), 512); ``1x60x80:128`` -> ((1, 60, 80), 128)."""
    try:
        grid, width = word.split(":")
        shape = tuple(int(part) for part in grid.split("x"))
        if len(shape) > 4 or min(*shape, int(width)) < 1:
            raise ValueError
        return shape, int(width)
    except ValueError:
        raise launch.UsageError(
            f"--shapes {word}: expected BATCH:WIDTH or BATCHxHxW:WIDTH such as 32:512 or 1x60x80:128") from None


def peak(call: Callable[[], object], compiled: bool) -> int | None:
    """Bytes that tensors made by ``call`` take at once; None where a compiler or a recording decides that."""
    if compiled:
        return None
    with PeakMemory() as memory:
        call()
    return memory.peak


def told(record: Record, times: Sequence[float], over: tuple[float, float] | None = None) -> Record:
    median, iqr = spread(times)
    found = dict(record, milliseconds=1000 * median, iqr_ms=1000 * iqr, rounds=len(times))
    return found if over is None else dict(found, ratio=over[0], ratio_iqr=over[1])


def run_of(case: BlockCase | ModelCase | Floor, which: str) -> Callable[[], object]:
    return case.step if which == "step" else case.forward


def new_run(kind: type[BlockCase | ModelCase], which: str, *given, **more) -> Callable[[], object]:
    """Pass ``which`` of a new case, of which the rest is all but the constant weights."""
    return run_of(kind(*given, constant=which == "constant", **more), which)


def blocks(args: argparse.Namespace) -> Iterator[Record]:
    """Each block beside its floor."""
    for word in args.shapes or [*VECTORS, *MAPS]:
        shape, width = shape_of(word)
        widths = dict.fromkeys(MODALITIES[: args.modalities], width)
        for threads in args.threads:
            torch.set_num_threads(threads)
            for name in args.rows or BLOCKS:
                for which in args.passes:
                    case = BlockCase(BLOCKS[name], widths, shape, args.device, constant=which == "constant")
                    # a prediction reconstructs nothing, so its floor does not either
                    found = products(case.block, case.run if which == "step" else case.forward)
                    floor = Floor(found, list(case.block.parameters()), dtype=torch.float32, device=args.device,
                                  step=which == "step") if found else None
                    if args.compiled:
                        case.block.compile()
                    calls = dict(block=run_of(case, which))
                    if floor is not None:
                        calls["floor"] = run_of(floor, which)
                    if args.graphs:
                        calls["block as a CUDA graph"] = graphed(calls["block"])
                        if floor is not None:
                            calls["floor"] = graphed(calls["floor"])
                    times = timed(calls, args.rounds, args.device, args.seconds)
                    row = f"{name}, compiled" if args.compiled else name
                    record = dict(part="blocks", row=row, shape=word, threads=threads, run=which,
                                  peak_bytes=peak(calls["block"], args.compiled))
                    if args.graphs:
                        over = ratios(times, "floor")["block as a CUDA graph"] if floor is not None else None
                        yield told(record | dict(row=f"{row}, CUDA graph"), times["block as a CUDA graph"], over)
                    if floor is None:
                        yield told(record, times["block"])
                        continue
                    record |= dict(floor_ms=1000 * spread(times["floor"])[0], floor_by=floor.ways)
                    yield told(record, times["block"], ratios(times, "floor")["block"])


def models(args: argparse.Namespace) -> Iterator[Record]:
    """Each row of a task over the first."""
    for task in args.tasks:
        rows = args.rows or list(TASKS[task])
        for batch in args.batch[task]:
            for threads in args.threads:
                torch.set_num_threads(threads)
                for which in args.passes:
                    calls = {f"{row}, CUDA graphs" if graphs else row: new_run(
                        ModelCase, which, task, row, batch, args.size[task], args.device, args.amp,
                        compiled=args.compiled, graphs=graphs)
                        for row in rows for graphs in ((False, True) if args.graphs else (False,))}
                    times = timed(calls, args.rounds, args.device, args.seconds)
                    over = ratios(times, rows[0])
                    for row in calls:
                        yield told(dict(part="models", task=task, row=row, batch=batch, threads=threads, run=which,
                                        amp=args.amp, compiled=args.compiled, base=rows[0],
                                        # a graph keeps its memory for good, out of a counter's sight
                                        peak_bytes=peak(calls[row], args.compiled or row not in rows)),
                                   times[row], over[row])


def fit(sizes: Sequence[float], times: Sequence[float]) -> tuple[float, float, float]:
    """(intercept, slope, largest deviation as a share of the fitted value) of least squares on relative errors."""
    weights = torch.tensor([1 / t for t in times], dtype=torch.float64)
    rows = torch.stack([weights, weights * torch.tensor(sizes, dtype=torch.float64)], 1)
    a, b = torch.linalg.lstsq(rows, torch.ones(len(times), 1, dtype=torch.float64)).solution.flatten().tolist()
    return a, b, max(abs(t / (a + b * n) - 1) for n, t in zip(sizes, times))


# axis: (sizes, what a size means: (modalities, width, shape)); widths enter squared, as multiply-adds do
SCALING: dict[str, tuple[list[int], Callable[[int], tuple[int, int, tuple[int, ...]]]]] = {
    "batch": ([64, 128, 256, 512], lambda n: (2, 256, (n,))),
    "positions": ([600, 1200, 2400, 4800], lambda n: (2, 64, (1, n // 60, 60))),
    "modalities": ([2, 3, 4, 5, 6, 7, 8], lambda n: (n, 256, (64,))),
    "width, squared": ([128, 256, 384, 512], lambda n: (2, n, (64,))),
}


def scaling(args: argparse.Namespace) -> Iterator[Record]:
    """Cost along each axis and the straight line through it."""
    for name in args.rows or ["SCFAE"]:
        for axis, (sizes, case_of) in SCALING.items():
            for threads in args.threads:
                torch.set_num_threads(threads)
                for which in args.passes:
                    calls = {}
                    for n in sizes:
                        M, width, shape = case_of(n)
                        widths = dict.fromkeys(MODALITIES[:M], width)
                        calls[str(n)] = new_run(BlockCase, which, BLOCKS[name], widths, shape, args.device)
                    times = timed(calls, args.rounds, args.device, args.seconds)
                    medians = [spread(times[str(n)])[0] for n in sizes]
                    squared = [n**2 if "squared" in axis else n for n in sizes]
                    a, b, off = fit(squared, medians)
                    yield dict(part="scaling", row=name, axis=axis, threads=threads, run=which, sizes=sizes,
                               milliseconds=[1000 * t for t in medians], intercept_ms=1000 * a, slope_ms=1000 * b,
                               largest_deviation=off)


def precision(args: argparse.Namespace) -> Iterator[Record]:
    """float32 over bfloat16 autocast: how many times faster."""
    for word in args.shapes or [*VECTORS, MAPS[0], MAPS[-1]]:
        shape, width = shape_of(word)
        for threads in args.threads:
            torch.set_num_threads(threads)
            for name in args.rows or ["SCFAE"]:
                for which in args.passes:
                    calls = {kind: new_run(BlockCase, which, BLOCKS[name], dict(a=width, b=width), shape, args.device,
                                           dtype)
                             for kind, dtype in (("bfloat16", torch.bfloat16), ("float32", None))}
                    times = timed(calls, args.rounds, args.device, args.seconds)
                    yield told(dict(part="precision", row=name, shape=word, threads=threads, run=which,
                                    float32_ms=1000 * spread(times["float32"])[0]),
                               times["bfloat16"], ratios(times, "bfloat16")["float32"])


def optimiser(args: argparse.Namespace) -> Iterator[Record]:
    """One step of AdamW on the block's parameters, over the fused one with one group."""
    for threads in args.threads:
        torch.set_num_threads(threads)
        for name in args.rows or ["SCFAE"]:
            calls = {}
            apart = "fused, a group for each parameter"  # as mmengine makes them; the guarded wrappers step them as one
            hows = {"fused": dict(fused=True), apart: dict(fused=True), "foreach": dict(foreach=True),
                    "loop": dict(foreach=False)}
            for kind, how in hows.items():
                case = BlockCase(BLOCKS[name], dict(a=512, b=512), (1,), args.device)
                parameters = list(case.block.parameters())
                for p in parameters:
                    p.grad = torch.full_like(p, 1e-6)
                groups = [dict(params=[p]) for p in parameters] if kind == apart else parameters
                calls[kind] = torch.optim.AdamW(groups, lr=1e-5, weight_decay=0.01, **how).step
            times = timed(calls, args.rounds, args.device, args.seconds)
            over = ratios(times, "fused")
            for kind in calls:
                yield told(dict(part="optimiser", row=f"{name}, {kind}", threads=threads), times[kind], over[kind])


def profile(args: argparse.Namespace) -> Iterator[Record]:
    """Shares of one training step: by phase (wall clock) and by kind of operator (torch.profiler)."""
    for task in args.tasks:
        for row in args.rows or list(TASKS[task])[1:2]:
            for batch in args.batch[task]:
                for threads in args.threads:
                    torch.set_num_threads(threads)
                    case = ModelCase(task, row, batch, args.size[task], args.device, args.amp)
                    for _ in range(2):
                        case.step()
                    yield dict(part="profile", task=task, row=row, batch=batch, threads=threads,
                               phases=by_phase(case, args.rounds), kinds=by_kind(case, args.rounds))


def startup(args: argparse.Namespace) -> Iterator[Record]:
    """Seconds of a fresh process, stage by stage; the median of --rounds processes, with the bytecode of the first."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads[0])}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    for task in args.tasks:
        row = (args.rows or list(TASKS[task])[1:2])[0]
        runs = []
        for _ in range(args.rounds):
            began = time.perf_counter()
            out = subprocess.run(
                [sys.executable, __file__, "startup", "--tasks", task, "--rows", row, "--first-step", "--size",
                 *map(str, args.size[task])],
                check=True, capture_output=True, text=True, env=environment)
            whole = time.perf_counter() - began
            stages = json.loads(out.stdout.strip().splitlines()[-1])
            # python itself and the modules of the standard library: before this file could look at a clock
            runs.append(dict(interpreter=max(0.0, whole - sum(stages.values())), **stages, whole=whole))
        yield dict(part="startup", task=task, row=row, threads=args.threads[0],
                   seconds={stage: spread([run[stage] for run in runs])[0] for stage in runs[0]},
                   iqr={stage: spread([run[stage] for run in runs])[1] for stage in runs[0]})


def first_step(args: argparse.Namespace) -> None:
    """What :func:`startup` runs in a fresh process."""
    imported = time.perf_counter()
    case = ModelCase(args.tasks[0], args.rows[0], 1, args.size[args.tasks[0]], args.device)
    built = time.perf_counter()
    case.step()
    print(json.dumps(dict(imports=imported - STARTED, building=built - imported,
                          first_step=time.perf_counter() - built)))


def number(value: float, unit: str = "") -> str:
    return f"{value:.3g}{unit}" if abs(value) < 100 else f"{value:.0f}{unit}"


def tables(records: Sequence[Record]) -> str:
    """Markdown of records that share a part."""
    part = records[0]["part"]
    if part in ("blocks", "models"):
        return _passes_table(records)
    if part == "scaling":
        return markdown_table(
            ["block", "axis", "threads", "pass", "sizes", "ms", "line, ms", "largest deviation"],
            [[r["row"], r["axis"], r["threads"], r["run"], ", ".join(map(str, r["sizes"])),
              ", ".join(map(number, r["milliseconds"])), f"{number(r['intercept_ms'])} + {number(r['slope_ms'])} n",
              f"{100 * r['largest_deviation']:.0f} %"] for r in records])
    if part == "precision":
        return markdown_table(
            ["block", "shape", "threads", "pass", "bfloat16, ms", "float32, ms", "times faster (IQR)"],
            [[r["row"], r["shape"], r["threads"], r["run"], number(r["milliseconds"]), number(r["float32_ms"]),
              f"{r['ratio']:.2f} ({r['ratio_iqr']:.2f})"] for r in records])
    if part == "optimiser":
        return markdown_table(
            ["AdamW", "threads", "ms", "over fused (IQR)"],
            [[r["row"], r["threads"], number(r["milliseconds"]), f"{r['ratio']:.2f} ({r['ratio_iqr']:.2f})"]
             for r in records])
    if part == "startup":
        stages = list(records[0]["seconds"])
        return markdown_table(["task", *(f"{stage}, s" for stage in stages)], [
            [r["task"], *(number(r["seconds"][stage]) for stage in stages)] for r in records])
    texts = []
    for r in records:
        heading = f"{r['task']}, {r['row']}, batch {r['batch']}, {r['threads']} thread(s)"
        for what in ("phases", "kinds"):
            whole = sum(r[what].values())
            texts.append(markdown_table([f"{heading}: {what}", "ms", "share"], [
                [name, number(1000 * s), f"{100 * s / whole:.1f} %"]
                for name, s in sorted(r[what].items(), key=lambda item: -item[1])]))
    return "\n\n".join(texts)


def _passes_table(records: Sequence[Record]) -> str:
    over = f"over {records[0]['base']}" if "base" in records[0] else "over floor"
    rows = []
    for r in records:
        ratio = f"{r['ratio']:.3f} ({r['ratio_iqr']:.3f})" if "ratio" in r else "no product"
        where = r["shape"] if "shape" in r else f"{r['task']}, batch {r['batch']}"
        rows.append([r["row"], where, r["threads"], r["run"], f"{number(r['milliseconds'])} ({number(r['iqr_ms'])})",
                     ratio, "" if r["peak_bytes"] is None else number(r["peak_bytes"] / 1e6)])
    return markdown_table(["", "shape", "threads", "pass", "ms (IQR)", f"{over} (IQR)", "peak, MB"], rows)


PARTS = dict(blocks=blocks, scaling=scaling, models=models, precision=precision, optimiser=optimiser, profile=profile,
             startup=startup)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rows", nargs="+", action="extend", metavar="NAME",
                        help=f"blocks ({', '.join(BLOCKS)}) or a task's models ("
                        + "; ".join(f"{task}: {', '.join(rows)}" for task, rows in TASKS.items()) + ")")
    parser.add_argument("--shapes", nargs="+", action="extend", metavar="BATCH[xHxW]:WIDTH",
                        help=f"of blocks (default: {' '.join([*VECTORS, *MAPS])})")
    parser.add_argument("--modalities", type=int, default=2, help="of blocks, 2 to 8 (default: 2)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--batch", type=int, nargs="+", action="extend",
                        help="of models (default: 1 of pictures, 8 of clips, of which UDML's BatchNorm needs several)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"),
                        help="of a model's images (default: 480 640 and 224 224)")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=["forward", "step"],
                        help="constant: forward while the weights stay as they are, as in validations and tests")
    parser.add_argument("--amp", action="store_true", help="models in bfloat16, by GuardedAmpOptimWrapper")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9, help="at least so many count (default: 9)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of rounds for each comparison (default: 2)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--graphs", action="store_true",
                        help="on CUDA, too: blocks as graphs, over their floor as a graph; models whose necks replay "
                        "graphs (cuda_graphs=True)")
    parser.add_argument("--compiled", action="store_true", help="blocks, or models' necks, by torch.compile")
    parser.add_argument("--tf32", action="store_true",
                        help="products and convolutions on CUDA in TF32; without it float32, but models' convolutions "
                        "in TF32 as torch has it")
    parser.add_argument("--json", metavar="FILE", help="write every number there")
    parser.add_argument("--first-step", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if min(args.rounds, *args.threads, *(args.batch or [1])) < 1 or not 2 <= args.modalities <= len(MODALITIES):
        raise launch.UsageError("--rounds, --threads and --batch must be at least 1, --modalities 2 to 8")
    if args.compiled and args.part not in ("blocks", "models"):
        raise launch.UsageError("--compiled is of blocks and models")
    if args.graphs and (args.part not in ("blocks", "models") or args.device.type != "cuda"):
        raise launch.UsageError("--graphs is of blocks and models with --device cuda")
    known = set(BLOCKS) if args.part in ("blocks", "scaling", "precision", "optimiser") else {
        row for task in args.tasks for row in TASKS[task]}
    if unknown := sorted(set(args.rows or ()) - known):
        raise launch.UsageError(f"--rows {unknown}: {args.part} knows {sorted(known)}")
    sizes = dict(segmentation=(480, 640)) | {"audio-visual": (224, 224)}
    batches = dict(segmentation=[1]) | {"audio-visual": [8]}
    args.batch = dict.fromkeys(TASKS, args.batch) if args.batch else batches
    args.size = dict.fromkeys(TASKS, tuple(args.size)) if args.size else sizes
    return args


def main(words: Sequence[str] | None = None) -> None:
    args = parse(words)
    MMLogger.get_instance("speed", log_level="ERROR")  # builders name every parameter that they treat differently
    if args.first_step:
        return first_step(args)
    if args.tf32 or args.part in ("blocks", "scaling", "precision"):
        # by default torch's convolutions alone would use it: a block and its floor must have one precision
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = args.tf32
    before, records = os.getloadavg()[0], []
    for record in PARTS[args.part](args):
        records.append(record)
        shown = {k: v for k, v in record.items() if isinstance(v, (str, int, float)) and k != "part"}
        print(*(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in shown.items()), file=sys.stderr)
    where = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else f"{platform.machine()} processor"
    facts = dict(command=" ".join(["speed.py", *(sys.argv[1:] if words is None else words)]), where=where,
                 cores=os.cpu_count(), torch=torch.__version__, plugin=mmfusion_plugin.__version__, light_width=LIGHT,
                 tf32=args.tf32, load=[before, os.getloadavg()[0]])
    print(f"\n{where}, {facts['cores']} cores, torch {facts['torch']}, load {before:.1f} before\n")
    print(tables(records))
    if args.json:
        Path(args.json).write_text(json.dumps(dict(**facts, records=records), indent=1) + "\n")


if __name__ == "__main__":
    launch.run_tool(main)
