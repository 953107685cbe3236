"""Large maps a block of positions at a time: the same result, loss, diagnostics and gradients as in one piece."""
from __future__ import annotations

import sys

import pytest
import torch

from mmfusion_plugin.fusion import FUSIONS, SCFAE, FusionBlock, FusionOutput, row_blocks
from mmfusion_plugin.fusion import block as block_module
from mmfusion_plugin.fusion.row_blocks import join_rows, rows_pay, split_rows

WIDTHS = dict(a=6, b=8, c=4)
SHAPES = {"vectors": (37,), "sequences": (3, 11), "maps": (3, 5, 7), "clips": (2, 3, 4, 5)}
FORMS = {
    "SCFAE": {}, "SCFAE inputs beside": dict(residual=True, head_reads="post_and_input"),
    "SCFAE light": dict(width=0.5), "SCFAE literal, mse": dict(norm=None, recon_metric="mse", detach_target=False),
    "SCFAE checkpointed": dict(with_cp=True), "SCFAE received": dict(recon_reads="received"),
    "SCFAE, learned stand-in": dict(missing_fill="token"),
    "SCFAE without reconstruction": dict(recon_weight=0.0),
    "ConcatFusion": dict(norm="layer"), "SumFusion": dict(reduce="mean"), "MLPFusion": {}, "GatedFusion": {},
    "FiLMFusion": {}, "CrossAttentionFusion": dict(num_heads=2, embed_channels=4)}


def features(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    axes = {m: (shape[0], C, *shape[1:]) if len(shape) > 2 else (*shape, C) for m, C in WIDTHS.items()}
    return {m: torch.randn(axis, dtype=torch.float64, requires_grad=True) for m, axis in axes.items()}


def run(block, feats, available, weights=None):
    out = block(feats, available, weights)
    block.zero_grad()
    torch.manual_seed(2)
    losses = sum(out.losses.values())
    ((out.fused * torch.randn(out.fused.shape, dtype=torch.float64)).sum() + losses).backward()
    grads = {name: p.grad.clone() for name, p in block.named_parameters() if p.grad is not None}
    grads.update({m: x.grad.clone() for m, x in feats.items()})
    for x in feats.values():
        x.grad = None
    return out, grads


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_blocks_give_what_the_whole_gives(form, shape, monkeypatch):
    torch.manual_seed(0)
    block = FUSIONS[form.split()[0].strip(",")](list(WIDTHS), WIDTHS, out_channels=5, **FORMS[form]).double()
    feats = features(SHAPES[shape])
    available = {m: torch.ones(len(x), dtype=torch.bool) for m, x in feats.items()}
    available["b"][0] = False
    first = feats["a"]
    weights = {  # of each position, of each sample, of all
        "a": torch.rand_like(first[:, :1] if first.ndim != 3 else first[..., :1]),
        "b": torch.rand(len(first), *[1] * (first.ndim - 1)), "c": torch.ones([1] * first.ndim)}
    with monkeypatch.context() as patched:
        patched.setattr(block_module, "split_rows", lambda *_: [])
        whole, expected = run(block, feats, available, weights)
    for rows in (8, sys.maxsize):  # the second: all in one block
        monkeypatch.setattr(row_blocks, "VALUES", rows * block._widest)
        parts, found = run(block, feats, available, weights)
        assert parts.fused.shape == whole.fused.shape
        torch.testing.assert_close(parts.fused, whole.fused)
        for what in ("losses", "diagnostics", "per_sample"):
            torch.testing.assert_close(getattr(parts, what), getattr(whole, what))
        torch.testing.assert_close(found, expected)


def test_only_large_batches_are_cut_and_into_equal_blocks(monkeypatch):
    feats = {m: x.detach() for m, x in features((3, 5, 7)).items()}
    available = {m: torch.tensor([True, False, True]) for m in feats}
    (whole, mask), = split_rows(feats, available, 10)
    assert whole["a"].shape == (105, 6)
    assert mask["b"].tolist() == [True] * 35 + [False] * 35 + [True] * 35
    vectors = {m: x.detach() for m, x in features((3,)).items()}
    assert split_rows(vectors, available, 10) == [], "vectors are rows already"
    monkeypatch.setattr(row_blocks, "VALUES", 400)
    blocks = split_rows(feats, available, 10)
    assert [len(x["a"]) for x, _ in blocks] == [35, 35, 35], "3 x 35 positions, not 40, 40 and 25"
    assert [bool(mask["b"].all()) for _, mask in blocks] == [True, False, True]
    torch.testing.assert_close(join_rows([x["c"] for x, _ in blocks], feats["c"]), feats["c"])


def test_half_precision_is_fused_whole():
    feats = {m: x.detach().float() for m, x in features((3, 5, 7)).items()}
    assert rows_pay(feats)
    with torch.autocast("cpu", torch.bfloat16):
        assert not rows_pay(feats)
    assert not rows_pay({m: x.bfloat16() for m, x in feats.items()})


def test_a_block_of_narrow_features_has_more_positions():
    """What counts is how large a block's widest tensor is."""
    widest = {kind: FUSIONS["SCFAE"](list(WIDTHS), WIDTHS, width=width)._widest
              for kind, width in (("full", None), ("light", 0.5))}
    assert widest == dict(full=8 * (8 + 4) // 3, light=8 * (4 + 2) // 3)
    assert FUSIONS["ConcatFusion"](list(WIDTHS), WIDTHS)._widest == 8


def test_what_reads_across_positions_is_never_cut(monkeypatch):
    monkeypatch.setattr(row_blocks, "VALUES", 8)
    feats = {m: x.detach().float() for m, x in features((2, 5, 7)).items()}
    for block in (FUSIONS["CrossAttentionFusion"](list(WIDTHS), WIDTHS, embed_channels=4, scope="global"),
                  FUSIONS["SCFAEAuxiliary"](list(WIDTHS), WIDTHS)):
        monkeypatch.setattr(type(block), "fuse_blocks", None)
        assert block(feats).fused.shape[2:] == (5, 7)


class Mine(FusionBlock):
    """A method of somebody else's: mean of the modalities."""

    out_channels = 4

    def fuse(self, feats, available):
        self.given = feats["a"].shape
        fused = sum(feats.values()) / 2
        return FusionOutput(fused, {"fusion.loss_mine": fused.square().mean()} if self.lossy else {})


@pytest.mark.parametrize("pointwise, lossy, given", [
    (False, False, (2, 4, 5, 7)), (False, True, (2, 4, 5, 7)), (True, False, (70, 4))])
def test_a_method_is_given_maps_unless_it_says_that_rows_will_do(pointwise, lossy, given):
    block = Mine(["a", "b"], dict(a=4, b=4))
    block.pointwise, block.lossy = pointwise, lossy
    out = block({m: torch.ones(2, 4, 5, 7) for m in "ab"})
    assert block.given == given and out.fused.shape == (2, 4, 5, 7)
    assert bool(out.losses) is lossy


def test_losses_of_rows_are_never_dropped():
    block = Mine(["a", "b"], dict(a=4, b=4))
    block.pointwise = block.lossy = True
    with pytest.raises(NotImplementedError, match="Mine.fuse gives losses.*fuse_blocks, or set pointwise = False"):
        block({m: torch.ones(2, 4, 5, 7) for m in "ab"})


def test_compilers_see_the_whole_map(monkeypatch):
    monkeypatch.setattr(row_blocks, "VALUES", 8)
    block = SCFAE(list(WIDTHS), WIDTHS).eval()
    feats = {m: x.detach().float() for m, x in features((2, 5, 7)).items()}
    monkeypatch.setattr(SCFAE, "fuse_blocks", None)
    with torch.no_grad():
        compiled = torch.compile(block, backend="eager", fullgraph=True)(feats).fused
        assert compiled.shape == (2, block.out_channels, 5, 7)
        with pytest.raises(TypeError, match="not callable"):
            block(feats)
