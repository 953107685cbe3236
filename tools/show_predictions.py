"""Draw predictions beside inputs and labels, the worst frames first.

    python tools/show_predictions.py CONFIG CHECKPOINT --out DIR [--number 8] [--missing depth]
"""
from __future__ import annotations

import argparse
from pathlib import Path

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.utils import track_iter_progress
from mmseg.registry import DATASETS

from mmfusion_plugin.engine import launch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--out", required=True, help="folder for the pictures")
    parser.add_argument("--number", type=int, default=8, help="frames to draw (default: 8)")
    parser.add_argument("--missing", nargs="+", default=[], metavar="MODALITY",
                        help="withhold these modalities from every sample")
    launch.add_common_arguments(parser)
    args = parser.parse_args()
    launch.existing(args.checkpoint, "checkpoint")
    cfg = launch.load_config(args)
    if args.missing:
        launch.withhold(cfg, args.missing)

    from mmfusion_plugin.segmentation.inference import init_model

    model = init_model(cfg, args.checkpoint)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    scores = []
    for index in track_iter_progress(list(range(len(dataset)))):
        label, prediction, _, _ = predict(model, dataset[index])
        scores.append(mean_iou(label, prediction, len(dataset.metainfo["classes"])))
    worst = np.argsort(scores, kind="stable")[: args.number]
    path = draw(model, dataset, worst, scores, Path(args.out), args.missing)
    print(f"\n{path}")


def predict(model: torch.nn.Module, item: dict) -> tuple[np.ndarray, np.ndarray, torch.Tensor, dict]:
    """(label, prediction, stacked model input, metainfo) of one item; label at the input's size."""
    data = model.data_preprocessor(pseudo_collate([item]), training=False)
    with torch.no_grad():
        sample = model(data["inputs"], data["data_samples"], mode="predict")[0]
    return (sample.gt_sem_seg.data[0].cpu().numpy(), sample.pred_sem_seg.data[0].cpu().numpy(),
            data["inputs"][0], sample.metainfo)


def mean_iou(label: np.ndarray, prediction: np.ndarray, classes: int) -> float:
    """Mean IoU over the classes in this frame's label or prediction."""
    counts = label != 255
    pair = label[counts].astype(np.int64) * classes + prediction[counts]
    matrix = np.bincount(pair, minlength=classes**2).reshape(classes, classes)
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return float((np.diag(matrix)[union > 0] / union[union > 0]).mean()) if counts.any() else 1.0


def draw(model, dataset, indices, scores, out: Path, missing: list[str]) -> Path:
    """One PNG with a row per frame."""
    from mmfusion_plugin.segmentation.visualize import draw_grid, error_panel, label_panel, sensor_panels

    palette, classes = dataset.metainfo["palette"], dataset.metainfo["classes"]
    rows, names, present = [], [], set()
    for index in indices:
        label, prediction, stacked, meta = predict(model, dataset[int(index)])
        rows.append([*sensor_panels(model.data_preprocessor, stacked, meta["available"]),
                     label_panel(label, palette, "label"),
                     label_panel(prediction, palette, f"prediction (mIoU {100 * scores[index]:.1f})"),
                     error_panel(label, prediction)])
        names.append(Path(meta["img_path"]).name)
        present |= set(np.unique(label).tolist()) | set(np.unique(prediction).tolist())
    suffix = f"_without_{'_'.join(missing)}" if missing else ""
    title = f"the {len(rows)} worst of {len(dataset)} frames" + (f", without {', '.join(missing)}" if missing else "")
    return draw_grid(rows, names, out / f"worst_first{suffix}.png", classes, palette, sorted(present), title)


if __name__ == "__main__":
    launch.run_tool(main)
