"""The table of fusion methods on the data sets that papers use: complete, and with one modality missing. For a GPU.

    python tools/benchmarks/official_table.py nyuv2 --data-root data/nyuv2 --workers 1 --render
    python tools/benchmarks/official_table.py crema-d --data-root data/crema_d --workers 1 --render
    python tools/benchmarks/official_table.py kinetics-sound --data-root data/kinetics400 --workers 1 --render

The configs' own encoders and schedules (two ResNet-18; 40k iterations on NYU Depth v2, 100 epochs on the clips), each
modality alone, and the fusions without and with modality dropout: 18 rows on pictures, 37 on clips, x 3 seeds.
--rows takes a choice of them. Resumable. Every row is the model after the last iteration: nothing is picked on the
test part. So far CREMA-D's rows alone have been trained, at toy length: no copy of the data was at hand. Nothing that
others have published stands beside these rows: no two share encoders' weights, splits and schedules. The papers' own
tables: udml_table.py.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfusion_plugin.analysis import (
    Job,
    add_table_arguments,
    fusion_rows,
    neck_options,
    run_table_tool,
    single_modality,
    with_and_without_dropout,
)

CONFIGS = Path(__file__).parents[2] / "configs"
DROPOUT = 0.3
SCFAE_PARAMETERS = 25_718_268  # of the clips' neck, 512 + 512 to 512
PYRAMID = [64, 128, 256, 512]
Row = tuple[str, str, dict[str, Any]]  # its name, first word of its config, config options


def fusions_of_pictures() -> list[Row]:
    """Concatenation's config with another neck, where a fusion has none of its own."""
    forms: dict[str, tuple[str, dict[str, Any]]] = {
        "sum": ("concat", neck_options(type="SumFusion", norm=None)), "concat": ("concat", neck_options(norm=None)),
        "concat + LN": ("concat", {}), "concat, MLP + LN": ("mlp", {}),
        "gated": ("concat", neck_options(type="GatedFusion", norm=None)),
        "cross-attention": ("cross-attention", neck_options(norm=None)),
        "SCFAE literal": ("scfae", neck_options(norm=None, width=None)), "SCFAE": ("scfae", {})}
    return [(label, word, more) for row, (word, options) in forms.items()
            for label, more in with_and_without_dropout(row, options, DROPOUT)]


def fusions_of_clips() -> list[Row]:
    """As on the small sets; SCFAE, a quarter wide in its configs, is as wide as the row says."""
    return [(row, word, {**neck_options(width=None), **options} if word == "scfae" else options)
            for row, word, options in fusion_rows(DROPOUT, SCFAE_PARAMETERS)]


@dataclass(frozen=True)
class Task:
    """One data set: its configs, its modalities with their encoders' widths, what is measured."""

    data_root: str
    holds: str
    configs: str  # {} is the fusion
    widths: Mapping[str, Any]
    metric: str
    scale: float
    note: str


CLIPS = dict(widths=dict(visual=512, audio=512), metric="acc/fused_top1", scale=100)
TASKS = {
    "nyuv2": Task(
        "data/nyuv2", "train.txt", "segmentation/{}_r18-segformer_nyuv2-480x640.py", dict(rgb=PYRAMID, depth=PYRAMID),
        "mIoU", 1, "mIoU (%) on the 654 test frames, one scale, no flips; encoders from scratch"),
    "crema-d": Task(
        "data/crema_d", "usual_train.txt", "recognition/{}_r18_crema-d.py", **CLIPS,
        note="Accuracy (%) on the 744 test clips of the usual split, whose actors are in the training part, too"),
    "kinetics-sound": Task(
        "data/kinetics400", "ks31_train.txt", "recognition/{}_r18_kinetics-sound.py", **CLIPS,
        note="Accuracy (%) on the validation clips of Kinetics-Sound, 31 classes"),
}


def jobs(name: str, data_root: str, seeds: Sequence[int]) -> list[Job]:
    """Jobs of the whole table, row by row within a seed: an interrupted run holds whole seeds first."""
    task = TASKS[name]
    paths = {f"{part}_dataloader.dataset.data_root": data_root for part in ("train", "val", "test")}
    fused = fusions_of_pictures() if task.metric == "mIoU" else fusions_of_clips()
    evaluations = {"complete": [], **{f"without {m}": [m] for m in task.widths}}
    rows = [((f"{m} only", "concat", single_modality(m, C)), {"complete": []}) for m, C in task.widths.items()]
    rows += [(row, evaluations) for row in fused]
    return [
        Job(row, str(CONFIGS / task.configs.format(word)), seed, options, paths, asked, channels_last=True)
        for seed in seeds for (row, word, options), asked in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=list(TASKS))
    # the data set decides two defaults
    name = next((word for word in sys.argv[1:] if word in TASKS), next(iter(TASKS)))
    task = TASKS[name]
    add_table_arguments(parser, task.data_root, f"results/{name.replace('-', '_')}.jsonl", task.holds)
    args = parser.parse_args()
    table = jobs(name, args.data_root, args.seeds)
    return run_table_tool(
        args, table, list(table[-1].evaluations), f"{task.note}; after the last iteration, mean ± sd over seeds.",
        task.metric, task.scale, reads=task.holds)


if __name__ == "__main__":
    sys.exit(main())
