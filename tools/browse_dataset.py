"""Draw what the model really gets: the pipeline's and preprocessor's output beside the label.

    python tools/browse_dataset.py CONFIG --out DIR [--split train|val|test] [--number 8]
"""
from __future__ import annotations

import argparse
from pathlib import Path

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS

from mmfusion_plugin.engine import launch


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
    if f"{args.split}_dataloader" not in cfg:
        raise launch.UsageError(f"--split {args.split}: the config has no {args.split}_dataloader")
    init_default_scope(cfg.get("default_scope", "mmseg"))

    from mmfusion_plugin.segmentation.visualize import draw_grid, label_panel, sensor_panels

    dataset = DATASETS.build(cfg[f"{args.split}_dataloader"].dataset)
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    classes, palette = dataset.metainfo["classes"], dataset.metainfo["palette"]
    for index in range(min(args.number, len(dataset))):
        data = preprocessor(pseudo_collate([dataset[index]]), training=args.split == "train")
        sample = data["data_samples"][0]
        label = sample.gt_sem_seg.data[0].cpu().numpy()
        row = [*sensor_panels(preprocessor, data["inputs"][0], sample.metainfo["available"]),
               label_panel(label, palette, "label")]
        name = Path(sample.metainfo["seg_map_path"]).stem
        path = draw_grid([row], [sample.metainfo["img_path"]], Path(args.out) / f"{args.split}_{name}.png",
                         classes, palette, sorted(set(label.ravel().tolist())))
        print(path)


if __name__ == "__main__":
    launch.run_tool(main)
