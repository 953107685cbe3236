"""The table of fusion methods on NYU Depth v2 at half size, from scratch at full length: made for one GPU.

    python tools/benchmarks/nyuv2_half_table.py --data-root data/nyuv2_half --workers 3 --render
    python tools/benchmarks/nyuv2_half_table.py --data-root data/nyuv2_half --encoders r18 --render

Five necks x three encoders (two ResNet-18, two ResNet-50, two MiT-B2) x 3 seeds = 45 trainings of 200 epochs at
batch 8 in bfloat16; --workers of them share the GPU. Every row trains with the same noise (from half of training on),
the same auxiliary heads and the same modality dropout, and differs in the neck alone. Resumable by training: a killed
run goes on with the first training that has no result. The model after the last iteration; the validation frames are a
part of the official training part, so no published figure stands beside these. Not run at full length yet.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
from mmengine.config import Config

from mmfusion_plugin.analysis import Job, add_table_arguments, run_table_tool

CONFIGS = Path(__file__).parents[2] / "configs"
FRAMES, LEVELS, DROPOUT = 600, (5, 11), 0.3
MODALITIES = ["rgb", "depth"]
# (config, widths of the levels, SCFAE's width: the widest within 15 % of the encoders' multiply-adds, learning rate)
ENCODERS: dict[str, tuple[str, list[int], float, float]] = {
    "r18": ("concat_r18-segformer_nyuv2-half.py", [64, 128, 256, 512], 0.28125, 5e-4),
    "r50": ("concat_r50-segformer_nyuv2-half.py", [256, 512, 1024, 2048], 0.0625, 5e-4),
    "mitb2": ("concat_mitb2-segformer_nyuv2-half.py", [64, 128, 320, 512], 0.375, 2e-4)}


def necks(widths: Sequence[int], width: float) -> dict[str, dict[str, Any]]:
    """{row: config of the neck}."""
    common = dict(modalities=MODALITIES, in_channels=dict.fromkeys(MODALITIES, list(widths)))
    fused = dict(out_channels=list(widths), modality_dropout=DROPOUT)
    scfae = dict(type="SCFAE", width=width, norm="layer", **fused)
    udml = dict(type="UDML", preset="default", weights_from=0.6, **common)
    return {
        "concat": dict(type="ConcatFusion", norm=None, **common, **fused),
        "concat, MLP + LN": dict(type="MLPFusion", norm="layer", **common, **fused),
        "SCFAE": dict(**scfae, **common),
        "UDML": dict(**udml, inner=dict(type="ConcatFusion", norm=None, **fused)),
        "UDML(SCFAE)": dict(**udml, inner=scfae)}


def shared() -> Any:
    """Noise, heads and hook of the UDML configs: every row gets them."""
    return Config.fromfile(CONFIGS / "_base_" / "models" / "udml_rgbd_r18.py")


def schedule(epochs: int, batch: int, rate: float, precision: str, loaders: int) -> dict[str, Any]:
    iters = max(1, epochs * FRAMES // batch)
    warm_up = max(1, iters // 20)
    wrapper = ({"optim_wrapper.type": "GuardedAmpOptimWrapper", "optim_wrapper.dtype": "bfloat16"}
               if precision == "bf16" else {"optim_wrapper.type": "GuardedOptimWrapper"})
    return {
        "train_cfg.max_iters": iters, "train_cfg.val_interval": iters, "optim_wrapper.optimizer.lr": rate,
        "param_scheduler.0.end": warm_up, "param_scheduler.1.begin": warm_up, "param_scheduler.1.end": iters,
        "train_dataloader.batch_size": batch, "train_dataloader.num_workers": loaders,
        "train_dataloader.persistent_workers": loaders > 0, **wrapper}


def evaluations(noise: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"complete": [], "without rgb": ["rgb"], "without depth": ["depth"]}
    for m, sensor in noise.items():
        options = {key: value for key, value in sensor.items() if key != "levels"}
        for level in LEVELS:
            found[f"{m} {level}"] = dict(noise={m: dict(type="gaussian", level=level, **options)})
    return found


def jobs(
    data_root: str, seeds: Sequence[int], encoders: Sequence[str] = tuple(ENCODERS), epochs: int = 200, batch: int = 8,
    precision: str = "bf16", loaders: int = 4
) -> list[Job]:
    """Jobs of the whole table, row by row within a seed: an interrupted run holds whole seeds first."""
    paths = {f"{part}_dataloader.dataset.data_root": data_root for part in ("train", "val", "test")}
    base, found = shared(), []
    noise = base.model.data_preprocessor.train_noise.to_dict()
    for seed in seeds:
        for encoder in encoders:
            config, widths, width, rate = ENCODERS[encoder]
            heads = {m: {**head.to_dict(), "in_channels": widths} for m, head in base.model.modality_heads.items()}
            common = {
                **schedule(epochs, batch, rate, precision, loaders), "model.data_preprocessor.train_noise": noise,
                "model.modality_heads": heads, "custom_hooks": [dict(hook) for hook in base.custom_hooks]}
            for row, neck in necks(widths, width).items():
                options = {**common, "model.neck": dict(neck, _delete_=True)}
                found.append(Job(f"{row}, {encoder}", str(CONFIGS / "segmentation" / config), seed, options, paths,
                                 evaluations(noise["noise"]), channels_last=encoder != "mitb2"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_table_arguments(parser, "data/nyuv2_half", "results/nyuv2_half.jsonl",
                        "RGB/, Depth/, Label/, train.txt and val.txt")
    parser.add_argument("--encoders", nargs="+", choices=list(ENCODERS), default=list(ENCODERS))
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--loaders", type=int, default=4, help="loader processes of each training (default: 4)")
    args = parser.parse_args()
    if args.epochs < 1 or args.batch < 1 or args.loaders < 0:
        print("--epochs and --batch: 1 or more; --loaders: 0 or more", file=sys.stderr)
        return 2
    table = jobs(args.data_root, args.seeds, args.encoders, args.epochs, args.batch, args.precision, args.loaders)
    return run_table_tool(
        args, table, list(table[0].evaluations),
        "mIoU (%) on the 195 validation frames after the last iteration, mean ± sd over seeds. Beside a sensor: "
        "the level of Gaussian noise on it, 10 grey levels or 0.2 m each. "
        f"{args.epochs} epochs, {args.precision}.", reads="train.txt")


if __name__ == "__main__":
    sys.exit(main())
