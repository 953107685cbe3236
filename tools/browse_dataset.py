"""Draw what the model really gets: the pipeline's and preprocessor's output with the label; of either task.

    python tools/browse_dataset.py CONFIG --out DIR [--split train|val|test] [--number 8]
"""
from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope

from mmfusion_plugin.engine import launch

ROOMS = {"mmseg": "segmentation", "mmaction": "recognition"}  # by default_scope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config file")
    parser.add_argument("--out", required=True, help="folder for the pictures")
    parser.add_argument("--split", choices=["train", "val", "test"], default="train")
    parser.add_argument("--number", type=int, default=8, help="samples to draw (default: 8)")
    launch.add_common_arguments(parser)
    args = parser.parse_args()
    cfg = launch.load_config(args)
    if args.number < 1:
        raise launch.UsageError(f"--number {args.number}: at least 1")
    if cfg.get(f"{args.split}_dataloader") is None:
        raise launch.UsageError(f"--split {args.split}: the config has no {args.split}_dataloader")
    scope = cfg.get("default_scope", "mmseg")
    if scope not in ROOMS:
        raise launch.UsageError(f"the config's default_scope is {scope!r}, expected one of {sorted(ROOMS)}")
    init_default_scope(scope)
    draw_sample = importlib.import_module(f"mmfusion_plugin.{ROOMS[scope]}.visualize").draw_sample

    dataset = DATASETS.build(cfg[f"{args.split}_dataloader"].dataset)
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    for index in range(min(args.number, len(dataset))):
        data = preprocessor(pseudo_collate([dataset[index]]), training=args.split == "train")
        print(draw_sample(dataset, preprocessor, data, Path(args.out) / f"{args.split}_{index:03d}"))


if __name__ == "__main__":
    launch.run_tool(main)
