"""Table 13's rows on this machine: encoders, SCFAE's literal block, and whole models in inference and training.

Two ResNet-18 for 3 frames of 224x224 and a spectrogram of 129x626, 512 channels each, batch 1, float32, one loss and
one AdamW step in training. Run through ``scfae_tables.py 13``.
"""
from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
import torch
from mmaction.structures import ActionDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmfusion_plugin.analysis.evidence import markdown_table
from mmfusion_plugin.models import measure_costs
from mmfusion_plugin.models.measuring import PeakMemory

CONFIG = Path(__file__).parents[2] / "configs" / "recognition" / "scfae_r18_kinetics-sound.py"
WIDTHS = dict(visual=512, audio=512)
LITERAL = dict(type="SCFAE", modalities=list(WIDTHS), in_channels=WIDTHS, norm=None)
CONCAT = dict(type="ConcatFusion", modalities=list(WIDTHS), in_channels=WIDTHS)
Shapes = Mapping[str, tuple[int, ...]]
SHAPES: Shapes = dict(visual=(1, 3, 3, 224, 224), audio=(1, 1, 1, 129, 626))


def build(neck: Mapping[str, Any], device: str) -> torch.nn.Module:
    cfg = Config.fromfile(CONFIG)
    init_default_scope(cfg.default_scope)
    width = MODELS.build(dict(neck)).out_channels[0]
    return MODELS.build({
        **cfg.model, "neck": dict(neck),
        "cls_head": {**cfg.model.cls_head, "in_channels": width, "modality_in_channels": None}}).to(device)


def train_costs(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], repeats: int) -> dict[str, float]:
    """Median milliseconds and peak bytes of forward, backward and an AdamW step; weights and their states left out."""
    model.train()
    for module in model.modules():  # one sample has no spread: BatchNorm normalises it by what it knows
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    sample = ActionDataSample().set_gt_label(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        model.parse_losses(model(inputs, [sample], mode="loss"))[0].backward()
        optimizer.step()

    step()  # gradients and the optimizer's states are there from now on
    milliseconds = _median(step, repeats, next(model.parameters()).device)
    with PeakMemory() as memory:
        step()
    return dict(milliseconds=milliseconds, peak_bytes=memory.peak)


def _median(run: Callable[[], None], repeats: int, device: torch.device) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def cost_rows(repeats: int, shapes: Shapes = SHAPES) -> dict[str, Any]:
    """{rows: [dict(part=, parameters=, milliseconds=, peak_bytes=)], and where it was measured}."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    inputs = {m: torch.randn(shape, device=device) for m, shape in shapes.items()}
    rows = []
    for name, neck in (("baseline", CONCAT), ("full SCFAE", LITERAL)):
        model = build(neck, device)
        costs = measure_costs(model, inputs, repeats)
        if neck is LITERAL:
            rows[:0] = [dict(part=part, **costs[key]) for part, key in (
                ("visual encoder only", "encoders.visual"), ("audio encoder only", "encoders.audio"),
                ("SCFAE only", "neck"))]
        rows += [dict(part=f"{name}, forward", **costs["total"]),
                 dict(part=f"{name}, train step", parameters=costs["total"]["parameters"], multiply_adds=None,
                      **train_costs(model, inputs, repeats))]
    where = torch.cuda.get_device_name() if device == "cuda" else (
        f"{platform.machine()} processor, {torch.get_num_threads()} thread(s)")
    return dict(rows=rows, where=where, repeats=repeats, torch=torch.__version__,
                inputs={m: list(shape) for m, shape in shapes.items()})


def costs_markdown(record: Mapping[str, Any]) -> str:
    lines = []
    for row in record["rows"]:
        work = "-" if row["multiply_adds"] is None else f"{row['multiply_adds'] / 1e9:.3f}"
        lines.append([row["part"], f"{row['parameters'] / 1e6:.2f}", work, f"{row['milliseconds']:.1f}",
                      f"{1000 / row['milliseconds']:.1f}", f"{row['peak_bytes'] / 1e6:.1f}"])
    head = ["component", "parameters, M", "multiply-adds, 1e9", "latency, ms", "samples/s",
            "activations at the peak, MB"]
    return (f"{markdown_table(head, lines)}\n\nBatch 1, float32, {record['where']}, torch {record['torch']}, median of "
            f"{record['repeats']} passes; inputs {record['inputs']}. Memory is what operators make and somebody holds "
            "at once; weights, the parameters' gradients and the optimizer's states left out.")
