"""Parameters, multiply-adds, latency and peak memory of encoders, neck, head and whole model of a config.

    python tools/benchmarks/model_cost.py CONFIG [--shape rgb=3,480,640 depth=1,480,640] [--repeats 20] [--out DIR]

One sample in evaluation mode, float32 (SCFAE, Table 13). Without --shape it is the first one of the test set. Counting
is fusion_cost.py's (mmfusion_plugin.models.count_costs); latency is the median over --repeats; memory is what
activations take at once, counted tensor by tensor and so the same on every device. Weights count in the last line.
Writes cost.json and cost.md (default: print only; give evidence/ of a work dir for tools/report.py).
"""
from __future__ import annotations

import argparse
import math
import platform
import warnings

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
import torch
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope

from mmfusion_plugin.analysis import conditions, evidence
from mmfusion_plugin.engine import launch
from mmfusion_plugin.models import measure_costs

LIMIT = "1 sample, float32, evaluation; {where}"


def shapes_from(words: list[str]) -> dict[str, tuple[int, ...]]:
    """``rgb=3,480,640`` -> {rgb: (3, 480, 640)}."""
    found = {}
    for word in words:
        modality, _, text = word.partition("=")
        try:
            found[modality] = tuple(int(part) for part in text.split(","))
        except ValueError:
            raise launch.UsageError(f"--shape {word}: expected MODALITY=C,H,W such as rgb=3,480,640") from None
    return found


def first_sample(cfg, model, device: str):
    batch = pseudo_collate([conditions.build_dataset(cfg.test_dataloader)[0]])
    return model.data_preprocessor.to(device)(batch, False)["inputs"]


def made_up(model, shapes: dict[str, tuple[int, ...]], device: str):
    """Random inputs of the given shapes, stacked where the model takes one tensor."""
    names = list(model.backbone.encoders)
    if set(shapes) != set(names):
        raise launch.UsageError(f"--shape names {sorted(shapes)}, the model has {names}")
    streams = {m: torch.randn(1, *shapes[m], device=device) for m in names}
    return torch.cat(list(streams.values()), 1) if hasattr(model, "decode_head") else streams


def power(unit: float) -> str:
    return f"1e{round(math.log10(unit))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config file")
    parser.add_argument("--shape", nargs="+", action="extend", metavar="M=C,H,W",
                        help="of one sample, as the encoder takes it")
    parser.add_argument("--repeats", type=int, default=20, help="passes that are timed (default: 20)")
    parser.add_argument("--device", default=get_device(), help="default: a GPU if there is one")
    parser.add_argument("--out", metavar="DIR", help="folder for cost.json and cost.md")
    launch.add_common_arguments(parser)
    args = parser.parse_args()
    if args.repeats < 1:
        raise launch.UsageError(f"--repeats {args.repeats}: at least 1")
    warnings.filterwarnings("ignore", module="mmseg")  # deprecations that concern no one here
    cfg = launch.load_config(args)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    model = MODELS.build(cfg.model).to(args.device).eval()
    inputs = first_sample(cfg, model, args.device) if args.shape is None else made_up(
        model, shapes_from(args.shape), args.device)
    costs = measure_costs(model, inputs, args.repeats)
    sizes = {m: list(x.shape) for m, x in inputs.items()} if isinstance(inputs, dict) else list(inputs.shape)
    where = torch.cuda.get_device_name() if args.device.startswith("cuda") else (
        f"{platform.machine()} processor, {torch.get_num_threads()} thread(s)")
    record = dict(evidence.provenance(args.config, "", cfg, ""), costs=costs, inputs=sizes,
                  setting=LIMIT.format(where=where), torch=torch.__version__, repeats=args.repeats)
    # models of ready-made features would read 0.000
    size, work = (1e3 if costs["total"][key] < 1e6 else 1e6 for key in ("parameters", "multiply_adds"))
    work = 1e9 if costs["total"]["multiply_adds"] >= 1e9 else work
    rows = [[name, f"{c['parameters'] / size:.3f}", f"{c['multiply_adds'] / work:.3f}", f"{c['milliseconds']:.2f}",
             f"{c['peak_bytes'] / 1e6:.2f}"] for name, c in costs.items()]
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
    text = (
        f"{record['setting']}, torch {record['torch']}, median of {args.repeats} passes, inputs {sizes}.\n\n"
        + evidence.markdown_table(
            ["part", f"parameters, {power(size)}", f"multiply-adds, {power(work)}", "latency, ms",
             "activations at the peak, MB"], rows)
        + f"\n\nWeights: {weights:.1f} MB.\n\n`{record['command']}`\n")
    print(text)
    if args.out:
        print(*evidence.write_evidence(args.out, "cost", record, text), sep="\n")


if __name__ == "__main__":
    launch.run_tool(main)
