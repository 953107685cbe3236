"""Draw predicted label maps beside inputs and labels: the worst frames, or with --spread from the worst to the best.

    python tools/show_predictions.py CONFIG CHECKPOINT --out DIR [--number 8] [--spread] [--missing depth]
"""
from __future__ import annotations

import argparse
from pathlib import Path

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
from rich.progress import track

from mmfusion_plugin.engine import launch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--out", required=True, help="folder for the pictures")
    parser.add_argument("--number", type=int, default=8, help="frames to draw (default: 8)")
    parser.add_argument("--spread", action="store_true", help="evenly from the worst to the best frame")
    parser.add_argument("--missing", nargs="+", action="extend", default=[], metavar="MODALITY",
                        help="withhold these modalities from every sample")
    launch.add_common_arguments(parser)
    args = parser.parse_args()
    if args.number < 1:
        raise launch.UsageError(f"--number {args.number}: at least 1")
    launch.existing(args.checkpoint, "checkpoint")
    cfg = launch.load_config(args)
    if cfg.get("default_scope") == "mmaction":
        raise launch.UsageError("this draws label maps, which a config of mmaction2 has none of; use tools/test.py "
                                "--dump FILE.pkl for predictions, tools/browse_dataset.py for what the model gets")
    if args.missing:
        launch.withhold(cfg, args.missing)

    from mmseg.registry import DATASETS

    from mmfusion_plugin.segmentation.inference import init_model
    from mmfusion_plugin.segmentation.predictions import LabelError, draw, pick

    model = init_model(cfg, args.checkpoint)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    try:
        shown = pick(model, dataset, args.number, args.spread, lambda frames: track(list(frames), "frames"))
    except LabelError as error:
        raise launch.UsageError(str(error)) from error
    name, title = ("spread", f"{len(shown)} of {len(dataset)} frames, from the worst to the best") if args.spread \
        else ("worst_first", f"the {len(shown)} worst of {len(dataset)} frames")
    if args.missing:
        name += f"_without_{'_'.join(args.missing)}"
        title += f", without {', '.join(args.missing)}"
    print(f"\n{draw(dataset, shown, Path(args.out) / f'{name}.png', title)}")


if __name__ == "__main__":
    launch.run_tool(main)
