"""Test a checkpoint with its config, of mmsegmentation or mmaction2, as their stock tools/test.py do.

    python tools/test.py CONFIG CHECKPOINT [--missing depth] [--tta] [--show-dir DIR]
"""
from __future__ import annotations

import argparse

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
from mmfusion_plugin.engine import launch


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file")
    launch.add_common_arguments(parser)
    launch.add_launcher_arguments(parser)
    launch.add_channels_last_argument(parser)
    parser.add_argument("--missing", nargs="+", action="extend", default=[], metavar="MODALITY",
                        help="withhold these modalities from every sample")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation, as the config defines it")
    parser.add_argument("--out", metavar="DIR", help="save predicted label maps (mmsegmentation)")
    parser.add_argument("--dump", metavar="FILE.pkl", help="save all predictions in one file")
    parser.add_argument("--show", action="store_true", help="show predictions in a window (mmsegmentation)")
    parser.add_argument("--show-dir", metavar="DIR", help="save drawn predictions (mmsegmentation)")
    parser.add_argument("--wait-time", type=float, default=2, help="seconds between two windows (default: 2)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    launch.existing(args.checkpoint, "checkpoint")
    cfg = launch.load_config(args)
    if args.channels_last:
        launch.use_channels_last(cfg)
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        launch.draw_predictions(cfg, args.show, args.show_dir, args.wait_time)
    if args.missing:
        launch.withhold(cfg, args.missing)
    if args.tta:
        launch.use_tta(cfg)
    if args.out:
        launch.save_label_maps(cfg, args.out)
    if args.dump:
        launch.dump_predictions(cfg, args.dump)
    runner = launch.build_runner(cfg)
    runner.register_hook(launch.FittingWeightsHook())
    if args.missing:
        launch.check_remaining(runner.test_loop.dataloader.dataset, args.missing)
        runner.logger.info(f"tested without: {', '.join(args.missing)} (--missing)")
    runner.test()


if __name__ == "__main__":
    launch.run_tool(main)
