"""SCFAE's tables 6 to 11, 13 and 14 on data at hand, one command each.

    python tools/benchmarks/scfae_tables.py 6 handwritten6 --data-root data/handwritten6 --render
    python tools/benchmarks/scfae_tables.py 10 cmu-mosi --data-root data/cmu_mosi --render
    python tools/benchmarks/scfae_tables.py all digit-clips --data-root data/digit_clips --render
    python tools/benchmarks/scfae_tables.py 8 cwfid --data-root data/cwfid --render
    python tools/benchmarks/scfae_tables.py 13 --render

    6   encoder damage: a linear probe on each jointly trained encoder minus the encoder trained alone
    7   gradients at the encoders: the task's against each auxiliary loss's, and the order of the ring
    8   reconstruction, exchange and expansion left out or replaced
    9   cosine or MSE as the reconstruction's metric
    10  expansion n and boundary ratio b
    11  weight lambda of the reconstruction
    13  parameters, latency and memory, two ResNet-18 and 512/512 (times this machine; no training)
    14  the shared or the specific branch of Z zeroed

Rows are trainings; a training that several tables show is run once, and all that any table asks is asked of it while it
is there. So the results file is the data set's (results/scfae_DATA.jsonl), and a table is a choice of rows and columns.
Every row has the same encoders, schedule and modality dropout and is the model after the last epoch. Resumable: kill
it and run the same command again. On pictures, CREMA-D and Kinetics-Sound SCFAE is the light form of the configs, its
literal row the full width; on pictures probes are 1x1 convolutions. nyuv2-half, nyuv2, crema-d and kinetics-sound want
a GPU; so far nyuv2-half alone has been trained, at toy length. The paper's own data (FakeAVCeleb, ActivityNet,
CMU-MOSEI) are other ones, so none of its figures stands beside these.
"""
from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
from features_table import TASKS as FEATURES

from mmfusion_plugin.analysis import (
    Column,
    Job,
    add_table_arguments,
    neck_options,
    render_columns,
    run_table_tool,
    single_modality,
)
from mmfusion_plugin.analysis.examination import examine

CONFIGS = Path(__file__).parents[2] / "configs"
METRIC = "acc/fused_top1"


@dataclass(frozen=True)
class Task:
    """One data set: its configs, its modalities with their encoders' widths, and what is withheld in evaluation."""

    data_root: str
    holds: str
    configs: str  # {} is the fusion
    widths: Mapping[str, int | Sequence[int]]
    withheld: Mapping[str, Sequence[str]]
    shown: Sequence[str]  # which of them a table shows beside the complete set
    dropout: float
    channels_last: bool = False
    light: bool = False  # whether its config runs SCFAE at less than the encoders' width
    single: str | None = None  # config of one modality for all, None: one for each
    interval: int = 50  # steps between two analyses of the gradients, which change no training
    metric: str = METRIC
    scale: float = 100.0

    @property
    def dense(self) -> bool:
        return self.metric == "mIoU"

    @property
    def evaluations(self) -> dict[str, list[str]]:
        modalities = list(self.widths)
        alone = {f"{m} alone": [k for k in modalities if k != m] for m in modalities}
        return {"complete": [], **self.withheld, **alone}

    def value(self, record: Mapping[str, Any], column: str) -> float:
        return self.scale * record["metrics"][column][self.metric]


PYRAMID = [64, 128, 256, 512]
RGBD = dict(widths=dict(rgb=PYRAMID, depth=PYRAMID), withheld={}, shown=[], dropout=0.3, channels_last=True,
            light=True, metric="mIoU", scale=1.0)
CLIPS = dict(widths=dict(visual=512, audio=512), withheld={}, shown=[], dropout=0.3, channels_last=True, light=True)
TASKS = {
    "handwritten6": Task(
        "data/handwritten6", FEATURES["handwritten6"].holds, "recognition/{}_handwritten6.py",
        dict(pix=96, fou=48, fac=96, zer=32, kar=48, mor=16), FEATURES["handwritten6"].more,
        ["without pix, fac, kar"], 0.5, single="single"),
    "cmu-mosi": Task(
        "data/cmu_mosi", FEATURES["cmu-mosi"].holds, "recognition/{}_cmu-mosi.py",
        dict(text=64, audio=32, video=48), {"without text": ["text"]}, ["without text"], 0.5,
        single="single"),
    "digit-clips": Task(
        "data/digit_clips", "train.txt", "recognition/{}_small_digit-clips.py", dict(visual=64, audio=64), {}, [], 0.3,
        channels_last=True),
    "cwfid": Task(
        "data/cwfid", "train.txt", "segmentation/{}_r18-segformer_cwfid.py", interval=20,
        **{**RGBD, "widths": dict(red=PYRAMID, nir=PYRAMID)}),
    "nyuv2-half": Task(
        "data/nyuv2_half", "train.txt", "segmentation/{}_r18-segformer_nyuv2-half.py", single="concat", **RGBD),
    "nyuv2": Task(
        "data/nyuv2", "train.txt", "segmentation/{}_r18-segformer_nyuv2-480x640.py", single="concat", interval=1000,
        **RGBD),
    "crema-d": Task(
        "data/crema_d", "usual_train.txt", "recognition/{}_r18_crema-d.py", single="concat", interval=500, **CLIPS),
    "kinetics-sound": Task(
        "data/kinetics400", "ks31_train.txt", "recognition/{}_r18_kinetics-sound.py", single="concat", interval=1000,
        **CLIPS),
}


def instead(auxiliary: str) -> dict[str, Any]:
    return neck_options(type="SCFAEAuxiliary", auxiliary=auxiliary, recon_weight=0.0)


N, B = (1, 2, 4), (0.25, 0.5, 0.75)
LAMBDAS = (0.1, 0.5, 2.0, 5.0)
COUPLED: dict[str, tuple[str, dict[str, Any]]] = {
    "concat + LN": ("concat", neck_options(norm="layer")), "concat, MLP + LN": ("mlp", neck_options(norm="layer")),
    "cross-attention + LN": ("cross-attention", neck_options(norm="layer"))}
REPLACED: dict[str, tuple[str, dict[str, Any]]] = {
    "SCFAE, without reconstruction": ("scfae", neck_options(recon_weight=0.0)),
    "SCFAE, contrastive instead": ("scfae", instead("contrastive")),
    "SCFAE, mutual information instead": ("scfae", instead("mutual_information")),
    "SCFAE, orthogonality instead": ("scfae", instead("orthogonality"))}
LITERAL = neck_options(norm=None, residual=False, head_reads="post")
SHIPPED: dict[str, tuple[str, dict[str, Any]]] = {"SCFAE": ("scfae", {})}
WITHOUT_EXCHANGE = {"SCFAE, without exchange": ("scfae", neck_options(exchange=False))}
MSE = {"SCFAE, MSE": ("scfae", neck_options(recon_metric="mse"))}
GRID = {
    f"SCFAE, n={n}, b={b}": ("scfae", neck_options(expansion=n, shared_ratio=b))
    for n in N for b in B if (n, b) != (2, 0.5)}
WEIGHTS = {f"SCFAE, lambda={value:g}": ("scfae", neck_options(recon_weight=value)) for value in LAMBDAS}
NO_EXPANSION = "SCFAE, n=1, b=0.5"


def other_ring(task: Task) -> dict[str, tuple[str, dict[str, Any]]]:
    """Three modalities have two rings; two have one, and six more than a table holds: one more is shown."""
    names = list(task.widths)
    if len(names) < 3:
        return {}
    first, *others = names
    return {"SCFAE, ring reversed": ("scfae", neck_options(modalities=[first, *reversed(others)]))}


def other_forms(task: Task) -> dict[str, tuple[str, dict[str, Any]]]:
    """The configs of clips and features let the head read the encoders' outputs, those of pictures do not."""
    row, head_reads = ("head reads inputs, too", "post_and_input") if task.dense else ("head reads Z alone", "post")
    literal = {**LITERAL, **neck_options(width=None)} if task.light else LITERAL
    return {f"SCFAE, {row}": ("scfae", neck_options(head_reads=head_reads)), "SCFAE literal": ("scfae", literal)}


def rows_of(table: str, task: Task) -> dict[str, tuple[str, dict[str, Any]]]:
    """Rows of a table: (first word of the config's name, options)."""
    return {
        "6": {**COUPLED, **SHIPPED, **REPLACED, **other_forms(task)},
        "7": {**COUPLED, **SHIPPED, **other_ring(task), **REPLACED, **other_forms(task)},
        "8": {"concat + LN": COUPLED["concat + LN"], **REPLACED, **WITHOUT_EXCHANGE,
              NO_EXPANSION: GRID[NO_EXPANSION], **SHIPPED},
        "9": {**MSE, **SHIPPED},
        "10": {**GRID, **SHIPPED},
        "11": {**WEIGHTS, **SHIPPED},
        "14": {**SHIPPED, **other_forms(task)}}[table]


TABLES = ("6", "7", "8", "9", "10", "11", "14")


def references(task: Task) -> dict[str, tuple[str, dict[str, Any]]]:
    """Each modality trained alone; in a config of all, the other encoders run idle beside it."""
    if task.single is None:
        return {f"{m} alone": (m, {}) for m in task.widths}

    def alone(m: str, C: int | Sequence[int]) -> dict[str, Any]:
        if task.single == "single":
            return neck_options(modality=m, in_channels=C)  # projected to the width that the head reads
        return single_modality(m, C)

    return {f"{m} alone": (task.single, alone(m, C)) for m, C in task.widths.items()}


def jobs(table: str, name: str, data_root: str, seeds: Sequence[int], interval: int | None = None) -> list[Job]:
    """Jobs of a table, or of ``all``; row by row within a seed: an interrupted run holds whole seeds first.

    Args:
        interval: steps between two analyses of the gradients; None: the task's.
    """
    task = TASKS[name]
    interval = task.interval if interval is None else interval
    chosen = TABLES if table == "all" else (table,)
    rows = {row: how for one in chosen for row, how in rows_of(one, task).items()}
    watched = {"custom_hooks": [dict(type="GradientAnalysisHook", interval=interval)]}
    dropped = neck_options(modality_dropout=task.dropout)
    found = [(row, config, {**dropped, **options, **watched}, task.evaluations)
             for row, (config, options) in rows.items()]
    if "6" in chosen:
        found += [(row, config, options, {"complete": []}) for row, (config, options) in references(task).items()]
    paths = {f"{part}_dataloader.dataset.data_root": data_root for part in ("train", "val", "test")}
    return [
        Job(row, str(CONFIGS / task.configs.format(config)), seed, options, paths, evaluations, task.channels_last)
        for seed in seeds for row, config, options, evaluations in found]


# --- columns -------------------------------------------------------------------------------------


def score(task: Task, column: str) -> Column:
    return Column(column, lambda r: task.value(r, column) if column in r["metrics"] else None)


def alone(task: Task) -> list[Column]:
    names = [f"{m} alone" for m in task.widths]
    if len(names) <= 3:
        return [score(task, name) for name in names]
    return [Column("one alone", lambda r: statistics.fmean(task.value(r, name) for name in names))]


def gradient(what: str, heading: str, digits: int, factor: float = 1.0) -> Column:
    """Mean over modalities; of the pairs with auxiliary losses, those of the fusion."""

    def value(record: Mapping[str, Any]) -> float | None:
        values = [v for key, v in record["gradients"].get(what, {}).items()
                  if "/" not in key or key.split("/")[1] in AUXILIARY]
        return factor * statistics.fmean(values) if values else None

    return Column(heading, value, digits, best=False)


AUXILIARY = ("recon", "contrastive", "mutual_information", "orthogonality")


def damage(m: str, references: Mapping[tuple[str, int], float]) -> Callable[[Mapping[str, Any]], float | None]:
    def value(record: Mapping[str, Any]) -> float | None:
        reference = references.get((m, record["seed"]))
        return None if reference is None else 100 * (record["probes"][m] - reference)

    return value


def branch(kind: str, subset: str, heading: str) -> Column:
    return Column(heading, lambda r: 100 * r["branches"][kind][subset] if kind in r["branches"] else None, best=False)


def columns_of(table: str, task: Task, records: Sequence[Mapping[str, Any]]) -> list[Column]:
    names = list(task.widths)
    scores = [score(task, "complete"), *(score(task, name) for name in task.shown), *alone(task)]
    if table == "6":
        found = {(m, r["seed"]): r["probes"][m] for r in records for m in names if r["row"] == f"{m} alone"}
        each = {m: damage(m, found) for m in names}

        def mean(record: Mapping[str, Any]) -> float | None:
            values = [each[m](record) for m in names]
            return None if None in values else statistics.fmean(values)

        return [*(Column(m, each[m], signed=True) for m in names), Column("mean", mean, signed=True)]
    if table == "7":
        return [*scores[: 1 + len(task.shown)], gradient("norm", "task gradient, norm", 4),
                gradient("ratio", "auxiliary gradient, share of it (%)", 1, 100),
                gradient("cosine", "cosine", 3), gradient("negative", "negative (%)", 0, 100)]
    if table == "14":
        subsets = {" + ".join(names): "all", **({m: m for m in names} if len(names) <= 3 else {})}
        return [branch(kind, subset, f"{'both' if kind == 'full' else kind}: {shown}")
                for subset, shown in subsets.items() for kind in ("full", "shared", "specific")]
    return scores


NOTES = {
    "6": "{metric} of a linear probe on the frozen encoder minus that of the encoder trained alone with the same seed, "
         "in points. Trained alone (%): {alone}.",
    "7": "Means over {analyses} analyses of a training and over the encoders' outputs (the share: the median); the "
         "auxiliary gradient is that of the row's own fusion loss, as weighted. A dash: the row has none.",
    "14": "{metric} (%) with one branch of Z zeroed in evaluation. Where the head also reads the encoders' outputs "
          "({reads}), no masking touches those; the other rows' heads read Z alone.",
}


def note_of(table: str, task: Task, records: Sequence[Mapping[str, Any]]) -> str:
    def mean(m: str) -> str:
        values = [100 * r["probes"][m] for r in records if r["row"] == f"{m} alone"]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{m} {statistics.fmean(values):.1f}{spread}" if values else f"{m} -"

    analyses = sorted({n for r in records for n in r["gradients"].get("analyses", {}).values()})
    text = NOTES.get(table, "{metric} (%) on the test part.")
    return text.format(
        alone=", ".join(map(mean, task.widths)), analyses="/".join(map(str, analyses)),
        metric="mIoU" if task.dense else "Accuracy",
        reads="SCFAE, head reads inputs, too" if task.dense else "SCFAE")


def draw(tables: Sequence[str], name: str, records: Sequence[Mapping[str, Any]]) -> str:
    task, parts = TASKS[name], []
    for table in tables:
        rows = list(rows_of(table, task))
        shown = render_columns(records, columns_of(table, task, records), rows)
        parts.append(f"Table {table}, {name}\n\n{shown}\n\n{note_of(table, task, records)}")
    return "\n\n".join(parts)


# --- table 13 ------------------------------------------------------------------------------------


def costs(out: str, repeats: int, render: bool) -> int:
    from scfae_costs import cost_rows, costs_markdown

    record = cost_rows(repeats)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(json.dumps(record) + "\n")
    if render:
        print(costs_markdown(record))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=[*TABLES, "13", "all"])
    parser.add_argument("data", nargs="?", choices=list(TASKS), default=next(iter(TASKS)))
    # the data set decides two defaults
    name = next((word for word in sys.argv[1:] if word in TASKS), next(iter(TASKS)))
    task = TASKS[name]
    add_table_arguments(parser, task.data_root, None, task.holds)
    parser.add_argument("--repeats", type=int, default=20, help="of table 13: passes that are timed (default: 20)")
    args = parser.parse_args()
    if args.table == "13":
        if args.repeats < 1:
            print(f"--repeats {args.repeats}: at least 1", file=sys.stderr)
            return 2
        return costs(args.out or "results/scfae_costs.json", args.repeats, args.render or args.render_only)
    args.out = args.out or f"results/scfae_{name.replace('-', '_')}.jsonl"
    tables = TABLES if args.table == "all" else (args.table,)
    return run_table_tool(
        args, jobs(args.table, name, args.data_root, args.seeds), [],
        "Mean ± sd over seeds, the model after the last epoch.", task.metric, task.scale,
        draw=lambda records: draw(tables, name, records), examine=examine, reads=task.holds)


if __name__ == "__main__":
    sys.exit(main())
