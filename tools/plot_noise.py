"""Plot what UDML makes of noise.

    python tools/plot_noise.py training WORK_DIR [--out training.png]
    python tools/plot_noise.py response CONFIG CHECKPOINT --modality nir [--type gaussian] [--levels 0 1 2] --out DIR

`training` draws weight, predicted noise and dependency of each modality over the steps of a run. `response` evaluates
a checkpoint on its test set at each level of noise on one modality, writes every sample's estimates as csv and a plot,
and prints how faithfully predicted noise follows the injected one. A type that training did not use needs its strength:
--cfg-options model.data_preprocessor.train_noise.noise.nir.scale.salt_and_pepper=0.02
"""
from __future__ import annotations

import argparse
from pathlib import Path

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
from mmengine.runner import Runner

from mmfusion_plugin.analysis import noise_response
from mmfusion_plugin.engine import launch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("training", help="over the steps of a training")
    training.add_argument("work_dir", help="folder of the training")
    training.add_argument("--out", help="picture (default: noise_training.png in the work dir)")
    response = commands.add_parser("response", help="over injected noise")
    response.add_argument("config", help="config file")
    response.add_argument("checkpoint", help="checkpoint file")
    response.add_argument("--modality", required=True, help="which modality gets the noise")
    response.add_argument("--type", default="gaussian", help="of corruption (default: gaussian)")
    response.add_argument("--levels", nargs="+", type=float, default=list(range(15)), help="default: 0 to 14")
    response.add_argument("--low", type=float, default=4, help="levels up to this one count as low (default: 4)")
    response.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    response.add_argument("--out", required=True, help="folder for the csv and the picture")
    launch.add_common_arguments(response)
    args = parser.parse_args()
    draw_training(args) if args.command == "training" else draw_response(args)


def draw_training(args: argparse.Namespace) -> None:
    try:
        curves = noise_response.training_curves(args.work_dir)
    except (FileNotFoundError, ValueError) as error:
        raise launch.UsageError(str(error)) from None
    out = noise_response.plot_training(curves, args.out or Path(args.work_dir) / "noise_training.png")
    for what, lines in curves.items():
        print(f"{what}: " + ", ".join(f"{m} {points[-1][1]:.3f}" for m, points in lines.items()) + " (last)")
    print(out)


def draw_response(args: argparse.Namespace) -> None:
    launch.existing(args.checkpoint, "checkpoint")
    cfg = launch.load_config(args)
    runner = launch.build_runner(cfg)
    launch.load_weights(runner.model, args.checkpoint)
    loader = Runner.build_dataloader(cfg.test_dataloader, seed=0)
    levels = [int(level) if level == int(level) else level for level in args.levels]
    try:
        rows = noise_response.respond(runner.model, loader, args.modality, args.type, levels, args.seed)
    except ValueError as error:
        raise launch.UsageError(str(error)) from None
    stem = Path(args.out) / f"{args.type}_{args.modality}"
    table = noise_response.write_csv(rows, f"{stem}.csv")
    found = noise_response.summarise(rows, args.modality, args.low)
    print(f"{args.type} on {args.modality}, {len(rows) // len(levels)} samples, seed {args.seed}")
    for level, mean in found["means"].items():
        print(f"  level {level:g}: predicted {mean:.2f}, weight {found['weights'][level]:.3f}")
    whole, low = ("-" if found[name] != found[name] else f"{found[name]:.3f}" for name in ("spearman", "spearman_low"))
    print(f"Spearman per sample: {whole} over all levels, {low} up to level {args.low:g}")
    print(f"level means rise strictly: {'yes' if found['rising'] else 'no'}")
    print(table, noise_response.plot_response(rows, args.modality, f"{stem}.png"), sep="\n")


if __name__ == "__main__":
    launch.run_tool(main)
