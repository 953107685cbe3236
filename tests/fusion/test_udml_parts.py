"""UDML's parts, each against a formulation of its own."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import RANKS, features
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from mmfusion_plugin.fusion.dependency import Dependency, response
from mmfusion_plugin.fusion.layers import ChannelBatchNorm
from mmfusion_plugin.fusion.noise_estimator import NoiseEstimator, noise_loss
from mmfusion_plugin.fusion.probabilistic import ProbabilisticEmbedding, kl_to_noise
from mmfusion_plugin.fusion.weighting import LAWS, FusionWeights, MonotoneCurve, correct_probability

AB = ("a", "b")
HERE = dict(a=torch.ones(3, dtype=torch.bool), b=torch.ones(3, dtype=torch.bool))


@pytest.mark.parametrize("rank", RANKS)
def test_batch_normalisation_counts_batch_and_positions_of_every_rank(rank):
    x = features(dict(a=5), rank=rank)["a"]
    channels = x if rank in ("vector", "sequence") else x.movedim(1, -1)
    rows = channels.reshape(-1, 5)
    expected = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()
    y = ChannelBatchNorm(5)(x)
    y = y if rank in ("vector", "sequence") else y.movedim(1, -1)
    torch.testing.assert_close(y.reshape(-1, 5), expected)


@pytest.mark.parametrize("rank", RANKS)
def test_training_samples_around_the_mean_and_evaluation_gives_it(rank):
    embedding = ProbabilisticEmbedding(6)
    x = features(dict(a=6), batch=400, rank=rank)["a"]
    mu, log_variance = embedding(x)
    assert mu.shape == log_variance.shape == x.shape
    log_variance = 4 * log_variance + 2
    z = (embedding.sample(mu, log_variance) - mu) / (0.5 * log_variance).exp()
    assert abs(z.mean().item()) < 0.1 and abs(z.std().item() - 1) < 0.1
    assert embedding.eval().sample(mu, log_variance) is mu


def test_the_variance_stays_finite_under_bfloat16():
    embedding = ProbabilisticEmbedding(4).to(torch.bfloat16)
    mu, log_variance = embedding(torch.full((2, 4), 1e30, dtype=torch.bfloat16))
    sigma = (0.5 * log_variance).exp()
    assert sigma.isfinite().all() and (1 / sigma.square()).isfinite().all()


def test_the_kl_is_torch_s_own_as_a_mean():
    mu, log_variance, level = torch.randn(4, 3, 2, 5), torch.randn(4, 3, 2, 5), torch.rand(4) + 0.1
    prior = Normal(torch.zeros_like(mu), level.sqrt().view(4, 1, 1, 1).expand_as(mu))
    expected = kl_divergence(Normal(mu, (0.5 * log_variance).exp()), prior).flatten(1).mean(1)
    torch.testing.assert_close(kl_to_noise(mu, log_variance, level), expected)
    with pytest.raises(ValueError, match="must be positive"):
        kl_to_noise(mu, log_variance, torch.tensor([1.0, 0.0, 1.0, 1.0]))


def test_the_kl_is_smallest_where_the_variance_is_the_level():
    mu, level = torch.zeros(1, 8), torch.tensor([3.0])
    values = [kl_to_noise(mu, torch.full((1, 8), math.log(v)), level).item() for v in (1.0, 2.0, 3.0, 4.0, 9.0)]
    assert values.index(min(values)) == 2 and values[2] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("detach", [True, False])
def test_the_estimate_shapes_the_features_only_where_asked(detach):
    estimator = NoiseEstimator([4, 6], detach=detach)
    sigmas = [torch.randn(3, 4, 8, 8, requires_grad=True), torch.randn(3, 6, 4, 4, requires_grad=True)]
    s = estimator(sigmas)
    assert s.shape == (3,) and (s > 0).all()
    if detach:
        s.sum().backward()
        assert all(x.grad is None for x in sigmas)
    else:
        assert all(g.abs().sum() > 0 for g in torch.autograd.grad(s.sum(), sigmas))
    with pytest.raises(ValueError, match="reads 2 levels, got 1"):
        estimator(sigmas[:1])


def test_the_estimator_learns_a_level_that_the_variance_shows():
    torch.manual_seed(0)
    estimator = NoiseEstimator(8, hidden=32)
    optimiser = torch.optim.Adam(estimator.parameters(), 1e-2)

    def draw(n):
        level = torch.rand(n) * 10
        return (torch.randn(n, 8) * 0.1 + (level * torch.linspace(0.05, 0.3, 8)[:, None]).T), level

    for _ in range(300):
        log_variance, level = draw(64)
        loss = noise_loss(estimator([log_variance]), level, torch.ones(64, dtype=torch.bool))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    log_variance, level = draw(200)
    ranks = [np.argsort(np.argsort(x)) for x in (estimator([log_variance]).detach().numpy(), level.numpy())]
    assert np.corrcoef(*ranks)[0, 1] > 0.95


def test_the_estimator_starts_where_it_is_told_and_learns_high_levels_in_few_steps():
    def levels_from(**options):
        torch.manual_seed(0)
        estimator = NoiseEstimator(16, **options)
        first = estimator([torch.randn(64, 16)]).mean().item()
        optimiser = torch.optim.AdamW(estimator.parameters(), 1e-3)
        seen = []
        for _ in range(100):
            level = torch.randint(0, 12, (64, )).clamp(min=1).float()
            log_variance = torch.randn(64, 16) * 0.3 + level[:, None] * 0.1
            loss = noise_loss(estimator([log_variance]), level, torch.ones(64, dtype=torch.bool))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            seen.append(loss.item())
        return first, sum(seen)

    (released, slow), (middle, quick) = levels_from(), levels_from(unit=11.0, start=5.5)
    assert abs(middle - 5.5) < 1.5 and 0.3 < released < 1.2
    assert quick < slow / 2
    for options in (dict(unit=0.0), dict(start=-1.0)):
        with pytest.raises(ValueError, match="positive level"):
            NoiseEstimator(4, **options)


def test_missing_modalities_do_not_count_in_the_noise_loss():
    s, level = torch.tensor([1.0, 5.0, torch.nan], requires_grad=True), torch.tensor([3.0, 5.0, 0.0])
    loss = noise_loss(s, level, torch.tensor([True, True, False]))
    assert loss.item() == pytest.approx(2.0)
    assert torch.autograd.grad(loss, s)[0].isfinite().all()
    nobody = noise_loss(s, level, torch.zeros(3, dtype=torch.bool))
    assert nobody.item() == 0 and nobody.requires_grad


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3, 2)])
def test_the_response_is_the_sum_of_absolute_logits(shape):
    logits = torch.randn(shape)
    values = logits.reshape(4, 5, -1).numpy()
    expected = [sum(abs(values[b, k]).mean() for k in range(5)) for b in range(4)]
    torch.testing.assert_close(response(logits), torch.tensor(np.array(expected, np.float32)))


def test_dependency_is_a_running_mean_over_the_samples_that_have_the_modality():
    dependency = Dependency(AB, momentum=0.25)
    here = dict(a=torch.tensor([True, True, True]), b=torch.tensor([True, False, True]))
    logits = dict(a=torch.tensor([[3.0, 3.0], [torch.nan, 1.0], [3.0, 3.0]]),
                  b=torch.tensor([[1.0, 1.0], [torch.inf, 9.0], [2.0, 2.0]]))
    dependency.update(logits, here)
    assert [dependency()[m].item() for m in AB] == [6.0, 3.0], "the first batch sets it"
    dependency.update(dict(a=torch.full((3, 2), -1.0), b=logits["b"]), dict(a=here["a"], b=torch.zeros(3) > 1))
    assert [dependency()[m].item() for m in AB] == [6 + 0.25 * (2 - 6), 3.0], "nobody had b"
    late = Dependency(AB, momentum=0.25)
    late.update(logits, dict(here, b=torch.zeros(3) > 1))
    late.update(logits, here)
    assert late()["b"] == 3, "its first batch"
    again = Dependency(AB)
    again.load_state_dict(dependency.state_dict())
    assert torch.equal(again.alpha_M, dependency.alpha_M)
    with pytest.raises(ValueError, match="expected one for each"):
        dependency.update(dict(a=logits["a"]), here)


def told(weights):
    """Both modalities' own heads are right with probability 1 - s / 20 at level s, of ten classes."""
    s = dict.fromkeys(AB, torch.arange(1.0, 12.0))
    weights.update_gain({m: 1 - s[m] / 20 for m in AB}, s, dict.fromkeys(AB, torch.ones(11).bool()), classes=10)


@pytest.mark.parametrize("law", LAWS)
def test_weights_follow_the_law_and_average_to_one(law):
    weights = FusionWeights(AB, law, temperature=2.0)
    s = dict(a=torch.tensor([1.0, 2.0, 4.0]), b=torch.tensor([1.0, 1.0, 3.0]))
    alpha = dict(a=torch.tensor(0.5), b=torch.tensor(2.0))
    if law == "expected_gain":
        told(weights)
    value = {"inverse_square": lambda m: s[m]**-2, "inverse": lambda m: 1 / s[m],
             "exponential": lambda m: (-s[m]).exp(),
             "learned_monotone": lambda m: (-weights.curves[m](s[m])).exp(),
             "expected_gain": lambda m: ((1 - s[m] / 20) / (s[m] / 20) / (0.1 / 0.9)).log()}[law]
    v = {m: (value(m) / alpha[m]).sqrt() for m in AB}  # temperature 2
    found = weights(s, alpha, HERE)
    for m in AB:
        torch.testing.assert_close(found[m], 2 * v[m] / (v["a"] + v["b"]))
    assert found["a"][0] > found["b"][0], "higher dependency, lower weight"


def test_a_missing_modality_weighs_nothing_and_the_rest_average_to_one():
    names = ("a", "b", "c")
    here = dict(a=torch.tensor([True, False]), b=torch.tensor([True, True]), c=torch.tensor([True, False]))
    s = {m: torch.tensor([1.0, torch.nan if m != "b" else 2.0]) for m in names}
    found = FusionWeights(names)(s, dict.fromkeys(names, torch.tensor(1.0)), here)
    assert [found[m][1].item() for m in names] == [0.0, 1.0, 0.0]
    torch.testing.assert_close(sum(found.values()), torch.tensor([3.0, 1.0]))


@given(st.lists(st.floats(0, 1e4), min_size=2, max_size=2), st.sampled_from(LAWS))
@settings(max_examples=60, deadline=None)
def test_less_noise_never_weighs_less(levels, law):
    weights = FusionWeights(AB, law)
    if law == "expected_gain":
        told(weights)
        s = {m: torch.rand(50) * 12 for m in AB}  # and so much noise that the raw means do not fall
        weights.update_gain({m: torch.rand(50) for m in AB}, s, dict.fromkeys(AB, torch.ones(50).bool()), classes=10)
    low, high = sorted(levels)
    s = dict(a=torch.tensor([low, high]), b=torch.ones(2))
    w = weights(s, dict.fromkeys(AB, torch.tensor(1.0)), {m: torch.ones(2, dtype=torch.bool) for m in AB})["a"]
    assert w.isfinite().all() and w[0] >= w[1] - 1e-6


def test_the_learned_curve_starts_at_zero_and_never_falls():
    curve = MonotoneCurve()
    torch.nn.init.normal_(curve.slopes, std=3)
    torch.nn.init.normal_(curve.knees, 5, 5)
    values = curve(torch.linspace(0, 20, 200))
    assert values[0] == 0 and (values.diff() >= -1e-5).all()


@pytest.mark.parametrize("law", LAWS)
def test_every_law_is_positive_and_finite_at_extremes_under_bfloat16(law):
    weights = FusionWeights(AB, law)
    if law == "expected_gain":
        told(weights)
    s = dict(a=torch.tensor([0.0, 3e4, 11.0], dtype=torch.bfloat16), b=torch.tensor([1.0, 1e-8, 11.0]).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        w = weights(s, dict.fromkeys(AB, torch.tensor(1.0)), HERE)
    for m in AB:
        assert w[m].dtype == torch.float32 and w[m].isfinite().all() and (w[m] >= 0).all()
    assert w["a"][2] > 0
    torch.testing.assert_close(w["a"] + w["b"], torch.full((3,), 2.0))


def test_each_modality_learns_a_curve_of_its_own():
    weights = FusionWeights(AB, "learned_monotone")
    s = dict(a=torch.tensor([1.0, 5.0, 9.0], requires_grad=True), b=torch.tensor([3.0, 3.0, 3.0]))
    optimiser = torch.optim.Adam(weights.parameters(), 0.1)
    alpha = dict.fromkeys(AB, torch.tensor(1.0))
    for _ in range(100):  # the task wants a, however noisy, and that b counts for less
        optimiser.zero_grad()
        loss = -weights(s, alpha, HERE)["a"].mean()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in weights.parameters())
        optimiser.step()
    slopes = {m: torch.nn.functional.softplus(weights.curves[m].slopes).sum() for m in AB}
    assert slopes["a"] < 0.15 < slopes["b"] and s["a"].grad is not None
    again = FusionWeights(AB, "learned_monotone")
    again.load_state_dict(weights.state_dict())
    assert torch.equal(again(s, alpha, HERE)["a"], weights(s, alpha, HERE)["a"])


def test_the_expected_gain_is_remembered_and_equal_before_anything_is_known():
    weights = FusionWeights(AB, "expected_gain")
    s = dict(a=torch.tensor([1.0, 5.0, 9.0]), b=torch.tensor([9.0, 5.0, 9.0]))
    alpha = dict.fromkeys(AB, torch.tensor(1.0))
    assert torch.equal(weights(s, alpha, HERE)["a"], torch.ones(3))
    weights.update_gain({m: 1 - s[m] / 20 for m in AB}, s, dict(HERE, b=~HERE["b"]), classes=10)
    assert torch.equal(weights(s, alpha, HERE)["a"], torch.ones(3)), "b's own head has told nothing"
    weights = FusionWeights(AB, "expected_gain")
    told(weights)
    again = FusionWeights(AB, "expected_gain")
    again.load_state_dict(weights.state_dict())
    assert torch.equal(again(s, alpha, HERE)["a"], weights(s, alpha, HERE)["a"])
    assert again(s, alpha, HERE)["a"][0] > 1
    with pytest.raises(ValueError, match="law='expected_gain' alone"):
        told(FusionWeights(AB))


def test_the_right_class_s_probability_is_a_mean_over_labelled_positions():
    logits, labels = torch.randn(3, 4, 2, 2), torch.randint(0, 4, (3, 4, 4))
    labels[0, 0, 0], labels[2] = 255, 255
    p = logits.softmax(1)
    corners = [(h, w) for h in range(2) for w in range(2)]
    expected = [
        np.mean([p[b, labels[b, 2 * h, 2 * w], h, w].item() for h, w in corners if labels[b, 2 * h, 2 * w] != 255])
        for b in range(2)]
    found = correct_probability(logits, labels)
    torch.testing.assert_close(found[:2], torch.tensor(np.array(expected, np.float32)))
    assert found[2].isnan()
    assert correct_probability(logits[:, :, 0, 0], torch.tensor([255, 4, -1])).isnan().all(), "no class of these four"
    torch.testing.assert_close(correct_probability(logits[:, :, 0, 0], labels[:, 1, 1])[1], p[1, labels[1, 1, 1], 0, 0])


@pytest.mark.parametrize(("build", "words"), [
    (lambda: FusionWeights(AB, "cube"), "law must be one of"),
    (lambda: FusionWeights(AB, "exponential", temperature=0), "temperature"),
    (lambda: Dependency(AB, 0.0), "momentum"),
    (lambda: ProbabilisticEmbedding(3, variance_norm="layer"), "variance_norm")])
def test_wrong_options_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_a_linear_estimate_comes_back_from_below_where_a_softplus_stays():
    def after(**options):
        torch.manual_seed(0)
        estimator = NoiseEstimator(4, **options)
        torch.nn.init.constant_(estimator.mlp[-1].bias, -30.0)  # one step too large
        optimiser = torch.optim.AdamW(estimator.parameters(), 3e-2)
        for _ in range(600):
            level = torch.randint(1, 12, (32,)).float()
            loss = noise_loss(estimator([level[:, None].log().expand(32, 4)]), level, torch.ones(32, dtype=torch.bool))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return loss.item()

    assert after(unit=11.0, start=5.5) < 2 < 30 < after()
