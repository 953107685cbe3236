from __future__ import annotations

import pytest
import torch
from fusion.cases import RANKS, features, present

from mmfusion_plugin.fusion import FUSIONS, row_blocks
from mmfusion_plugin.fusion.modes import fused_only
from mmfusion_plugin.fusion.udml import UDML

AB = ["a", "b"]
WIDTHS = dict(a=6, b=4)
RECONSTRUCTING = {
    "as published": dict(norm=None), "default": {}, "light": dict(width=0.5), "received": dict(recon_reads="received"),
    "mse": dict(recon_metric="mse"), "head reads before": dict(head_reads="pre"),
}


def calls(module: torch.nn.Module) -> list:
    """What a hook notes of each call to come."""
    found: list = []
    module.register_forward_hook(lambda *_: found.append(1))
    return found


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("options", RECONSTRUCTING.values(), ids=RECONSTRUCTING)
def test_fused_features_do_not_need_the_reconstruction(rank, options):
    block = FUSIONS["SCFAE"](AB, WIDTHS, **options).eval()
    feats, available = features(WIDTHS, rank=rank), present(AB, missing=dict(b=[1]))
    whole = block(feats, available)
    made = calls(block.P_recon["a"])
    with fused_only(block):
        part = block(feats, available)
    assert not made and not part.losses and not part.diagnostics
    torch.testing.assert_close(part.fused, whole.fused, rtol=0, atol=0)
    again = block(feats, available)
    assert made and set(again.losses) == set(whole.losses) and set(again.diagnostics) == set(whole.diagnostics)


def test_before_the_last_swiglu_nothing_after_it_is_computed():
    block = FUSIONS["SCFAE"](AB, WIDTHS, head_reads="pre")
    made = calls(block.post["a"])
    with fused_only(block):
        block(features(WIDTHS))
    assert not made


def test_large_maps_in_blocks_of_positions_reconstruct_nothing_either(monkeypatch):
    block = FUSIONS["SCFAE"](AB, WIDTHS).eval()
    monkeypatch.setattr(row_blocks, "VALUES", 500 * block._widest)
    feats = {m: torch.randn(1, C, 2, 500) for m, C in WIDTHS.items()}
    with torch.no_grad():
        whole = block(feats)
        with fused_only(block):
            part = block(feats)
    assert whole.losses and not part.losses and torch.equal(part.fused, whole.fused)


def test_a_comparator_leaves_its_loss_out():
    block = FUSIONS["SCFAEAuxiliary"](AB, WIDTHS, auxiliary="contrastive")
    with fused_only(block):
        assert not block(features(WIDTHS)).losses
    assert block(features(WIDTHS)).losses


def test_the_way_back_is_taken_after_an_error_and_from_within():
    block = FUSIONS["SCFAE"](AB, WIDTHS)
    with pytest.raises(ValueError), fused_only(block):
        block(dict(a=torch.zeros(2, 6)))
    assert block(features(WIDTHS)).losses
    with fused_only(block):
        with fused_only(block, only=False):
            assert block(features(WIDTHS)).losses
        assert not block(features(WIDTHS)).losses


def test_a_weight_that_reads_the_reconstruction_still_does():
    model = UDML(AB, WIDTHS, FUSIONS["SCFAE"](AB, WIDTHS), reads=["variance"], novelty=["reconstruction"])
    model.set_progress(1.0)
    for _ in range(4):
        model(features(WIDTHS), None, dict.fromkeys(AB, torch.zeros(4)))
    model.eval()
    feats = features(WIDTHS)
    whole = model(feats)
    with fused_only(model):
        part = model(feats)
    assert torch.equal(part.fused, whole.fused) and "fusion.novelty.a" in part.diagnostics
    assert "fusion.loss_recon" in whole.losses and "fusion.loss_recon" not in part.losses
