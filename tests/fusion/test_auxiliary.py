"""The comparators' losses against formulas written out, and what they leave alone in SCFAE."""
from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from fusion.cases import features, present

from mmfusion_plugin.fusion import SCFAE, SCFAEAuxiliary
from mmfusion_plugin.fusion.auxiliary import ClubBound, contrastive_loss, orthogonality_loss

WIDTHS = {"a": 6, "b": 4, "c": 5}
KINDS = ("contrastive", "mutual_information", "orthogonality")


def block(auxiliary: str, **options) -> SCFAEAuxiliary:
    torch.manual_seed(0)
    return SCFAEAuxiliary(list(WIDTHS), WIDTHS, auxiliary=auxiliary, **options).double()


def test_the_contrastive_loss_is_a_loop_over_pairs():
    torch.manual_seed(0)
    x, y = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    odds = [[math.exp(float(torch.cosine_similarity(x[i], y[j], dim=0)) / 0.2) for j in range(5)] for i in range(5)]
    rows = [-math.log(odds[i][i] / sum(odds[i])) for i in range(5)]
    columns = [-math.log(odds[i][i] / sum(row[i] for row in odds)) for i in range(5)]
    assert float(contrastive_loss(x, y, 0.2)) == pytest.approx((sum(rows) + sum(columns)) / 10)


def test_orthogonality_is_0_for_uncorrelated_parts_and_1_for_one_direction():
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None]
    other = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    assert float(orthogonality_loss(sign, other)) == pytest.approx(0)
    assert float(orthogonality_loss(sign, 3 * sign + 7)) == pytest.approx(1)


def test_orthogonality_is_a_loop_over_channels_and_does_not_grow_with_the_batch():
    torch.manual_seed(0)
    x, y = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    X, Y = ((z - z.mean(0)) / (z - z.mean(0)).norm(dim=1, keepdim=True) for z in (x, y))
    expected = sum(float((X[:, c] * Y[:, d]).sum()) ** 2 for c in range(3) for d in range(2)) / 49
    assert float(orthogonality_loss(x, y)) == pytest.approx(expected)
    assert float(orthogonality_loss(torch.cat([x, x]), torch.cat([y, y]))) == pytest.approx(expected)


def test_the_bound_is_the_mean_over_all_pairs_and_leaves_its_own_network_alone():
    torch.manual_seed(0)
    bound = ClubBound(3, 2).double()
    x, y = torch.randn(6, 3).double().requires_grad_(), torch.randn(6, 2).double().requires_grad_()
    mean, raw = bound.q(x).chunk(2, 1)
    q = torch.distributions.Normal(mean, (raw.tanh() * 5 / 2).exp())
    together = q.log_prob(y).mean()
    apart = torch.stack([q.log_prob(y[j].expand(6, 2)).mean() for j in range(6)]).mean()
    found, fit = bound(x, y)
    torch.testing.assert_close(found, together - apart)
    torch.testing.assert_close(fit, -together)
    assert torch.autograd.grad(found, list(bound.parameters()), retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(fit, [x, y], retain_graph=True, allow_unused=True) == (None, None)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(found, [x, y]))


def test_information_is_never_negative():
    """Below 0 the bound would only lead encoders away from its network."""
    bound = ClubBound(2, 2)
    torch.nn.init.eye_(bound.q[0].weight)
    torch.nn.init.zeros_(bound.q[0].bias)
    with torch.no_grad():
        bound.q[2].weight.copy_(torch.cat([torch.eye(2), torch.zeros(2, 2)]))
        bound.q[2].bias.zero_()
    x = torch.eye(2)
    assert bound(x, x)[0] > 0.1, "q says y = x"
    swapped = x.flip(0).requires_grad_()
    found = bound(x, swapped)[0]
    assert found == 0 and not torch.autograd.grad(found, swapped)[0].any()


def test_a_fitted_bound_finds_dependence_and_lets_independence_be():
    torch.manual_seed(0)
    x, noise = torch.randn(512, 1), torch.randn(512, 1)
    found = {}
    for name, y in (("dependent", x + 0.3 * noise), ("independent", noise)):
        torch.manual_seed(1)
        bound = ClubBound(1, 1)
        bound.q[0] = torch.nn.Linear(1, 16)
        bound.q[2] = torch.nn.Linear(16, 2)
        optimizer = torch.optim.Adam(bound.parameters(), lr=0.02)
        for _ in range(150):
            optimizer.zero_grad()
            bound(x, y)[1].backward()
            optimizer.step()
        found[name] = float(bound(x, y)[0])
    true = math.log(1.09 / 0.09) / 2  # of two Gaussians, nats
    assert found["dependent"] > true - 0.2 and abs(found["independent"]) < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_the_block_is_scfaes_but_for_the_loss(kind):
    own, feats = block(kind), features(WIDTHS, 5, dtype=torch.float64)
    plain = SCFAE(list(WIDTHS), WIDTHS, recon_weight=0).double()
    plain.load_state_dict({k: v for k, v in own.state_dict().items() if not k.startswith("bounds.")})
    found = own(feats)
    torch.testing.assert_close(found.fused, plain(feats).fused)
    expected = {f"fusion.loss_{kind}"} | ({"fusion.loss_bound_fit"} if kind == "mutual_information" else set())
    assert set(found.losses) == expected
    heavy = block(kind, auxiliary_weight=3.0)(feats)
    torch.testing.assert_close(heavy.losses[f"fusion.loss_{kind}"], 3 * found.losses[f"fusion.loss_{kind}"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", ["vector", "sequence", "map", "clip"])
def test_a_missing_modality_takes_no_part_and_every_parameter_keeps_a_gradient(kind, rank):
    own, feats = block(kind, out_channels=3), features(WIDTHS, 6, rank, torch.float64)
    available = present(WIDTHS, 6, {"b": [0, 1, 2, 3, 4]})
    with torch.no_grad():
        feats["b"][:5] = math.nan
    found = own(feats, available)
    (found.fused.square().mean() + sum(found.losses.values())).backward()
    assert torch.isfinite(found.losses[f"fusion.loss_{kind}"])
    for name, p in own.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
    assert (feats["b"].grad[:5] == 0).all()


def test_the_loss_of_one_pair_is_that_of_the_samples_that_have_both():
    torch.manual_seed(0)
    own = SCFAEAuxiliary(["a", "b"], dict(a=6, b=4), auxiliary="contrastive").double()
    feats = features(dict(a=6, b=4), 5, dtype=torch.float64)
    found = own(feats, present("ab", 5, {"a": [1]})).losses["fusion.loss_contrastive"]
    kept = [0, 2, 3, 4]
    parts = own.parts({m: x[kept] for m, x in feats.items()})
    torch.testing.assert_close(found, contrastive_loss(parts["a"]["shared"], parts["b"]["shared"]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_part_counts_where_its_neighbour_is(kind):
    own, feats = block(kind), features(WIDTHS, 9, dtype=torch.float64)
    here = present(WIDTHS, 9, dict(a=[0, 1], b=[2, 3], c=[4, 5]))
    parts, source = own.parts(feats, here), dict(a="b", b="c", c="a")

    def over(loss, x, y, *names):
        rows = torch.stack([here[m] for m in names]).all(0)
        return loss(x[rows], y[rows])

    pairs = list(combinations(WIDTHS, 2))
    if kind == "contrastive":
        terms = [over(contrastive_loss, parts[m]["shared"], parts[k]["shared"], source[m], source[k]) for m, k in pairs]
    elif kind == "mutual_information":
        normed = {m: [F.layer_norm(x, x.shape[1:]) for x in (p["shared"], p["specific"])] for m, p in parts.items()}
        terms = [over(own.bounds[m], *normed[m], m, source[m])[0] for m in WIDTHS]
    else:
        terms = [over(orthogonality_loss, parts[m]["specific"], parts[k]["specific"], m, k) for m, k in pairs]
        terms += [over(orthogonality_loss, *parts[m].values(), m, source[m]) for m in WIDTHS]
    torch.testing.assert_close(own(feats, here).losses[f"fusion.loss_{kind}"], torch.stack(terms).mean())


@pytest.mark.parametrize(("options", "message"), [
    (dict(auxiliary="none"), "auxiliary must be one of"), (dict(auxiliary_weight=0), "auxiliary_weight must be"),
    (dict(auxiliary_weight=True), "auxiliary_weight must be")])
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SCFAEAuxiliary(["a", "b"], dict(a=2, b=2), **options)
