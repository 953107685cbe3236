"""Train the model of a config, of mmsegmentation or mmaction2, as their stock tools/train.py do.

    python tools/train.py CONFIG [--work-dir DIR] [--resume [CHECKPOINT]] [--amp]
"""
from __future__ import annotations

import argparse
from pathlib import Path

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
from mmengine.runner import Runner, find_latest_checkpoint

from mmfusion_plugin.engine import launch


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config file")
    launch.add_common_arguments(parser)
    launch.add_launcher_arguments(parser)
    launch.add_channels_last_argument(parser)
    parser.add_argument("--resume", nargs="?", const="auto", metavar="CHECKPOINT",
                        help="go on from this checkpoint, or without a name from the work folder's latest")
    parser.add_argument("--amp", action="store_true",
                        help="automatic mixed precision: float16 on a GPU; bfloat16 on a CPU, where optim_wrapper.type "
                             "is GuardedOptimWrapper")
    return parser.parse_args()


def report(runner: Runner) -> None:
    """Say where everything is, in the log's last lines."""
    best = runner.message_hub.runtime_info.get("best_ckpt")
    checkpoints = {"checkpoint": find_latest_checkpoint(runner.work_dir), "best checkpoint": best}
    for name, path in checkpoints.items():
        if path:
            runner.logger.info(f"{name}: {path}")
    runner.logger.info(f"log: {Path(runner.log_dir, f'{runner.timestamp}.log')}")


def main() -> None:
    args = parse_args()
    cfg = launch.load_config(args)
    launch.check_optimizer(cfg)
    if args.channels_last:
        launch.use_channels_last(cfg)
    if args.amp:
        launch.use_amp(cfg)
    cfg.resume = args.resume is not None
    if cfg.resume:
        # With a load_from of its own, a config would resume from that file instead of the latest.
        cfg.load_from = None if args.resume == "auto" else launch.existing(args.resume, "checkpoint")
    runner = launch.build_runner(cfg)
    runner.train()
    report(runner)


if __name__ == "__main__":
    launch.run_tool(main)
