"""Dual suppression (UDML, CVPR 2026): what is learnt slowly is found uncertain, and is weighed less on top of it."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from mmfusion_plugin.fusion.concat import ConcatFusion
from mmfusion_plugin.fusion.udml import UDML

AB = ("quick", "slow")
WIDTHS = dict(quick=6, slow=6)


def batch(number, generator):
    """Four classes of two bits: each modality shows one, the slow one at a fifth of the size."""
    bits = {m: torch.randint(0, 2, (number,), generator=generator) for m in AB}
    size = dict(quick=1.0, slow=0.2)
    feats = {
        m: size[m] * (2 * bits[m][:, None] - 1 + 0.5 * torch.randn(number, WIDTHS[m], generator=generator)) for m in AB}
    levels = dict(quick=torch.ones(number), slow=torch.full((number,), 6.0))
    return feats, levels, 2 * bits["quick"] + bits["slow"]


def accuracy(seed, steps=90, **options):
    torch.manual_seed(seed)
    inner = ConcatFusion(AB, WIDTHS, out_channels=8)
    model = UDML(AB, WIDTHS, inner, embedding=False, novelty=None, weights_from=0.0, **options)
    head = nn.Linear(8, 4)
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.05)
    generator = torch.Generator().manual_seed(seed)
    everyone = {m: torch.ones(32, dtype=torch.bool) for m in AB}
    for _ in range(steps):
        feats, levels, labels = batch(32, generator)
        if model.dependency is not None:
            alone = {}
            for m in AB:
                only = {k: everyone[k] if k == m else ~everyone[k] for k in AB}
                alone[m] = head(model(feats, only, levels).fused)
            model.dependency.update(alone, everyone)
        loss = nn.functional.cross_entropy(head(model(feats, None, levels).fused), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    feats, levels, labels = batch(2000, generator)
    with torch.no_grad():
        return (head(model(feats, None, levels).fused).argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize("seed", range(3))
def test_uncorrected_weights_fall_below_static_fusion_and_corrected_ones_do_not(seed):
    static = accuracy(seed, quality=None, dependency=False)
    suppressed = accuracy(seed, quality="given", dependency=False)
    corrected = accuracy(seed, quality="given")
    print(f"static {static:.3f}, weighed by noise alone {suppressed:.3f}, corrected by dependency {corrected:.3f}")
    assert suppressed < static - 0.05
    assert corrected > static - 0.02
