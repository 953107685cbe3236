"""Each baseline against a loop over samples that uses the survivors alone."""
from __future__ import annotations

import pytest
import torch
from fusion.cases import RANKS, features, present
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfusion_plugin.fusion import (
    FUSIONS,
    ConcatFusion,
    CrossAttentionFusion,
    FiLMFusion,
    GatedFusion,
    MLPFusion,
    SumFusion,
)
from mmfusion_plugin.fusion.mlp import hidden_for

WIDTHS = dict(a=6, b=4, c=8)
MISSING = dict(a=[0], c=[0, 2])
BASELINES = sorted(set(FUSIONS) - {"SCFAE"})


def case(block_type, **options):
    torch.manual_seed(0)
    block = block_type(list(WIDTHS), WIDTHS, out_channels=5, **options).double()
    return block, features(WIDTHS, dtype=torch.float64), present(WIDTHS, missing=MISSING)


def survivors(available, i):
    return [m for m in WIDTHS if available[m][i]]


def normed(block, feats, m, i):
    return block.norm.norm[m](feats[m][i : i + 1])[0]


@pytest.mark.parametrize("norm", [None, "layer"])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_sum(norm, reduce):
    block, feats, available = case(SumFusion, norm=norm, reduce=reduce)
    fused = block(feats, available).fused
    for i in range(4):
        parts = [block.project[m](normed(block, feats, m, i)) for m in survivors(available, i)]
        expected = sum(parts) / (len(parts) if reduce == "mean" else 1)
        torch.testing.assert_close(fused[i], expected)


@pytest.mark.parametrize("norm", [None, "layer"])
def test_concat_keeps_a_place_of_zeros_for_the_missing(norm):
    block, feats, available = case(ConcatFusion, norm=norm)
    fused = block(feats, available).fused
    for i in range(4):
        row = torch.cat([
            normed(block, feats, m, i) if available[m][i] else torch.zeros(C, dtype=torch.float64)
            for m, C in WIDTHS.items()
        ])
        torch.testing.assert_close(fused[i], block.project.weight @ row + block.project.bias)


def test_plain_concat_has_no_parameters_and_list_order():
    block = ConcatFusion(["c", "a", "b"], WIDTHS)
    feats = features(WIDTHS)
    assert list(block.parameters()) == []
    assert torch.equal(block(feats).fused, torch.cat([feats["c"], feats["a"], feats["b"]], 1))


def test_mlp_is_two_linears_on_the_concatenation():
    block, feats, _ = case(MLPFusion, hidden=7)
    x = torch.cat([feats[m] for m in WIDTHS], 1)
    hidden = torch.nn.functional.gelu(x @ block.expand.weight.T + block.expand.bias)
    torch.testing.assert_close(block(feats).fused, hidden @ block.reduce.weight.T + block.reduce.bias)


@pytest.mark.parametrize("wanted", [10_000, 1_000_000, 24_136_700])
def test_mlp_matches_a_parameter_count(wanted):
    with torch.device("meta"):
        block = MLPFusion(["a", "b"], dict(a=512, b=512), out_channels=512, match_params=wanted)
    count = sum(p.numel() for p in block.parameters())
    assert abs(count - wanted) <= (1024 + 512 + 1) / 2
    assert hidden_for(count, 1024, 512) == block.expand.out_features


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_gates_are_shared_among_the_survivors(gate):
    block, feats, available = case(GatedFusion, gate=gate)
    fused = block(feats, available).fused
    for i in range(4):
        row = torch.cat([feats[m][i] * available[m][i] for m in WIDTHS])
        score = dict(zip(WIDTHS, block.score(row[None])[0].split(5)))
        odds = {m: score[m].exp() if gate == "softmax" else score[m].sigmoid() for m in survivors(available, i)}
        total = sum(odds.values()) if gate == "softmax" else 1
        expected = sum(o / total * torch.tanh(block.value[m](feats[m][i])) for m, o in odds.items())
        torch.testing.assert_close(fused[i], expected)


@pytest.mark.parametrize("condition", [None, "b"])
def test_film_modulates_by_the_survivors(condition):
    block, feats, available = case(FiLMFusion, condition=condition)
    fused = block(feats, available).fused
    for i in range(4):
        live = survivors(available, i)
        summed = [m for m in live if m != condition] or live
        expected = 0
        for m in summed:
            scale, shift = 1, 0
            for c in live:
                if c != m and condition in (None, c):
                    gamma, beta = block.film[m][c](feats[c][i]).split(WIDTHS[m])
                    scale, shift = scale * (1 + gamma), shift + beta
            expected = expected + block.project[m](feats[m][i] * scale + shift)
        torch.testing.assert_close(fused[i], expected)


def test_attention_of_the_survivors_alone():
    block, feats, available = case(CrossAttentionFusion, embed_channels=8, num_heads=2, num_layers=2)
    fused = block(feats, available).fused
    for i in range(4):
        live = survivors(available, i)
        place = [list(WIDTHS).index(m) for m in live]
        tokens = torch.stack([block.embed[m](feats[m][i]) for m in live])[None] + block.modality_code[place]
        for layer in block.layers:
            qkv = layer.qkv(layer.norm_attention(tokens))[0]
            heads = []
            for h in range(2):
                q, k, v = (qkv[:, 8 * j + 4 * h : 8 * j + 4 * h + 4] for j in range(3))
                heads.append((q @ k.T / 2).softmax(1) @ v)
            tokens = tokens + layer.out(torch.cat(heads, 1))
            tokens = tokens + layer.mlp(layer.norm_mlp(tokens))
        torch.testing.assert_close(fused[i], block.project(block.norm_out(tokens[0].mean(0))))


def test_global_attention_sees_other_positions():
    seen = {}
    for scope in ("position", "global"):
        block = CrossAttentionFusion(["a", "b"], dict(a=4, b=4), scope=scope)
        feats = features(dict(a=4, b=4), batch=1, rank="sequence")
        block(feats).fused[0, 0].sum().backward()
        seen[scope] = bool(feats["b"].grad[0, 2].any())
    assert seen == {"position": False, "global": True}


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("rank", ["map", "clip"])
def test_a_map_is_a_set_of_vectors(name, rank):
    block = FUSIONS[name](list(WIDTHS), WIDTHS, out_channels=5, norm="layer").double()
    feats, available = features(WIDTHS, rank=rank, dtype=torch.float64), present(WIDTHS, missing=MISSING)
    flat = block({m: x.flatten(2).mT for m, x in feats.items()}, available).fused
    torch.testing.assert_close(block(feats, available).fused.flatten(2).mT, flat)


@pytest.mark.parametrize("name", BASELINES)
def test_what_a_missing_modality_holds_changes_nothing(name):
    block, feats, available = case(FUSIONS[name], norm="layer")
    clean = block(feats, available).fused
    with torch.no_grad():
        feats["a"][0] = float("nan")
        feats["c"][[0, 2]] = float("inf")
    broken = block(feats, available).fused
    assert torch.equal(clean, broken)
    broken.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in block.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", BASELINES)
def test_no_dicts_order_carries_meaning(name):
    block, feats, available = case(FUSIONS[name])
    other = FUSIONS[name](list(WIDTHS), dict(reversed(WIDTHS.items())), out_channels=5).double()
    other.load_state_dict(block.state_dict())
    assert torch.equal(
        block(feats, available).fused, other(dict(reversed(feats.items())), available).fused
    )


@pytest.mark.parametrize("name", BASELINES)
def test_gradcheck(name):
    widths = dict(a=4, b=4)
    block = FUSIONS[name](list(widths), widths, out_channels=2, norm="layer").double()
    feats, available = features(widths, batch=2, dtype=torch.float64), present(widths, 2, dict(b=[1]))
    assert torch.autograd.gradcheck(
        lambda a, b: block(dict(a=a, b=b), available).fused, (feats["a"], feats["b"])
    )


@pytest.mark.parametrize(
    ("block_type", "options", "words"),
    [
        (SumFusion, dict(reduce="max"), "reduce"),
        (SumFusion, dict(norm="batch"), "norm"),
        (MLPFusion, dict(hidden=3, match_params=100), "not both"),
        (GatedFusion, dict(gate="hard"), "gate"),
        (FiLMFusion, dict(condition="d"), "condition"),
        (CrossAttentionFusion, dict(scope="all"), "scope"),
        (CrossAttentionFusion, dict(embed_channels=6, num_heads=4), "divisible"),
    ],
)
def test_options_out_of_range_say_so(block_type, options, words):
    with pytest.raises(ValueError, match=words):
        case(block_type, **options)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(BASELINES),
    widths=st.lists(st.sampled_from([4, 8, 12]), min_size=2, max_size=4),
    rank=st.sampled_from(sorted(RANKS)),
    norm=st.sampled_from(["layer", None]),
)
def test_any_widths_ranks_and_numbers_of_modalities(name, widths, rank, norm):
    named = {f"m{i}": C for i, C in enumerate(widths)}
    block = FUSIONS[name](list(named), named, norm=norm, out_channels=6)
    feats = features(named, rank=rank)
    fused = block(feats, present(named, missing=dict(m0=[1]))).fused
    assert fused.shape[2 if rank == "sequence" else 1] == 6
    fused.square().sum().backward()
    assert torch.isfinite(fused).all()
    assert all(p.grad is not None for p in block.parameters())
    assert all(x.grad.any() for x in feats.values())
