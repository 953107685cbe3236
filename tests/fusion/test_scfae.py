"""SCFAE against a formulation of the paper's equations in plain numpy."""
from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from fusion.cases import RANKS, features, present
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from mmfusion_plugin.fusion import SCFAE

UNEQUAL = dict(a=6, b=4, c=9)


def make(widths=UNEQUAL, dtype=torch.float64, **options):
    return SCFAE(list(widths), widths, **options).to(dtype)


# --- an independent formulation ------------------------------------------------------------------


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def stage(state, name, x):
    if f"{name}.norm.weight" in state:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        x = x * state[f"{name}.norm.weight"] + state[f"{name}.norm.bias"]
    gate = linear(state, f"{name}.swiglu.gate", x)
    up = linear(state, f"{name}.swiglu.up", x)
    return linear(state, f"{name}.swiglu.down", gate / (1 + np.exp(-gate)) * up)


def reduced(state, m, v):
    return linear(state, f"P_reduce.{m}", v) if f"P_reduce.{m}.weight" in state else v


def paper(block, V, missing, expansion=2, ratio=0.5):
    """Fused vector and reconstruction loss, sample by sample. V {m: (B, l_m)}, missing {m: set}."""
    state = {k: v.detach().numpy() for k, v in block.state_dict().items()}
    names, batch = list(V), len(next(iter(V.values())))
    fused, terms = [], {m: [] for m in names}
    for i in range(batch):
        here = {m: i not in missing.get(m, ()) for m in names}
        v = {m: V[m][i] if here[m] else np.zeros_like(V[m][i]) for m in names}
        x = {m: reduced(state, m, v[m]) for m in names}
        hat = {m: gelu(linear(state, f"P_expand.{m}", stage(state, f"pre.{m}", x[m]))) for m in names}
        b = {m: round(ratio * expansion * len(x[m])) for m in names}
        row = []
        for position, m in enumerate(names):
            k = names[(position + 1) % len(names)]
            shared_hat = hat[k][: b[k]] if here[k] else np.zeros(b[k])
            shared = gelu(linear(state, f"P_shared.{m}", shared_hat))
            specific = gelu(linear(state, f"P_specific.{m}", hat[m][b[m] :]))
            Z = stage(state, f"post.{m}", np.concatenate([specific, shared]))
            row.append(Z)
            recon = linear(state, f"P_recon.{m}", Z)
            if here[m]:
                cosine = v[m] @ recon / (np.linalg.norm(v[m]) * np.linalg.norm(recon))
                terms[m].append(1 - cosine)
        fused.append(np.concatenate(row))
    return np.stack(fused), sum(np.mean(t) for t in terms.values() if t)


@pytest.mark.parametrize("options", [dict(norm="layer"), dict(norm=None), dict(width=3), dict(width=0.5)])
@pytest.mark.parametrize("widths", [dict(a=6, b=4), UNEQUAL])
@pytest.mark.parametrize("missing", [{}, dict(b=[0, 2])])
@pytest.mark.parametrize("split", [dict(expansion=2, ratio=0.5), dict(expansion=3, ratio=0.3)])
def test_forward_and_loss_equal_the_papers_equations(options, widths, missing, split):
    block = make(widths, expansion=split["expansion"], shared_ratio=split["ratio"], **options)
    feats = features(widths, dtype=torch.float64)
    out = block(feats, present(widths, missing=missing))
    expected, loss = paper(block, {m: x.detach().numpy() for m, x in feats.items()}, missing, **split)
    np.testing.assert_allclose(out.fused.detach().numpy(), expected, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(out.losses["fusion.loss_recon"].item(), loss, rtol=1e-7)


# --- the paper's numbers ---------------------------------------------------------------------------


def count(block):
    return sum(p.numel() for p in block.parameters())


def test_literal_form_has_the_papers_parameter_count():
    with torch.device("meta"):
        block = SCFAE(modalities=["a", "b"], in_channels=dict(a=512, b=512), norm=None)
    assert count(block) == 24_136_700  # Table 13: 24.14 M


def test_literal_parameters_by_table_12():
    """8 d^2 + 19/3 d for each SwiGLU, and the linears; exact where 3 divides the widths."""

    def gated(d):
        return 8 * d**2 + 19 * d // 3

    def linear_count(inputs, outputs):
        return inputs * outputs + outputs

    expected = 0
    for own, neighbour in ((12, 6), (6, 12)):  # n = 2, b = 0.5: both parts are as wide as V
        expected += gated(own) + linear_count(own, 2 * own) + linear_count(neighbour, 6)
        expected += linear_count(own, own) + gated(own + 6) + linear_count(own + 6, own)
    assert count(make(dict(a=12, b=6), norm=None)) == expected


def test_literal_form_has_the_papers_cost():
    with torch.device("meta"):
        block = SCFAE(["a", "b"], dict(a=512, b=512), norm=None)
        with FlopCounterMode(display=False) as counter:
            block(dict(a=torch.empty(1, 512), b=torch.empty(1, 512)))
    assert round(counter.get_total_flops() / 1e9, 3) == 0.048  # appendix A


def test_unequal_lengths_of_activitynet():
    with torch.device("meta"):
        block = SCFAE(["video", "image"], dict(video=4096, image=128), norm=None)
    assert round(count(block) / 1e6, 1) == 345.9


def test_meta_device_gives_shapes_without_memory():
    with torch.device("meta"):
        block = make(modality_dropout=0.3, missing_fill="mean", out_channels=5)
        out = block({m: torch.empty(4, C, 2, 3, dtype=torch.float64) for m, C in UNEQUAL.items()})
    assert out.fused.is_meta
    assert out.fused.shape == (4, 5, 2, 3)


def test_layer_norm_adds_its_own_parameters_alone():
    with torch.device("meta"):
        block = SCFAE(["a", "b"], dict(a=512, b=512))
    assert count(block) - 24_136_700 == 6_144


# --- the ring --------------------------------------------------------------------------------------


def sources_of_shared(block, widths):
    """{m: modalities whose features the shared part of Z_m depends on}."""
    found = {}
    for m in widths:
        feats = features(widths, dtype=torch.float64)
        block.parts(feats)[m]["shared"].sum().backward()
        found[m] = {j for j, x in feats.items() if x.grad is not None and x.grad.abs().sum() > 0}
    return found


def test_shared_part_comes_from_the_next_modality_alone():
    assert sources_of_shared(make(), UNEQUAL) == {"a": {"b"}, "b": {"c"}, "c": {"a"}}


def test_changing_one_modality_moves_its_own_specific_and_the_previous_ones_shared_part():
    block, feats = make(), features(UNEQUAL, dtype=torch.float64)
    before = block.parts(feats)
    after = block.parts(feats | dict(b=feats["b"] + torch.randn_like(feats["b"])))  # no shift: LayerNorm undoes it
    moved = {(m, part) for m in UNEQUAL for part in ("specific", "shared")
             if not torch.equal(before[m][part], after[m][part])}
    assert moved == {("b", "specific"), ("a", "shared")}


def test_the_list_is_the_ring():
    block = SCFAE(["a", "c", "b"], UNEQUAL).double()
    assert sources_of_shared(block, UNEQUAL) == {"a": {"c"}, "c": {"b"}, "b": {"a"}}


def test_without_exchange_shared_parts_stay_at_home():
    assert sources_of_shared(make(exchange=False), UNEQUAL) == {m: {m} for m in UNEQUAL}


def test_specific_part_comes_from_its_own_modality():
    feats = features(UNEQUAL, dtype=torch.float64)
    make().parts(feats)["b"]["specific"].sum().backward()
    assert feats["a"].grad is None or not feats["a"].grad.any()
    assert feats["b"].grad.any()


def test_no_dicts_order_carries_meaning():
    feats = features(UNEQUAL, dtype=torch.float64)
    ratio, width = dict(a=0.3, b=0.5, c=0.6), dict(a=4, b=3, c=2)
    block = make(shared_ratio=ratio, width=width)
    turned = [dict(reversed(d.items())) for d in (UNEQUAL, ratio, width)]
    other = SCFAE(list(UNEQUAL), turned[0], shared_ratio=turned[1], width=turned[2]).double()
    other.load_state_dict(block.state_dict())
    available = present(UNEQUAL, missing=dict(c=[1]))
    expected = block(feats, available).fused
    found = other(dict(reversed(feats.items())), dict(reversed(available.items()))).fused
    assert torch.equal(expected, found)


def test_the_lists_order_matters():
    widths = dict(a=4, b=4, c=4)
    feats = features(widths, dtype=torch.float64)
    block, other = SCFAE(["a", "b", "c"], widths).double(), SCFAE(["a", "c", "b"], widths).double()
    other.load_state_dict(block.state_dict())
    Z, other_Z = block(feats).fused[:, :8], other(feats).fused[:, :8]  # of a, first in both lists
    assert not torch.allclose(Z, other_Z)


# --- missing modalities ----------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["layer", None])
def test_what_a_missing_modality_holds_changes_nothing(norm):
    block, feats = make(norm=norm), features(UNEQUAL, dtype=torch.float64)
    available = present(UNEQUAL, missing=dict(a=[0, 3]))
    clean = block(feats, available)
    with torch.no_grad():
        feats["a"][[0, 3]] = float("nan")
    broken = block(feats, available)
    assert torch.equal(clean.fused, broken.fused)
    assert torch.equal(clean.losses["fusion.loss_recon"], broken.losses["fusion.loss_recon"])
    (broken.fused.sum() + broken.losses["fusion.loss_recon"]).backward()
    assert all(torch.isfinite(x.grad).all() for x in feats.values())
    assert all(torch.isfinite(p.grad).all() for p in block.parameters())
    assert not feats["a"].grad[[0, 3]].any()


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(norm=None),
        dict(branch="shared"),
        dict(branch="specific"),
        dict(head_reads="pre"),
        dict(recon_weight=0),
        dict(head_reads="pre", recon_weight=0),
        dict(missing_fill="token"),
        dict(width=3, out_channels=2),
    ],
)
def test_a_modality_missing_everywhere_leaves_every_parameter_a_gradient(options):
    """DistributedDataParallel waits for all of them."""
    block, feats = make(**options), features(UNEQUAL, dtype=torch.float64)
    out = block(feats, present(UNEQUAL, missing=dict(a=[0, 1, 2, 3])))
    (out.fused.sum() + sum(out.losses.values())).backward()
    without = [name for name, p in block.named_parameters() if p.grad is None]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in block.parameters())


@pytest.mark.parametrize("metric", ["cosine", "mse"])
def test_the_term_of_a_modality_missing_everywhere_is_exactly_zero(metric):
    widths = dict(a=512, b=512)  # so wide that 1 - cos(1, 1) is not 0 in float32
    block = make(widths, torch.float32, recon_metric=metric, width=4)
    x = torch.randn(4, 512)
    recon = block.P_recon["a"](torch.randn(4, 8))
    distance, similarity, counted = block._compare(x, recon, torch.zeros(4, dtype=torch.bool))
    assert not distance.any() and not similarity.any() and not counted.any()
    distance.sum().backward()
    assert not block.P_recon["a"].weight.grad.any()


def test_dropped_modalities_have_no_reconstruction_term():
    block, feats = make(modality_dropout=0.9), features(UNEQUAL, batch=16, dtype=torch.float64)
    kept = block.modality_dropout.draw(torch.ones(16, 3, dtype=torch.bool))
    assert not kept.all()
    dropped = block(feats)
    block.eval()
    told = block(feats, {m: kept[:, i] for i, m in enumerate(UNEQUAL)})
    assert torch.equal(dropped.losses["fusion.loss_recon"], told.losses["fusion.loss_recon"])
    assert torch.equal(dropped.fused, told.fused)


@pytest.mark.parametrize("metric", ["cosine", "mse"])
def test_similarity_is_the_mean_cosine_over_what_is_there(metric):
    block, feats = make(recon_metric=metric), features(UNEQUAL, dtype=torch.float64)
    out = block(feats, present(UNEQUAL, missing=dict(b=[2])))
    parts = block.parts(feats, present(UNEQUAL, missing=dict(b=[2])))
    for m, here in dict(a=[0, 1, 2, 3], b=[0, 1, 3], c=[0, 1, 2, 3]).items():
        recon = block.P_recon[m](block.post[m](block._recompose(**parts[m])))
        cosines = [feats[m][i] @ recon[i] / feats[m][i].norm() / recon[i].norm() for i in here]
        torch.testing.assert_close(out.diagnostics[f"fusion.recon_similarity.{m}"], sum(cosines) / len(here))


@pytest.mark.parametrize("metric", ["cosine", "mse"])
def test_logged_distances_add_up_to_the_loss(metric):
    block, feats = make(recon_metric=metric, recon_weight=3.0), features(UNEQUAL, dtype=torch.float64)
    out = block(feats, present(UNEQUAL, missing=dict(b=[2])))
    total = sum(out.diagnostics[f"fusion.recon_distance.{m}"] for m in UNEQUAL)
    torch.testing.assert_close(out.losses["fusion.loss_recon"], 3.0 * total)


def test_parts_touch_no_state():
    block, feats = make(missing_fill="mean", modality_dropout=0.9), features(UNEQUAL, dtype=torch.float64)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    parts = block.parts(feats)
    assert all(torch.equal(before[name], value) for name, value in block.state_dict().items())
    Z = {m: block.post[m](block._recompose(**parts[m])) for m in UNEQUAL}
    assert torch.equal(block.eval()(feats).fused, torch.cat([Z[m] for m in UNEQUAL], 1))


def test_a_silent_encoder_gives_a_bounded_gradient():
    block, feats = make(), features(UNEQUAL, dtype=torch.float64)
    with torch.no_grad():
        feats["b"].zero_()
    block(feats).losses["fusion.loss_recon"].backward()
    assert feats["b"].grad.abs().max() < 1e3


def test_z_of_a_missing_modality_carries_the_survivors_shared_part():
    widths = dict(a=4, b=4)
    block, feats = make(widths), features(widths, dtype=torch.float64)
    out = block(feats, present(widths, missing=dict(a=[0, 1, 2, 3])))
    Z_a = out.fused[:, :8]
    Z_a.sum().backward()
    assert feats["b"].grad.any()


@pytest.mark.parametrize(("policy", "source"), [("own", "a"), ("next", "c")])
def test_stand_in_for_a_missing_neighbour(policy, source):
    widths = dict(a=4, b=4, c=4)
    block = make(widths, missing_neighbour=policy)
    feats = features(widths, dtype=torch.float64)
    block.parts(feats, present(widths, missing=dict(b=[0, 1, 2, 3])))["a"]["shared"].sum().backward()
    found = {m for m, x in feats.items() if x.grad is not None and x.grad.any()}
    assert found == {source}


def test_modality_dropout_acts_in_training_alone():
    torch.manual_seed(1)
    block, feats = make(modality_dropout=0.9), features(UNEQUAL, batch=16, dtype=torch.float64)
    available = present(UNEQUAL, 16)
    assert not torch.equal(block(feats, available).fused, block(feats, available).fused)
    block.eval()
    assert torch.equal(block(feats, available).fused, block(feats, available).fused)


# --- options ---------------------------------------------------------------------------------------


def test_branches_zero_the_other_part():
    feats = features(UNEQUAL, dtype=torch.float64)
    full = make(norm=None)
    for branch, own in (("shared", slice(6, None)), ("specific", slice(0, 6))):
        block = make(norm=None, branch=branch)
        block.load_state_dict(full.state_dict())
        Z = block._recompose(**block.parts(feats)["a"])
        other = [i for i in range(Z.shape[1]) if i not in range(*own.indices(Z.shape[1]))]
        assert not Z[:, other].any()
        assert Z[:, own].any()


def test_head_reads_before_or_after_the_last_gate():
    feats = features(UNEQUAL, dtype=torch.float64)
    post = make(norm=None)
    pre = make(norm=None, head_reads="pre")
    pre.load_state_dict(post.state_dict())
    Z = {m: post._recompose(**p) for m, p in post.parts(feats).items()}
    torch.testing.assert_close(pre(feats).fused, torch.cat([Z[m] for m in UNEQUAL], 1))
    torch.testing.assert_close(post(feats).fused, torch.cat([post.post[m](Z[m]) for m in UNEQUAL], 1))


@pytest.mark.parametrize("norm", ["layer", None])
def test_head_reads_the_inputs_beside_z(norm):
    """[Z; V], V normalised where there is a norm; a missing one stays 0."""
    both, post = make(norm=norm, head_reads="post_and_input"), make(norm=norm)
    post.load_state_dict({k: v for k, v in both.state_dict().items() if not k.startswith("input_norm")})
    feats, available = features(UNEQUAL, dtype=torch.float64), present(UNEQUAL, missing=dict(b=[0]))
    found = both(feats, available).fused
    width = post.out_channels
    torch.testing.assert_close(found[:, :width], post(feats, available).fused)
    expected = torch.cat(
        [feats[m] if norm is None else torch.nn.functional.layer_norm(feats[m], (C,)) for m, C in UNEQUAL.items()], 1)
    expected[0, UNEQUAL["a"] : UNEQUAL["a"] + UNEQUAL["b"]] = 0
    torch.testing.assert_close(found[:, width:], expected)
    assert both.out_channels == width + sum(UNEQUAL.values())


def test_residual_adds_the_input():
    x = torch.randn(3, 6, dtype=torch.float64)
    plain, residual = make(), make(residual=True)
    residual.load_state_dict(plain.state_dict())
    torch.testing.assert_close(residual.pre["a"](x), x + plain.pre["a"](x))


def test_mse_is_the_mean_squared_error():
    block, feats = make(recon_metric="mse"), features(UNEQUAL, dtype=torch.float64)
    feats["a"].data[0] = 0  # has no direction, but an error
    Z = {m: block.post[m](block._recompose(**p)) for m, p in block.parts(feats).items()}
    expected = sum(((feats[m] - block.P_recon[m](Z[m])) ** 2).mean() for m in UNEQUAL)
    torch.testing.assert_close(block(feats).losses["fusion.loss_recon"], expected)


def test_lambda_scales_the_loss_and_zero_drops_it():
    feats = features(UNEQUAL, dtype=torch.float64)
    one, three = make(), make(recon_weight=3.0)
    three.load_state_dict(one.state_dict())
    torch.testing.assert_close(
        three(feats).losses["fusion.loss_recon"], 3 * one(feats).losses["fusion.loss_recon"]
    )
    none = make(recon_weight=0)
    assert none(feats).losses == {}
    assert not any("P_recon" in name for name in none.state_dict())


@pytest.mark.parametrize(("options", "attached"), [({}, False), (dict(detach_target=False), True)])
def test_detached_target(options, attached):
    block = make(**options)
    V = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    recon = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    block._compare(V, recon, torch.ones(4, dtype=torch.bool))[0].sum().backward()
    assert (V.grad is not None and bool(V.grad.any())) == attached


@pytest.mark.parametrize("metric", ["cosine", "mse"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e15])
def test_what_is_not_compared_gets_a_gradient_of_exactly_zero(metric, compiled, scale):
    block = make(dict(a=6, b=6), torch.float32, recon_metric=metric, detach_target=False)
    V, recon = torch.randn(3, 6), torch.randn(3, 6) * scale
    V[0] = 0
    V[2] *= scale
    V, recon = V.requires_grad_(), recon.requires_grad_()
    compare = torch.compile(block._compare, backend="eager") if compiled else block._compare
    distance_B, similarity_B, _ = compare(V, recon, torch.zeros(3, dtype=torch.bool))
    assert not distance_B.any() and not similarity_B.any()
    distance_B.sum().backward()
    for x in (V, recon):
        assert x.grad.isfinite().all() and not x.grad.any()


def test_light_form_runs_narrow_and_reconstructs_the_full_width():
    widths = dict(a=16, b=8)
    block, feats = make(widths, width=0.25, out_channels=5), features(widths, dtype=torch.float64)
    assert block.pre["a"].swiglu.gate.in_features == 4
    assert block.P_recon["a"].out_features == 16
    assert block(feats).fused.shape == (4, 5)
    assert make(widths, width=dict(a=3, b=2)).readout(torch.zeros(1, 9)).shape == (1, 9)
    beside = make(widths, width=0.25, head_reads="post_and_input")
    assert beside(feats).fused.shape == (4, beside.out_channels) == (4, 4 + 2 + 2 + 2 + 16 + 8)


@pytest.mark.parametrize("rank", ["map", "clip"])
def test_a_map_is_a_set_of_vectors(rank):
    block = make(out_channels=5)
    feats = features(UNEQUAL, rank=rank, dtype=torch.float64)
    available = present(UNEQUAL, missing=dict(b=[1]))
    on_map = block(feats, available)
    flat = block({m: x.flatten(2).mT for m, x in feats.items()}, available)
    torch.testing.assert_close(on_map.fused.flatten(2).mT, flat.fused)
    torch.testing.assert_close(on_map.losses, flat.losses)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(recon_metric="l1"), "recon_metric"),
        (dict(head_reads="both"), "head_reads"),
        (dict(missing_neighbour="mean"), "missing_neighbour"),
        (dict(missing_neighbour="own"), "equal boundaries"),
        (dict(branch="half"), "branch"),
        (dict(recon_weight=-1), "recon_weight"),
        (dict(expansion=0), "expansion"),
        (dict(shared_ratio=0.0), "shared_ratio"),
        (dict(shared_ratio=1.0), "shared_ratio"),
        (dict(shared_ratio=dict(a=0.5)), "shared_ratio names"),
        (dict(width=dict(a=2)), "width names"),
        (dict(shared_ratio="half"), "shared_ratio must be a number"),
        (dict(width=0.01), "width of"),
        (dict(width=True), "width must be a number"),
        (dict(out_channels=0), "out_channels"),
        (dict(out_channels=2.5), "out_channels"),
        (dict(recon_weight=float("nan")), "recon_weight"),
        (dict(expansion=float("nan")), "expansion"),
        (dict(residual="no"), "residual"),
        (dict(exchange=1), "exchange"),
        (dict(detach_target="no"), "detach_target"),
        (dict(missing_fill="noise"), "missing_fill"),
        (dict(norm="batch"), "norm must be"),
        (dict(modality_dropout=1.5), "modality_dropout"),
    ],
)
def test_options_out_of_range_say_so(options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)


# --- gradients, precision, properties ------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, dict(norm=None), dict(residual=True, width=2)])
def test_gradcheck(options):
    widths = dict(a=3, b=2)
    block = make(widths, detach_target=False, **options)
    feats = features(widths, batch=2, dtype=torch.float64)
    available = present(widths, 2, missing=dict(b=[1]))

    def run(a, b):
        out = block(dict(a=a, b=b), available)
        return out.fused, out.losses["fusion.loss_recon"]

    assert torch.autograd.gradcheck(run, (feats["a"], feats["b"]))


def test_norm_lets_the_task_gradient_through():
    """The reason for the default: the literal stack passes almost nothing at initialisation."""
    norms = {}
    for norm in ("layer", None):
        torch.manual_seed(0)
        widths = dict(a=128, b=128)
        block = make(widths, torch.float32, norm=norm)
        head = torch.nn.Linear(block.out_channels, 10)
        feats = features(widths, 16)
        torch.nn.functional.cross_entropy(head(block(feats).fused), torch.arange(16) % 10).backward()
        norms[norm] = feats["a"].grad.norm().item()
    assert norms["layer"] > 100 * norms[None]


def test_bfloat16_autocast_keeps_the_reconstruction_in_full_precision():
    block, feats = make(dtype=torch.float32), features(UNEQUAL)
    with torch.autocast("cpu", torch.bfloat16):
        loss = block({m: x * 1e3 for m, x in feats.items()}).losses["fusion.loss_recon"]
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


def test_the_block_compiles_in_one_graph():
    block = make(modality_dropout=0.3, missing_fill="token").eval()
    feats = features(UNEQUAL, rank="map", dtype=torch.float64)
    available = present(UNEQUAL, missing=dict(b=[1]))
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    expected, found = block(feats, available), compiled(feats, available)
    torch.testing.assert_close(found.fused, expected.fused)
    torch.testing.assert_close(found.losses, expected.losses)


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(4, 8), min_size=2, max_size=4),
    rank=st.sampled_from(sorted(RANKS)),
    ratio=st.floats(0.3, 0.7),
    expansion=st.sampled_from([1, 1.5, 2, 4]),
    norm=st.sampled_from(["layer", None]),
    light=st.sampled_from([None, 0.5, 3]),
)
def test_any_widths_ranks_and_numbers_of_modalities(widths, rank, ratio, expansion, norm, light):
    named = {f"m{i}": C for i, C in enumerate(widths)}
    block = make(named, torch.float32, shared_ratio=ratio, expansion=expansion, norm=norm, width=light)
    feats = features(named, rank=rank)
    for gone in itertools.islice(named, 2):
        out = block(feats, present(named, missing={gone: [0]}))
        axis = 2 if rank == "sequence" else 1
        assert out.fused.shape[axis] == block.out_channels
        assert torch.isfinite(out.fused).all()
        assert 0 <= out.losses["fusion.loss_recon"] <= 2 * len(named)


def test_a_reconstruction_from_what_was_received_reads_the_neighbour_alone():
    names, widths = ["a", "b", "c"], dict(a=6, b=8, c=10)
    torch.manual_seed(0)
    feats = {m: torch.randn(5, C) for m, C in widths.items()}
    plain, other = SCFAE(names, widths), SCFAE(names, widths, recon_reads="received")
    other.load_state_dict(plain.state_dict())
    assert torch.equal(other(feats).fused, plain(feats).fused)
    distance = "fusion.recon_distance.a"
    known = other(feats).per_sample[distance]
    sent = other({**feats, "b": feats["b"].flip(0)}).per_sample[distance]
    changed = other({**feats, "c": feats["c"].flip(0)}).per_sample[distance]
    assert not torch.allclose(known, sent) and torch.equal(known, changed), "a reconstructs from what b sends"
    parts = other.parts(feats)["a"]
    alone = other.P_recon["a"](other.post["a"](torch.cat([torch.zeros_like(parts["specific"]), parts["shared"]], 1)))
    torch.testing.assert_close(known, 1 - torch.cosine_similarity(feats["a"], alone))
    there = {m: torch.ones(5, dtype=torch.bool) for m in names}
    there["b"] = torch.tensor([True, False, True, True, True])
    assert other(feats, there).per_sample[distance][1] == 0
