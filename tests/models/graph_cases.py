"""Necks with and without CUDA graphs, on a processor and on a GPU: batches, steps and what they give."""
from __future__ import annotations

import torch
from mmengine.registry import MODELS

WIDTHS = dict(a=[6, 8], b=[4, 8])
NECKS = {
    "SCFAE": {}, "SCFAE literal": dict(norm=None), "SCFAE light": dict(width=0.5, with_cp=True),
    "SCFAE received": dict(recon_reads="received"), "SCFAE token": dict(missing_fill="token"),
    "SCFAE without reconstruction": dict(recon_weight=0), "SCFAE own": dict(width=4, missing_neighbour="own"),
    "ConcatFusion": {}, "SumFusion": {}, "MLPFusion": dict(norm="layer"), "GatedFusion": {}, "FiLMFusion": {},
    "CrossAttentionFusion": dict(num_heads=2, embed_channels=4)}


def neck_of(name: str = "SCFAE", **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return MODELS.build(dict(type=name.split()[0], modalities=["a", "b"], in_channels=WIDTHS, out_channels=5,
                             **{**NECKS[name], **options}))


def pair_of(name: str = "SCFAE", **options) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The same neck, plain and with graphs."""
    return neck_of(name, **options), neck_of(name, cuda_graphs=True, **options)


def batch(seed: int, number: int = 3, gradients: bool = True) -> dict[str, list[torch.Tensor]]:
    torch.manual_seed(seed)
    return {m: [torch.randn(number, C, 4 // (i + 1), 2, requires_grad=gradients) for i, C in enumerate(widths)]
            for m, widths in WIDTHS.items()}


def present(number: int = 3, missing: int | None = None) -> dict[str, torch.Tensor]:
    return dict(a=torch.ones(number, dtype=torch.bool), b=torch.arange(number) != (-1 if missing is None else missing))


def values(out) -> dict[str, torch.Tensor]:
    return {**{f"fused {i}": x for i, x in enumerate(out.fused)}, **out.losses, **out.diagnostics, **out.per_sample}


def loss_of(out) -> torch.Tensor:
    return sum(x.square().mean() for x in out.fused) + sum(out.losses.values())


def step(neck, feats, available, **more) -> dict[str, torch.Tensor]:
    neck.zero_grad()
    for levels in feats.values():
        for x in levels:
            x.grad = None
    out = neck(feats, available, **more)
    loss_of(out).backward()
    return {**values(out), **{name: p.grad for name, p in neck.named_parameters() if p.grad is not None},
            **{f"input {m} {i}": x.grad for m, levels in feats.items() for i, x in enumerate(levels)}}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")


def gradients_of_parts(neck, feats) -> list[list[torch.Tensor | None]]:
    """By the task's loss and by the fusion's, each asked of the same pass alone, and then added up by ``backward``."""
    neck.zero_grad()
    out, parameters = neck(feats), list(neck.parameters())
    parts = [sum(x.square().mean() for x in out.fused), sum(out.losses.values())]
    found = [list(torch.autograd.grad(part, parameters, retain_graph=True, allow_unused=True)) for part in parts]
    loss_of(out).backward()
    return [*found, [p.grad for p in parameters]]


def assert_same_gradients(found, expected, **tolerance) -> None:
    """A graph gives zeros where nothing comes from."""
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected):
        for a, b in zip(mine, theirs):
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, **tolerance)
