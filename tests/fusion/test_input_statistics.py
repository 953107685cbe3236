"""Texture of inputs: what noise, blur and occlusion do to it, and what tells known from unknown noise."""
from __future__ import annotations

import copy

import pytest
import torch
from running import leave_group
from torch import multiprocessing

from mmfusion_plugin.fusion import FUSIONS, FusionOutput
from mmfusion_plugin.fusion.cells import Cells
from mmfusion_plugin.fusion.input_statistics import NUM_STATISTICS, input_statistics
from mmfusion_plugin.fusion.noise_estimator import NoiseEstimator, noise_loss
from mmfusion_plugin.fusion.novelty import KnownNoise
from mmfusion_plugin.fusion.running_normal import RunningNormal
from mmfusion_plugin.fusion.udml import UDML

AB = ("a", "b")


def scenes(number, seed=0, size=32):
    """Smooth pictures (B, 3, size, size) of about unit deviation."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(number, 3, size // 8 + 1, size // 8 + 1, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear", align_corners=True)
    return smooth + 0.05 * torch.randn(smooth.shape, generator=generator)


def noisy(x, level_B, seed=0):
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return x + 0.1 * level_B.reshape(-1, *[1] * (x.ndim - 1)) * noise


def roc_area(low, high):
    return (high[:, None] > low[None]).float().mean().item()


@pytest.mark.parametrize(
    "shape", [(4, 7), (4, 1), (4, 2, 800), (4, 1, 5), (4, 3, 16, 24), (4, 1, 1, 9), (4, 3, 2, 8, 8)])
def test_every_rank_and_size_gives_finite_numbers_of_each_sample_alone(shape):
    x = torch.randn(shape)
    found = input_statistics(x)
    assert found.shape == (4, NUM_STATISTICS) and found.isfinite().all() and not found.requires_grad
    torch.testing.assert_close(input_statistics(x[2:3]), found[2:3])
    x[1] = torch.nan
    torch.testing.assert_close(input_statistics(x)[2:], found[2:])
    assert input_statistics(x).isfinite().all() and input_statistics(x.bfloat16()).dtype == torch.float32


def test_the_bands_are_haar_s():
    x = torch.randn(2, 1, 4, 4)
    found = input_statistics(x)
    pairs = x.reshape(2, 2, 2, 2, 2)  # rows, within, columns, within
    horizontal = (pairs[:, :, :, :, 0] - pairs[:, :, :, :, 1]).sum(2) / 2
    torch.testing.assert_close(found[:, 0], x.mean((1, 2, 3)))
    torch.testing.assert_close(found[:, 1], x.flatten(1).std(1, unbiased=False).log())
    torch.testing.assert_close(found[:, 2], horizontal.abs().mean((1, 2)).log())
    torch.testing.assert_close(found[:, 3], horizontal.square().mean((1, 2)).sqrt().log())
    line = torch.tensor([[[1.0, 3.0, 2.0, 2.0]]])
    assert input_statistics(line)[0, 4] == 0.5, "one of two differences is 0"
    with pytest.raises(ValueError, match="input statistics take"):
        input_statistics(torch.randn(3))


def taught(steps=120, **options):
    known = KnownNoise(AB, NUM_STATISTICS, **options)
    generator = torch.Generator().manual_seed(1)
    for i in range(steps):
        level = torch.randint(1, 12, (32,), generator=generator).float() * (torch.rand(32, generator=generator) < 0.5)
        x = scenes(32, seed=i)
        statistics = dict(a=input_statistics(noisy(x, level, i)), b=input_statistics(x))
        known(statistics, everyone(32), dict(a=level, b=torch.zeros(32)))
    return known


def everyone(number):
    return {m: torch.ones(number, dtype=torch.bool) for m in AB}


@pytest.fixture(scope="module")
def known_noise():
    return taught()


def faults():
    x = scenes(200, seed=1001)
    hidden = x.clone()
    hidden[:, :, 4:20, 8:24] = -2
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    speckled = torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.1, 3.0, x)
    return dict(hidden=hidden, blurred=blurred, speckled=speckled, louder=noisy(x, torch.full((200,), 22.0)))


@pytest.mark.parametrize("fault", faults())
def test_what_training_never_showed_is_novel_and_clean_and_known_noise_are_not(known_noise, fault):
    clean = input_statistics(scenes(200, seed=1000))
    usual, worth = known_noise(dict(a=clean, b=clean), everyone(200))
    other = input_statistics(faults()[fault])
    novel, cost = known_noise(dict(a=other, b=clean), everyone(200))
    assert roc_area(usual["a"], novel["a"]) > 0.95
    scale = known_noise.scale["a"]
    home = scale.mean_NC[0, 0] + 2 * scale.covariance_NCC[0, 0, 0].sqrt()
    doublings = (known_noise.inputs["a"].distance(other).log2() - home).clamp(min=0)
    torch.testing.assert_close(cost["a"], (1 + 11 * doublings).clamp(max=44), atol=1e-3, rtol=1e-3)
    assert (worth["a"] == 1).float().mean() > 0.85 and cost["a"].median() > 8 and cost["a"].max() <= 44
    for level in (1.0, 6.0, 11.0):
        x = input_statistics(noisy(scenes(200, seed=1002), torch.full((200,), level), 7))
        assert (known_noise(dict(a=x, b=x), everyone(200))[1]["a"] < 3).float().mean() > 0.8


def test_before_anything_is_known_nothing_is_novel_and_a_missing_modality_never_is(known_noise):
    x = dict.fromkeys(AB, input_statistics(faults()["hidden"]))
    for part, here in ((KnownNoise(AB, NUM_STATISTICS), everyone(200)),
                       (known_noise, {m: ~v for m, v in everyone(200).items()})):
        novelty, worth = part(x, here)
        assert all(not novelty[m].any() and (worth[m] == 1).all() for m in AB)
    fresh = KnownNoise(AB, NUM_STATISTICS)
    fresh(x, everyone(200), dict.fromkeys(AB, torch.full((200,), 5.6)))
    assert fresh.scale["a"].count_N == 0, "no distance is known yet"
    assert fresh.inputs["a"].count_N.tolist() == [0.0] * 6 + [200.0] + [0.0] * 5
    before = copy.deepcopy(known_noise.state_dict())
    known_noise(x, {m: ~v for m, v in everyone(200).items()}, dict.fromkeys(AB, torch.zeros(200)))
    assert all(torch.equal(value, before[name]) for name, value in known_noise.state_dict().items())


def test_the_estimate_follows_the_level_at_low_ones_too():
    torch.manual_seed(0)
    estimator = NoiseEstimator([], unit=11.0, start=5.5, statistics=NUM_STATISTICS)
    optimizer = torch.optim.AdamW(estimator.parameters(), lr=3e-3)
    for i in range(250):
        level = torch.randint(1, 12, (32,)).float() * (torch.rand(32) < 0.5)
        x = input_statistics(noisy(scenes(32, seed=i), level, i))
        estimator.learn(x, torch.ones(32, dtype=torch.bool))
        loss = noise_loss(estimator((), statistics=x), level.clamp(min=1), torch.ones(32, dtype=torch.bool))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    means = []
    for level in (0, 2, 4, 6, 8, 11):
        x = input_statistics(noisy(scenes(100, seed=999), torch.full((100,), float(level)), 5))
        means.append(estimator((), statistics=x).mean().item())
    assert means == sorted(means) and all(abs(a - b) < 1 for a, b in zip(means, (1, 2, 4, 6, 8, 11)))
    mean = estimator.scale.mean_NC
    torch.testing.assert_close(estimator((), statistics=mean + 100), estimator((), statistics=mean + 1000))
    with pytest.raises(ValueError, match="reads 29 statistics"):
        estimator(())
    with pytest.raises(ValueError, match="nothing to read"):
        NoiseEstimator([])


class Catch(torch.nn.Module):
    def forward(self, feats, available):
        self.feats = feats
        return FUSIONS["SumFusion"](AB, dict(a=4, b=4), out_channels=4)(feats, available)


def test_udml_weighs_an_unknown_fault_less_and_says_what_it_needs():
    model = UDML(AB, dict(a=4, b=4), Catch(), quality="given", dependency=False)
    model.known = taught()
    model.set_progress(1.0)
    model.eval()
    feats = dict.fromkeys(AB, torch.randn(200, 4))
    clean = input_statistics(scenes(200, seed=1000))
    out = model(feats, None, dict.fromkeys(AB, torch.zeros(200)),
                statistics=dict(a=input_statistics(faults()["hidden"]), b=clean))
    assert out.per_sample["fusion.weight.a"].median() < 0.5
    assert out.diagnostics["fusion.novelty.a"] > 5 > out.diagnostics["fusion.novelty.b"]
    with pytest.raises(ValueError, match=r"statistics=\{m: input_statistics\(x\)\}"):
        model(feats)
    plain = UDML(AB, dict(a=4, b=4), Catch(), reads=["variance"], novelty=None)
    assert not plain.reads_statistics and plain(feats).fused.shape == (200, 4)
    for reads in ("input", ["odd"], []):
        with pytest.raises(ValueError, match="reads must be a list"):
            UDML(AB, dict(a=4, b=4), Catch(), reads=reads)


def test_bins_are_normals_of_their_own():
    x, bins = torch.randn(600, 5), torch.arange(600) % 3
    x[bins == 1] = x[bins == 1] * 3 + 10
    whole = RunningNormal(5, bins=4)
    alone = RunningNormal(5)
    here = torch.ones(600, dtype=torch.bool)
    for part in torch.arange(600).split(60):
        whole.update(x[part], here[part], bins[part])
        alone.update(x[part][bins[part] == 1], here[: int((bins[part] == 1).sum())])
    torch.testing.assert_close(whole.mean_NC[1], alone.mean_NC[0])
    torch.testing.assert_close(whole.covariance_NCC[1], alone.covariance_NCC[0])
    assert whole.count_N[3] == 0 and whole.distance(x).median() < 1.1
    assert alone.distance(x[bins == 0]).min() > 2 and whole.distance(x[bins == 0]).max() < 2
    far = torch.full((1, 5), 60.0)
    whole.update(far, here[:1], torch.tensor([3]))
    assert whole.distance(far) > 10, "one sample is no spread"
    with pytest.raises(ValueError, match="at least one bin"):
        RunningNormal(5, bins=0)


def _worker(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    known = KnownNoise(AB, NUM_STATISTICS)
    for x, available, levels in _batches():
        half = [slice(0, 5), slice(5, 16)][rank]
        known(*({m: v[half] for m, v in part.items()} for part in (x, available, levels)))
    torch.save(known.state_dict(), f"{folder}/{rank}.pth")
    leave_group()


def _batches():
    for i in range(5):
        level = torch.arange(16.0) % 12 * (i > 1)
        x = dict(a=input_statistics(noisy(scenes(16, seed=i), level, i)), b=input_statistics(scenes(16, seed=i + 50)))
        yield x, dict(a=torch.arange(16) != i, b=torch.arange(16) < 5), dict(a=level, b=torch.zeros(16))


def test_two_processes_know_what_one_does(tmp_path):
    multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    known = KnownNoise(AB, NUM_STATISTICS)
    for batch in _batches():
        known(*batch)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        inputs = {name: value for name, value in found.items() if name.startswith("inputs")}
        torch.testing.assert_close(
            inputs, {name: value for name, value in known.state_dict().items() if name in inputs}, atol=1e-4, rtol=1e-3)


def test_the_cells_of_a_grid_have_statistics_of_their_own():
    x = scenes(3)
    cells = input_statistics(x, grid=(4, 2))
    assert cells.shape == (3, NUM_STATISTICS, 4, 2)
    torch.testing.assert_close(input_statistics(x, grid=(1, 1))[..., 0, 0], input_statistics(x))
    torch.testing.assert_close(cells[:, 2:, 1, 1], input_statistics(x[:, :, 8:16, 16:])[:, 2:])
    changed = x.clone()
    changed[:, :, 24:, :16] = 0
    same = (input_statistics(changed, grid=(4, 2))[:, 2:] == cells[:, 2:]).all(1)
    assert same[:, :3].all() and same[:, 3, 1].all() and not same[:, 3, 0].any()
    with pytest.raises(ValueError, match="grid's cells take"):
        input_statistics(torch.randn(2, 3, 8), grid=(2, 2))


def test_an_estimate_of_a_cell_reads_the_mean_sigma_of_its_positions():
    fine, coarse = torch.randn(2, 4, 6, 4), torch.randn(2, 8, 3, 2)
    found = Cells((3, 2)).pooled(dict.fromkeys(AB, (fine, coarse)))["a"]
    sigma = (0.5 * fine).exp().reshape(2, 4, 3, 2, 2, 2).mean((3, 5))
    torch.testing.assert_close((0.5 * found[0]).exp(), sigma.permute(0, 2, 3, 1).reshape(12, 4))
    torch.testing.assert_close(found[1], coarse.permute(0, 2, 3, 1).reshape(12, 8))


def test_a_fault_of_one_part_costs_that_part():
    torch.manual_seed(0)

    class Keep(torch.nn.Module):
        def forward(self, feats, available):
            self.feats = feats
            return FusionOutput(feats["a"][0] + feats["b"][0])

    keep = Keep()
    model = UDML(AB, dict(a=[4, 8], b=[4, 8]), keep, reads=["input"], per_position=True, dependency=False,
                 embedding=False, weights_from=0.0)
    optimizer = torch.optim.AdamW(model.estimate.parameters(), lr=3e-3)
    feats = {m: (torch.ones(16, 4, 8, 8), torch.ones(16, 8, 4, 4)) for m in AB}

    def told(a, b):
        return {m: input_statistics(x, model.grid(feats)) for m, x in (("a", a), ("b", b))}

    for i in range(150):
        level = torch.arange(16.0) % 12 * (torch.arange(16) % 2)
        x = scenes(16, seed=i)
        out = model(feats, None, dict(a=level, b=torch.zeros(16)), statistics=told(noisy(x, level, i), x))
        optimizer.zero_grad()
        out.losses["fusion.loss_noise"].backward()
        optimizer.step()
    model.eval()
    x = scenes(16, seed=999)
    hidden = x.clone()
    hidden[:, :, :, 16:] = -2
    out = model(feats, None, None, statistics=told(hidden, x))
    weight = keep.feats["a"][0][:, 0]  # the features are 1
    assert weight.shape == (16, 8, 8) and weight[..., 5:].median() < 0.7 < 0.9 < weight[..., :3].median() < 1.1
    torch.testing.assert_close(keep.feats["a"][0] + keep.feats["b"][0], torch.full((16, 4, 8, 8), 2.0))
    torch.testing.assert_close(out.per_sample["fusion.weight.a"], keep.feats["a"][1][:, 0].mean((1, 2)))
    with pytest.raises(ValueError, match=r"expected \(B, 29, 4, 4\)"):
        model(feats, statistics=dict.fromkeys(AB, torch.zeros(16, NUM_STATISTICS)))
    with pytest.raises(ValueError, match="cells of maps"):
        model({m: (torch.ones(2, 4), torch.ones(2, 8)) for m in AB}, statistics=dict.fromkeys(AB, torch.zeros(2, 29)))
    with pytest.raises(ValueError, match="per_position needs"):
        UDML(AB, dict(a=4, b=4), keep, per_position=True, quality="given")
