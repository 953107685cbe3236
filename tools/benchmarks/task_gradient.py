"""How much of the task's gradient reaches the encoders through SCFAE at initialisation, relative to concatenation.

    python tools/benchmarks/task_gradient.py

Two modalities of rectified normal features, a linear readout to the same width, a linear classifier of ten classes,
cross entropy. Shown is the norm of the gradient at the encoders' outputs over that through ConcatFusion.
"""
from __future__ import annotations

import argparse
import statistics
import sys

import torch
import torch.nn.functional as F

from mmfusion_plugin.fusion import SCFAE, ConcatFusion, FusionBlock

FORMS = {
    "SCFAE literal": dict(norm=None), "SCFAE, LayerNorm": dict(), "SCFAE, LayerNorm, residual": dict(residual=True),
    "SCFAE, LayerNorm, residual, inputs beside Z": dict(residual=True, head_reads="post_and_input")}


def gradient_norm(fusion: FusionBlock, feats: dict[str, torch.Tensor], head: torch.nn.Module) -> float:
    inputs = {m: x.clone().requires_grad_() for m, x in feats.items()}
    labels = torch.arange(len(inputs["a"])) % head.out_features
    F.cross_entropy(head(fusion(inputs).fused), labels).backward()
    return torch.cat([x.grad for x in inputs.values()], 1).norm().item()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    print("| | " + " | ".join(f"width {width}" for width in args.widths) + " |")
    print("|---|" + "---|" * len(args.widths))
    for name, options in FORMS.items():
        cells = []
        for width in args.widths:
            quotients = []
            for seed in args.seeds:
                torch.manual_seed(seed)
                channels = dict(a=width, b=width)
                feats = {m: torch.randn(args.batch, width).relu() for m in channels}
                head = torch.nn.Linear(width, 10)
                concat = ConcatFusion(list(channels), channels, out_channels=width)
                scfae = SCFAE(list(channels), channels, out_channels=width, **options)
                quotients.append(gradient_norm(scfae, feats, head) / gradient_norm(concat, feats, head))
            cells.append(f"{statistics.fmean(quotients):.2g}")
        print(f"| {name} | " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
