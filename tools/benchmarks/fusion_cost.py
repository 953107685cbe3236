"""What fusion adds to a two-stream network: multiply-adds and parameters of encoders and necks.

    python tools/benchmarks/fusion_cost.py [--config CONFIG] [--size 480 640]

Counted by torch's FlopCounterMode on one real forward pass in evaluation mode (convolutions, matrix
products, attention; two flops are one multiply-add; normalisation, activations and resizing count
nothing). The readout to the head's width is part of a neck. The last line names the widest light form
of SCFAE that adds at most 15 % to the encoders.
"""
from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import mmfusion_plugin  # noqa: F401  registers the encoders and necks

CONFIG = Path(__file__).parents[2] / "configs" / "segmentation" / "scfae_r18-segformer_nyuv2-480x640.py"
LIMIT = 0.15
# multiples of 1/32 keep the light widths of 64..512 channels at whole, even numbers
RATIOS = [n / 32 for n in range(16, 0, -1)]
NECKS: dict[str, dict[str, Any]] = {
    "SCFAE literal": dict(type="SCFAE", norm=None),
    "SCFAE light, 1/2": dict(type="SCFAE", width=0.5),
    "SCFAE light, 1/4": dict(type="SCFAE", width=0.25),
    "SCFAE light, 1/8": dict(type="SCFAE", width=0.125),
    "SCFAE light, 1/16": dict(type="SCFAE", width=0.0625),
    "sum": dict(type="SumFusion"),
    "concat": dict(type="ConcatFusion"),
    "concat, MLP + LN": dict(type="MLPFusion", norm="layer"),
    "gated": dict(type="GatedFusion"),
    "FiLM": dict(type="FiLMFusion"),
    "cross-attention": dict(type="CrossAttentionFusion"),
}


def multiply_adds(forward: Callable[[], Any]) -> float:
    """Multiply-adds of one call, in units of 1e9."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops() / 2e9


def parameters(module: nn.Module) -> float:
    """Parameters in units of 1e6."""
    return sum(p.numel() for p in module.parameters()) / 1e6


def neck_cost(cfg: Mapping[str, Any], feats: Mapping[str, tuple[Tensor, ...]]) -> tuple[float, float]:
    """(multiply-adds, parameters) of a neck on the encoders' pyramid; on the meta device."""
    neck = MODELS.build(dict(cfg)).to("meta").eval()
    levels = {m: tuple(x.to("meta") for x in level) for m, level in feats.items()}
    return multiply_adds(lambda: neck(levels)), parameters(neck)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(CONFIG), help="two-stream segmentation config")
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="mmseg")  # deprecations that concern no one here
    cfg = Config.fromfile(args.config)
    init_default_scope(cfg.default_scope)
    backbone = MODELS.build(cfg.model.backbone).eval()
    image = torch.zeros(1, sum(backbone.in_channels.values()), *args.size)
    # real tensors: the encoders' own shapes, whatever they are
    encoders = multiply_adds(lambda: backbone(image))
    with torch.no_grad():
        feats = backbone(image)
    shared = {key: cfg.model.neck[key] for key in ("modalities", "in_channels", "out_channels")}

    print(f"{Path(args.config).name}, {args.size[0]}x{args.size[1]}\n")
    print("| | multiply-adds, 1e9 | share of the encoders' | parameters, 1e6 |\n|---|---|---|---|")
    print(f"| encoders | {encoders:.2f} | 100 % | {parameters(backbone):.2f} |")
    for name, options in NECKS.items():
        macs, size = neck_cost({**options, **shared}, feats)
        print(f"| {name} | {macs:.2f} | {100 * macs / encoders:.1f} % | {size:.2f} |")
    for ratio in RATIOS:
        macs, size = neck_cost({"type": "SCFAE", "width": ratio, **shared}, feats)
        if macs <= LIMIT * encoders:
            print(f"\nWidest light SCFAE within {LIMIT:.0%} (in steps of 1/32): width={ratio:g}, {macs:.2f}, "
                  f"{100 * macs / encoders:.1f} %, {size:.2f}")
            break


if __name__ == "__main__":
    main()
