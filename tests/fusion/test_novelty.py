"""Novelty: distance from clean data in standard deviations, and the level that it is worth."""
from __future__ import annotations

import copy

import pytest
import torch
from cases import RANKS, features, present
from running import leave_group
from torch import multiprocessing

from mmfusion_plugin.fusion import FUSIONS, FusionOutput
from mmfusion_plugin.fusion.novelty import Novelty, disagreement, pooled
from mmfusion_plugin.fusion.running_normal import RunningNormal
from mmfusion_plugin.fusion.udml import UDML

WIDTHS = dict(a=8, b=12)
AB = tuple(WIDTHS)
CHANNELS = {m: [C] for m, C in WIDTHS.items()}


def correlated(number, C=16, seed=0):
    """Samples of one Gaussian with strong correlations and a mean far from 0."""
    mix = torch.randn(C, C, generator=torch.Generator().manual_seed(7))
    return torch.randn(number, C, generator=torch.Generator().manual_seed(seed)) @ mix + 30


def roc_area(clean, other):
    return (other[:, None] > clean[None]).float().mean().item()


def everyone(number):
    return {m: torch.ones(number, dtype=torch.bool) for m in AB}


def test_mean_covariance_and_distance_are_those_of_all_samples():
    x = correlated(4000)
    normal = RunningNormal(16, momentum=1e-6, shrinkage=0.0)
    for part in x.split(50):
        normal.update(part, torch.ones(len(part), dtype=torch.bool))
    torch.testing.assert_close(normal.mean_NC[0], x.mean(0), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(normal.covariance_NCC[0], x.T.cov(correction=0), atol=1e-2, rtol=1e-3)
    off = (x - x.mean(0)).double()
    expected = (off @ x.T.cov(correction=0).double().inverse() * off).sum(1).div(16).sqrt()
    torch.testing.assert_close(normal.distance(x), expected.float(), atol=0.02, rtol=0.02)


def test_half_precision_around_it_changes_no_statistic():
    cast, plain = RunningNormal(16).to(torch.float16), RunningNormal(16)
    for i in range(4):
        x, here = correlated(32, seed=i), torch.ones(32, dtype=torch.bool)
        plain.update(x, here)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast.update(x, here)
    assert all(torch.equal(x, cast.state_dict()[name]) for name, x in plain.state_dict().items())
    assert cast.count_N.dtype == cast.to(torch.bfloat16).covariance_NCC.dtype == torch.float32
    assert torch.equal(cast.distance(x), plain.distance(x))


def test_a_covariance_without_an_inverse_is_not_ready():
    normal = RunningNormal(2, bins=2, shrinkage=0.0)
    normal.count_N.fill_(10)
    normal.covariance_NCC.copy_(torch.stack([torch.eye(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])]))
    x = torch.tensor([[3.0, 3.0]])
    torch.testing.assert_close(normal.distance(x), torch.tensor([3.0]))


def test_a_channel_that_never_moved_has_a_thousandth_of_the_others_variance():
    normal = RunningNormal(2, shrinkage=0.0)
    x = torch.tensor([[3.0, 5.0], [-3.0, 5.0]])
    normal.update(x[:1], torch.ones(1, dtype=torch.bool))
    assert not normal.standardised(x).any(), "one sample is no spread"
    normal.update(x, torch.ones(2, dtype=torch.bool))
    least = normal.covariance_NCC[0, 0, 0] / 2 * 1e-3
    off = normal.mean_NC + torch.tensor([[0.0, 0.1]])
    torch.testing.assert_close(normal.distance(off), 0.1 / (2 * least).sqrt()[None])
    torch.testing.assert_close(normal.standardised(off)[:, 1], 0.1 / least.sqrt()[None])


def test_old_batches_are_forgotten():
    normal, here = RunningNormal(1, momentum=0.5), torch.ones(4, dtype=torch.bool)
    for value in (0.0, 6.0):
        normal.update(torch.full((4, 1), value), here)
    assert (normal.count_N.item(), normal.mean_NC.item()) == (6, 4) and normal.covariance_NCC.item() == pytest.approx(8)


def test_values_that_are_not_finite_teach_nothing():
    normal, sound = RunningNormal(3), RunningNormal(3)
    x, here = torch.randn(8, 3), torch.ones(8, dtype=torch.bool)
    sound.update(x[2:], here[2:])
    x[0, 1], x[1] = torch.nan, torch.inf
    normal.update(x, here)
    torch.testing.assert_close(normal.state_dict(), sound.state_dict())


def test_it_tells_a_shifted_distribution_that_no_single_channel_shows():
    normal = RunningNormal(16)
    for i in range(100):
        normal.update(correlated(32, seed=i), torch.ones(32, dtype=torch.bool))
    clean = correlated(500, seed=1000)
    _, axes = torch.linalg.eigh(clean.T.cov())
    faint = correlated(500, seed=1001) + axes[:, 0] * clean.std(0).mean()  # along the direction of least variance
    assert roc_area(normal.distance(clean), normal.distance(faint)) > 0.95
    assert roc_area(normal.distance(clean), normal.distance(clean * 0.5)) > 0.95


def test_fewer_samples_than_channels_dead_channels_and_wild_values_stay_finite():
    normal = RunningNormal(64)
    x = torch.randn(8, 64)
    x[:, :5] = 0
    normal.update(x, torch.ones(8, dtype=torch.bool))
    x[0], x[1, 0], x[2] = 1e38, torch.nan, -1e38
    with torch.autocast("cpu", torch.bfloat16):
        found = normal.distance(x.bfloat16())
    assert found.isfinite().all() and found.dtype == torch.float32 and found[0] > found[4]
    kept = copy.deepcopy(normal.state_dict())
    normal.update(x, torch.zeros(8, dtype=torch.bool))
    assert all(torch.equal(value, kept[name]) for name, value in normal.state_dict().items()), "nobody came"


@pytest.mark.parametrize("rank", RANKS)
def test_pooled_is_a_mean_over_positions(rank):
    x = features(WIDTHS, rank=rank)["a"]
    rows = x if rank in ("vector", "sequence") else x.movedim(1, -1)
    torch.testing.assert_close(pooled(x), rows.reshape(4, -1, 8).mean(1).detach())
    assert not pooled(x).requires_grad


def trained(number=120, **options):
    """Noise at level t adds its variance to every channel of a; b never changes."""
    novelty = Novelty(AB, CHANNELS, **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(number):
        level = torch.randint(1, 12, (64,), generator=generator).float() * (torch.rand(64, generator=generator) < 0.5)
        x = draw(level, generator)
        novelty(x, everyone(64), {}, dict(a=level, b=torch.zeros(64)))
    return novelty


def draw(level, generator):
    a, b = (torch.randn(len(level), C, generator=generator) for C in WIDTHS.values())
    return dict(a=[a * (1 + level[:, None] / 4)], b=[b])


def test_novelty_is_standardised_on_clean_data_and_grows_into_levels():
    novelty = trained()
    generator = torch.Generator().manual_seed(5)
    clean = novelty(draw(torch.zeros(2000), generator), everyone(2000), {})
    for m in AB:
        assert abs(clean[m].mean()) < 0.2 and abs(clean[m].std() - 1) < 0.2
    means = []
    for level in (3.0, 6.0, 9.0, 11.0, 20.0):
        z = novelty(draw(torch.full((500,), level), generator), everyone(500), {})
        means.append(novelty.level(z)["a"].mean().item())
    assert means == sorted(means) and abs(means[1] - 6) < 2 and abs(means[2] - 9) < 2 and means[4] > 11
    grid = torch.linspace(-3, 60, 400)
    for m in AB:
        rising = novelty.level(dict.fromkeys(AB, grid))[m]
        assert (rising.diff() >= -1e-4).all() and rising[0] == 1 and rising.max() <= 22
    quiet = novelty.level(clean)["a"]
    assert (quiet == 1).float().mean() > 0.9


def test_before_it_has_seen_anything_it_says_nothing():
    novelty = Novelty(AB, CHANNELS)
    z = novelty(draw(torch.zeros(6), torch.Generator().manual_seed(0)), everyone(6), {})
    assert all(not z[m].any() for m in AB)
    assert all((x == 1).all() for x in novelty.level(dict.fromkeys(AB, torch.full((3,), 50.0))).values())
    novelty(draw(torch.zeros(6), torch.Generator().manual_seed(0)), everyone(6), {}, dict.fromkeys(AB, torch.zeros(6)))
    assert not novelty.curve.count_MN.any(), "what says nothing yet has no level"


def test_clean_are_samples_of_the_clean_level_or_less():
    novelty = Novelty(AB, CHANNELS)
    level = torch.tensor([0.0, 1.0, 1.5, 11.0])
    novelty(draw(level, torch.Generator().manual_seed(0)), everyone(4), {}, dict.fromkeys(AB, level))
    assert novelty.features["a"][0].count_N == 2


def test_a_novelty_is_worth_the_level_whose_mean_it_is():
    novelty = Novelty(AB, CHANNELS, span=11.0, margin=2.0)
    level = novelty.curve.centre_N
    mean = 2 + level + level.square() / 4
    novelty.curve.sum_MN.copy_(mean.expand(2, -1))
    novelty.curve.count_MN.fill_(1.0)

    def worth(z):
        return novelty.level(dict.fromkeys(AB, z))["a"]

    torch.testing.assert_close(worth(mean), level.clamp(min=1))
    torch.testing.assert_close(worth((mean[1:] + mean[:-1]) / 2)[1:], (level[2:] + level[1:-1]) / 2)
    slope = 11 / (mean[-1] - mean[0])  # on beyond the largest level, up to twice the span
    torch.testing.assert_close(worth(mean[-1:] + 1), 11 + slope[None])
    assert worth(mean[-1:] + 1e3) == 22


def test_missing_modalities_and_batches_without_clean_samples_teach_nothing_wrong():
    novelty = trained(20)
    before = copy.deepcopy(novelty.features.state_dict())
    x = {m: [torch.full((4, C), torch.nan)] for m, C in WIDTHS.items()}
    nobody = {m: torch.zeros(4, dtype=torch.bool) for m in AB}
    z = novelty(x, nobody, {}, dict.fromkeys(AB, torch.zeros(4)))
    assert all(not z[m].any() for m in AB)
    novelty({m: [torch.randn(4, C) * 99] for m, C in WIDTHS.items()}, everyone(4), {},
            dict.fromkeys(AB, torch.full((4,), 7.0)))
    assert all(torch.equal(value, before[name]) for name, value in novelty.features.state_dict().items())


def test_it_resumes_where_it_was():
    novelty, x = trained(30), draw(torch.arange(12.0), torch.Generator().manual_seed(3))
    again = Novelty(AB, CHANNELS)
    again.load_state_dict(copy.deepcopy(novelty.state_dict()))
    levels = dict(a=torch.arange(12.0), b=torch.zeros(12))
    for _ in range(3):
        one, other = (part(x, everyone(12), {}, levels) for part in (novelty, again))
        assert all(torch.equal(one[m], other[m]) for m in AB)
        assert all(torch.equal(novelty.level(one)[m], again.level(other)[m]) for m in AB)


def _worker(rank, folder, batches):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    novelty = Novelty(AB, CHANNELS)
    for x, available, levels in batches:
        half = [slice(0, 10), slice(10, 32)][rank]
        novelty({m: [v[half] for v in x[m]] for m in AB}, {m: v[half] for m, v in available.items()}, {},
                {m: v[half] for m, v in levels.items()})
    torch.save(novelty.state_dict(), f"{folder}/{rank}.pth")
    leave_group()


def test_two_processes_give_the_statistics_of_one(tmp_path):
    generator = torch.Generator().manual_seed(0)
    batches = []
    for i in range(6):
        level = torch.randint(0, 12, (32,), generator=generator).float() * (torch.rand(32, generator=generator) < 0.5)
        level[10:] *= i > 2  # for a while the noise is on one rank alone
        available = dict(a=torch.rand(32, generator=generator) < 0.8, b=torch.arange(32) < 10)
        batches.append((draw(level, generator), available, dict(a=level, b=torch.zeros(32))))
    multiprocessing.spawn(_worker, (str(tmp_path), batches), nprocs=2)
    novelty = Novelty(AB, CHANNELS)
    for x, available, levels in batches:
        novelty(x, available, {}, levels)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        torch.testing.assert_close(found, dict(novelty.state_dict()), atol=1e-4, rtol=1e-4)


def test_disagreement_with_the_mean_of_the_others():
    logits = {m: torch.randn(3, 5) for m in "abc"}
    here = {m: torch.ones(3, dtype=torch.bool) for m in "abc"} | dict(c=torch.tensor([True, False, False]))
    here["b"] = torch.tensor([True, True, False])
    found = disagreement(logits, here)
    p = {m: x.softmax(1) for m, x in logits.items()}
    rest = torch.stack([(p["b"][0] + p["c"][0]) / 2, p["b"][1]])
    middle = (p["a"][:2] + rest) / 2
    js = ((p["a"][:2] * (p["a"][:2] / middle).log()).sum(1) + (rest * (rest / middle).log()).sum(1)) / 2
    torch.testing.assert_close(found["a"][:2], js)
    assert found["a"][2] == 0 and found["c"][1] == 0
    maps = {m: torch.randn(2, 5, 4, 3) for m in AB}
    one = disagreement(maps, everyone(2))["a"]
    apart = disagreement({m: x.flatten(2).mT.flatten(0, 1) for m, x in maps.items()}, everyone(24))["a"]
    torch.testing.assert_close(one, apart.reshape(2, 12).mean(1))


class Catch(torch.nn.Module):
    """An inner fusion that keeps what it gets."""

    def forward(self, feats, available):
        self.feats = feats
        return FusionOutput(torch.cat([feats[m] for m in AB], 1))


def test_udml_takes_the_larger_of_estimate_and_novelty():
    model = UDML(AB, WIDTHS, Catch(), quality="given", law="inverse", temperature=1.0, dependency=False,
                 embedding=False, novelty=["distance"])
    model.set_progress(1.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        level = torch.randint(1, 12, (64,), generator=generator).float() * (torch.rand(64, generator=generator) < 0.5)
        x = {m: v[0] for m, v in draw(level, generator).items()}
        out = model(x, None, dict(a=level, b=torch.zeros(64)))
    assert "fusion.novelty.a" in out.diagnostics and out.per_sample["fusion.level.a"].shape == (64,)
    model.eval()
    x = {m: v[0] for m, v in draw(torch.zeros(200), generator).items()}
    x["b"][:100] += 6  # a fault of b that no estimator was taught, said to be clean
    out = model(x, None, dict.fromkeys(AB, torch.zeros(200)))
    weight = out.per_sample["fusion.weight.b"]
    assert weight[:100].max() < 0.8 and (weight[100:] == 1).float().mean() > 0.8
    level = {m: out.per_sample[f"fusion.level.{m}"] for m in AB}
    torch.testing.assert_close(weight, 2 / level["b"] / (1 / level["a"] + 1 / level["b"]))
    plain = {name for name in model.state_dict() if "novelty" not in name}
    again = UDML(AB, WIDTHS, Catch(), quality="given", law="inverse", dependency=False, form="multiplicative",
                 embedding=False, novelty=None)
    assert set(again.state_dict()) == plain, "off leaves nothing behind"


@pytest.mark.parametrize("rank", RANKS)
def test_scfaes_residual_is_a_signal(rank):
    model = UDML(AB, WIDTHS, FUSIONS["SCFAE"](AB, WIDTHS), reads=["variance"],
                 novelty=["distance", "reconstruction"], modality_dropout=0.5)
    model.set_progress(1.0)
    levels = dict(a=torch.tensor([0.0, 3.0, 0.0, 9.0]), b=torch.zeros(4))
    for _ in range(4):
        out = model(features(WIDTHS, rank=rank), present(AB, missing=dict(b=[0])), levels)
    assert all(out.diagnostics[f"fusion.novelty.{m}"].isfinite() for m in AB)
    assert model.novelty.scale["a"]["reconstruction"].ready and model.inner.training
    step = int(model.modality_dropout.step)
    assert step == 4, "asking for the residual draws nothing"
    out.fused.mean().backward()
    per_sample = out.per_sample["fusion.recon_distance.a"]
    kept = per_sample[per_sample != 0]  # the others were dropped
    torch.testing.assert_close(kept.mean(), out.diagnostics["fusion.recon_distance.a"], atol=1e-5, rtol=1e-5)


def test_asking_for_the_residual_leaves_the_inner_fusion_s_statistics():
    inner = FUSIONS["SCFAE"](AB, WIDTHS, missing_fill="mean")
    model = UDML(AB, WIDTHS, inner, reads=["variance"], embedding=False, novelty=["reconstruction"])
    x = features(WIDTHS)
    model(x)
    torch.testing.assert_close(inner.missing_fill.mean_a, 0.1 * x["a"].detach().mean(0), msg="counted once")


def test_wrong_options_are_named():
    for options, words in ((dict(novelty="distance"), "list of"), (dict(novelty=[]), "list of"),
                           (dict(novelty=["odd"]), "list of"), (dict(novelty=["distance"], quality=None), "quality"),
                           (dict(novelty=["distance"], novelty_margin=-1), "novelty_margin")):
        with pytest.raises(ValueError, match=words):
            UDML(AB, WIDTHS, Catch(), **options)
    with pytest.raises(ValueError, match="SCFAE with recon_weight > 0"):
        UDML(AB, WIDTHS, Catch(), reads=["variance"], novelty=["reconstruction"])(features(WIDTHS))
    with pytest.raises(ValueError, match="needs disagreements"):
        UDML(AB, WIDTHS, Catch(), reads=["variance"], novelty=["disagreement"])(features(WIDTHS))
    for options in (dict(momentum=0.0), dict(shrinkage=2.0)):
        with pytest.raises(ValueError, match="momentum|shrinkage"):
            RunningNormal(3, **options)
