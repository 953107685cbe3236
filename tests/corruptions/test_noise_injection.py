from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from corruptions.sensors import readings
from hypothesis import given, settings
from hypothesis import strategies as st
from without import python

from mmfusion_plugin.corruptions import CORRUPTIONS, NoiseInjection

NAMES = ["visual", "depth", "audio"]
TYPES = list(CORRUPTIONS)
NOISE = dict(
    visual=dict(
        kind="image", levels=(1, 11), types=["gaussian", "blur"],
        scale=dict(gaussian=10.0, blur=0.5, occlusion=0.05),
    ),
    audio=dict(
        kind="waveform", levels=(1, 11), types=["sound_snr"],
        scale=dict(sound_snr=-3.0, time_masking=0.05), offset=dict(sound_snr=30.0),
    ),
    depth=dict(kind="depth", levels=(1, 11), scale=dict(gaussian=0.05), valid_range=(0.1, 10.0)),
)
KINDS = dict(visual="image", depth="depth", audio="waveform")


def injection(names=NAMES, seed=7, noise=None, **options):
    return NoiseInjection(names, {m: NOISE[m] for m in names} if noise is None else noise, seed=seed, **options)


def sensors(batch=4, names=NAMES, seed=0):
    return {m: readings(KINDS[m], batch, seed=seed) for m in names}


def tiny(batch):
    """Many samples of one pixel each, for statistics of the draws."""
    return dict(visual=torch.full((batch, 3, 1, 1), 99.0), depth=torch.ones(batch, 1, 1, 1), audio=torch.ones(batch, 1))


def missing(batch, **samples):
    available = {m: torch.ones(batch, dtype=torch.bool) for m in NAMES}
    for m, index in samples.items():
        available[m][index] = False
    return available


def same(first, second):
    return all(torch.equal(a[m], b[m]) for a, b in zip(first, second) for m in a)


# What is drawn

def test_half_of_the_samples_are_clean_and_a_noisy_one_has_one_noisy_modality():
    _, levels, _ = injection()(tiny(4000))
    noisy = torch.stack([levels[m] > 0 for m in NAMES], 1).sum(1)
    assert set(noisy.tolist()) == {0, 1}
    assert (noisy == 0).float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(4000))
    for m in NAMES:
        assert (levels[m] > 0).float().mean().item() == pytest.approx(1 / 6, abs=0.025)


def test_independent_modalities_are_clean_half_of_the_time_each_and_uncorrelated():
    _, levels, _ = injection(mode="independent")(tiny(4000))
    noisy = torch.stack([levels[m] > 0 for m in NAMES]).double()
    assert noisy.mean(1).tolist() == pytest.approx([0.5] * 3, abs=0.032)
    assert (torch.corrcoef(noisy) - torch.eye(3)).abs().max() < 0.06


@pytest.mark.parametrize("mode", ["one", "independent"])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_share_of_clean_samples_is_the_configured_one(share, mode):
    noise = injection(["visual"], clean_share=share, mode=mode)
    _, levels, _ = noise(dict(visual=torch.ones(2000, 3, 1, 1)))
    assert (levels["visual"] == 0).float().mean().item() == pytest.approx(share, abs=4 * 0.5 / math.sqrt(2000))


def test_levels_and_types_are_equally_likely_and_whole():
    _, levels, types = injection(["visual"], clean_share=0.0)(dict(visual=torch.ones(2200, 3, 1, 1)))
    counts = torch.bincount(levels["visual"].long())
    assert torch.equal(levels["visual"], levels["visual"].round())
    assert len(counts) == 12 and counts[0] == 0 and (counts[1:] - 200).abs().max() < 60
    drawn = set(types["visual"].tolist())
    assert drawn == {TYPES.index("gaussian"), TYPES.index("blur")}
    assert (types["visual"] == TYPES.index("blur")).float().mean().item() == pytest.approx(0.5, abs=0.045)


def test_real_levels_fill_the_interval():
    options = dict(visual=dict(NOISE["visual"], levels=(0.25, 2.5), whole_levels=False))
    _, levels, _ = injection(["visual"], noise=options, clean_share=0.0)(dict(visual=torch.ones(2000, 3, 1, 1)))
    x = levels["visual"]
    assert 0.25 <= x.min() < 0.27 and 2.48 < x.max() <= 2.5
    assert x.mean().item() == pytest.approx(1.375, abs=0.06)


def test_reported_level_is_the_strength_that_is_measured():
    options = dict(visual=dict(kind="image", levels=(1, 3), scale=dict(gaussian=10.0)))
    x = torch.full((40, 3, 50, 50), 127.5)
    noisy, levels, types = injection(["visual"], noise=options)(dict(visual=x))
    measured = (noisy["visual"] - x).flatten(1).std(1)
    torch.testing.assert_close(measured, 10 * levels["visual"], rtol=0.05, atol=0)
    assert torch.equal(types["visual"] == -1, levels["visual"] == 0)
    assert torch.equal(noisy["visual"][types["visual"] == -1], x[types["visual"] == -1])


def test_a_limit_is_reached_in_spite_of_rounding():
    noise = dict(
        kind="image", levels=(1, 2), types=["occlusion"], scale=dict(occlusion=0.31), offset=dict(occlusion=0.2))
    level = (1.0 - 0.2) / 0.31
    assert 0.2 + 0.31 * level > 1.0
    NoiseInjection(["a"], dict(a=noise)).fixed("a", "occlusion", level)


def test_offset_enters_the_strength():
    options = dict(audio=dict(NOISE["audio"], levels=(4, 4)))
    x = 0.01 * torch.sin(torch.arange(4000) / 9.0).repeat(3, 1)
    noisy, _, _ = injection(["audio"], noise=options, clean_share=0.0)(dict(audio=x))
    ratio = 10 * torch.log10(x.square().mean(1) / (noisy["audio"] - x).square().mean(1))
    assert ratio.tolist() == pytest.approx([30 - 3 * 4] * 3, abs=0.1)


def test_clean_level_marks_what_is_there_and_clean():
    available = missing(200, audio=range(50))
    _, levels, types = injection(clean_level=0.1)(tiny(200), available)
    for m in NAMES:
        clean = types[m] == -1
        assert torch.equal(levels[m][clean], torch.where(available[m][clean], 0.1, 0.0))
        assert (levels[m][~clean] >= 1).all()


# Who is touched

def test_a_missing_modality_is_never_touched_and_takes_no_noise_from_the_others():
    x = tiny(2000)
    x["audio"][:1000] = float("nan")
    available = missing(2000, audio=range(1000), depth=range(500))
    noisy, levels, types = injection(clean_share=0.5)(x, available)
    for m in NAMES:
        gone = ~available[m]
        assert torch.equal(noisy[m][gone].nan_to_num(5.0), x[m][gone].nan_to_num(5.0))
        assert (levels[m][gone] == 0).all() and (types[m][gone] == -1).all()
    # the share of clean samples is that of samples, whatever they have
    for part in (slice(0, 500), slice(500, 1000), slice(1000, 2000)):
        noisy_samples = torch.stack([levels[m][part] > 0 for m in NAMES]).any(0).float().mean().item()
        assert noisy_samples == pytest.approx(0.5, abs=0.09)


@pytest.mark.parametrize("mode", ["one", "independent"])
def test_samples_without_anything_are_left_alone(mode):
    x = sensors()
    nothing = {m: torch.zeros(4, dtype=torch.bool) for m in NAMES}
    noisy, levels, types = injection(clean_share=0.0, mode=mode)(x, nothing)
    assert same([noisy], [x])
    assert all((levels[m] == 0).all() and (types[m] == -1).all() for m in NAMES)


def test_modalities_without_noise_pass_as_they_are():
    words = torch.tensor([[3, 1], [2, 5]])
    noise = NoiseInjection(["text", "visual"], dict(visual=NOISE["visual"]), seed=1, clean_share=0.0)
    noisy, levels, _ = noise(dict(text=words, visual=readings("image")))
    assert torch.equal(noisy["text"], words) and noisy["text"].dtype == torch.int64
    assert levels["text"].tolist() == [0, 0] and (levels["visual"] > 0).all()


def test_evaluation_changes_nothing_unless_forced():
    x = sensors()
    noise = injection(clean_share=0.0, clean_level=0.5).eval()
    noisy, levels, types = noise(x)
    assert same([noisy], [x]) and noise.step == 0
    assert all((levels[m] == 0.5).all() and (types[m] == -1).all() for m in NAMES)
    forced, _, _ = noise(x, force=True)
    assert not same([forced], [x]) and noise.step == 1


def test_the_batch_is_not_written_to_and_lists_of_different_sizes_are_taken():
    x = sensors()
    before = {m: v.clone() for m, v in x.items()}
    injection(clean_share=0.0, mode="independent")(x)
    assert same([x], [before])
    pictures = [readings("image", 1, shape=(3, 8, w))[0] for w in (5, 9)]
    noisy, levels, _ = injection(["visual"], clean_share=0.0)(dict(visual=pictures))
    assert [v.shape for v in noisy["visual"]] == [(3, 8, 5), (3, 8, 9)]
    assert levels["visual"].shape == (2,)


def test_a_list_and_a_batch_get_the_same_noise():
    x = sensors()
    stacked, _, _ = injection()(x)
    listed, _, _ = injection()({m: list(v) for m, v in x.items()})
    assert same([stacked], [{m: torch.stack(v) for m, v in listed.items()}])


def test_uint8_images_come_out_as_floats_clean_ones_exactly():
    x = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    for noise in (injection(["visual"]), injection(["visual"]).eval()):
        noisy, levels, _ = noise(dict(visual=x))
        clean = levels["visual"] == 0
        assert noisy["visual"].dtype == torch.float32 and clean.any()
        assert torch.equal(noisy["visual"][clean], x[clean].float())


# Reproducibility

def test_a_resumed_run_draws_what_the_unbroken_one_would():
    x = sensors(8)
    unbroken = injection()
    for _ in range(3):
        unbroken(x)
    resumed, fresh = injection(seed=8), injection()
    resumed.load_state_dict(unbroken.state_dict())
    after = [unbroken(x) for _ in range(2)]
    assert all(same(a, resumed(x)) for a in after)
    # the control: without the state the draws differ
    assert not same(after[0], fresh(x))


@pytest.mark.parametrize("change", ["seed", "step", "rank"])
def test_seed_step_and_rank_each_change_the_draw(change, monkeypatch):
    x = sensors(8)
    first = injection()(x)
    assert same(first, injection()(x))
    other = injection(seed=8 if change == "seed" else 7)
    if change == "step":
        other(x)
    if change == "rank":
        monkeypatch.setattr("mmfusion_plugin.corruptions.injection._rank", lambda: 1)
    changed = other(x)
    assert not same(first[1:2], changed[1:2])  # the levels
    fixed = [noisy["visual"] for noisy, _, _ in (first, changed)]
    assert not torch.equal(*fixed)


def test_every_sample_and_modality_has_noise_of_its_own():
    options = {m: dict(kind="image", levels=(1, 1), scale=dict(gaussian=1.0)) for m in "ab"}
    x = {m: torch.full((2, 3, 8, 8), 99.0) for m in "ab"}
    noise = NoiseInjection("a b".split(), options, clean_share=0.0, mode="independent", seed=1)
    fields = [noisy[m][b] for noisy, _, _ in (noise(x), noise(x)) for m in "ab" for b in range(2)]
    for i in range(8):
        for j in range(i):
            assert abs(np.corrcoef(fields[i].flatten(), fields[j].flatten())[0, 1]) < 0.3


def test_noise_on_a_sample_depends_on_no_other_sample_nor_on_any_values():
    options = dict(visual=dict(NOISE["visual"], types=["gaussian"], levels=(1, 2)))
    x = torch.full((6, 3, 8, 8), 127.0)
    noise = [injection(["visual"], noise=options)(dict(visual=v)) for v in (x, x[:3], x + 3)]
    assert torch.equal(noise[0][0]["visual"][:3], noise[1][0]["visual"])
    assert torch.equal(noise[0][1]["visual"], noise[2][1]["visual"])
    torch.testing.assert_close(noise[0][0]["visual"] + 3, noise[2][0]["visual"])


def test_what_one_modality_lacks_shifts_no_other_draw():
    x = sensors(32)
    whole = injection(mode="independent")(x)
    lacking = injection(mode="independent")(x, missing(32, audio=range(32)))
    for m in ("visual", "depth"):
        assert torch.equal(whole[0][m], lacking[0][m]) and torch.equal(whole[1][m], lacking[1][m])
    assert torch.equal(lacking[0]["audio"], x["audio"]) and (lacking[1]["audio"] == 0).all()


def test_order_of_names_carries_no_meaning_for_the_noise():
    x = sensors(16)
    first = injection(mode="independent")(x)
    again = NoiseInjection(NAMES[::-1], dict(sorted(NOISE.items())), mode="independent", seed=7)(x)
    assert same(first, again)


def test_sorted_keys_of_a_saved_config_give_the_same_draws():
    assert same(injection()(sensors(16)), injection(noise=dict(sorted(NOISE.items())))(sensors(16)))


def test_the_global_generators_are_left_alone():
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = torch.rand(3), random.random(), np.random.rand()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    noise = injection(clean_share=0.0, mode="independent")
    noise(sensors())
    noise.fixed("visual", "occlusion", 4)(sensors())
    assert torch.equal(torch.rand(3), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]


def test_seed_comes_from_torch_unless_given():
    torch.manual_seed(11)
    first = NoiseInjection(NAMES, NOISE)(sensors(8))
    assert same(first, NoiseInjection(NAMES, NOISE, seed=11)(sensors(8)))


def test_named_samples_draw_the_same_whoever_is_beside_them():
    x = sensors(6)
    noise = injection().eval()
    whole = noise(x, keys=["a", "b", "c", "d", "e", "f"], force=True)
    turned = noise({m: v.flip(0) for m, v in x.items()}, keys=list("fedcba"), force=True)
    assert same(whole, [{m: v.flip(0) for m, v in part.items()} for part in turned])
    assert noise.step == 0


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 5), height=st.integers(1, 9), width=st.integers(1, 9), sound=st.integers(1, 40),
       mode=st.sampled_from(["one", "independent"]), seed=st.integers(0, 2**40))
def test_any_shape_is_kept_and_levels_and_types_agree(batch, height, width, sound, mode, seed):
    x = dict(visual=readings("image", batch, (2, 3, height, width)), depth=readings("depth", batch, (1, height, width)),
             audio=readings("waveform", batch, (1, sound)))
    available = {m: torch.rand(batch) < 0.7 for m in NAMES}
    noisy, levels, types = injection(mode=mode, seed=seed, clean_share=0.3)(x, available)
    for m in NAMES:
        assert noisy[m].shape == x[m].shape and torch.isfinite(noisy[m]).all()
        assert levels[m].shape == types[m].shape == (batch,)
        assert torch.equal(levels[m] > 0, types[m] >= 0) and not (levels[m][~available[m]] > 0).any()
        assert torch.equal(noisy[m][levels[m] == 0], x[m][levels[m] == 0])


# Fixed noise for sweeps

def test_fixed_noise_hits_one_modality_of_every_sample_in_training_and_evaluation():
    x = sensors()
    for training in (True, False):
        fixed = injection(clean_level=0.25).fixed("visual", "gaussian", 5).train(training)
        noisy, levels, types = fixed(x)
        assert levels["visual"].tolist() == [5] * 4
        assert types["visual"].tolist() == [TYPES.index("gaussian")] * 4
        assert torch.equal(noisy["audio"], x["audio"]) and torch.equal(noisy["depth"], x["depth"])
        assert all(not torch.equal(a, b) for a, b in zip(noisy["visual"], x["visual"]))
        assert levels["audio"].tolist() == [0.25] * 4 and (types["audio"] == -1).all()


def test_fixed_noise_takes_types_and_levels_that_training_never_shows():
    fixed = injection().fixed("visual", "occlusion", 14)
    noisy, levels, _ = fixed(dict(sensors(), visual=torch.ones(4, 3, 20, 20)))
    assert (noisy["visual"] == 0).float().mean().item() == pytest.approx(0.05 * 14)
    assert levels["visual"].tolist() == [14] * 4


def test_fixed_noise_with_keys_depends_on_no_batch_size_order_or_rank(monkeypatch):
    x, keys = sensors(6), [40, 7, 19, 3, 5, 11]
    noise = injection()
    whole = noise.fixed("audio", "sound_snr", 3)(x, keys=keys)[0]["audio"]
    other = noise.fixed("audio", "sound_snr", 3)
    monkeypatch.setattr("mmfusion_plugin.corruptions.injection._rank", lambda: 1)
    for b in (4, 0, 3, 1):
        alone = {m: v[b : b + 1] for m, v in x.items()}
        for key in (keys[b], np.int64(keys[b]), torch.tensor(keys[b])):
            assert torch.equal(other(alone, keys=[key])[0]["audio"][0], whole[b])
    assert not torch.equal(other(alone, keys=[99])[0]["audio"][0], whole[1])


def test_fixed_noise_without_keys_goes_by_the_number_of_samples_before():
    x = sensors(6)
    noise = injection()
    whole = noise.fixed("depth", "gaussian", 3)(x)[0]["depth"]
    fixed = noise.fixed("depth", "gaussian", 3)
    pieces = [fixed({m: v[part] for m, v in x.items()})[0]["depth"] for part in (slice(0, 2), slice(2, 6))]
    assert torch.equal(torch.cat(pieces), whole)
    assert fixed.state_dict() == {}


def test_levels_of_a_sweep_share_their_random_numbers_and_seeds_do_not():
    x = dict(sensors(), visual=torch.full((4, 3, 8, 8), 127.0))
    noise = injection()
    low, high, other = (
        noise.fixed("visual", "gaussian", level, seed)(x)[0]["visual"] - 127 for level, seed in ((1, 0), (2, 0), (1, 1))
    )
    torch.testing.assert_close(2 * low, high, rtol=1e-4, atol=1e-4)
    assert not torch.equal(low, other)


@pytest.mark.parametrize("m,name", [("visual", "gaussian"), ("visual", "blur"), ("visual", "occlusion"),
                                    ("audio", "sound_snr"), ("audio", "time_masking"), ("depth", "gaussian")])
def test_a_higher_level_does_more_damage(m, name):
    x = sensors()
    damage = [(injection().fixed(m, name, level)(x)[0][m] - x[m]).square().mean().item() for level in (0, 1, 3, 6, 11)]
    assert damage[0] == 0 and all(a < b for a, b in zip(damage, damage[1:]))


def test_level_zero_is_clean_bit_by_bit():
    x = sensors()
    noisy, levels, types = injection(clean_level=0.1).fixed("audio", "sound_snr", 0)(x)
    assert same([noisy], [x])
    assert (types["audio"] == -1).all() and levels["audio"].tolist() == pytest.approx([0.1] * 4)


def test_fixed_noise_leaves_samples_that_miss_the_modality_alone():
    x = sensors()
    x["audio"][1] = float("nan")
    noisy, levels, types = injection().fixed("audio", "sound_snr", 3)(x, missing(4, audio=[1, 2]))
    assert torch.equal(noisy["audio"][2], x["audio"][2]) and noisy["audio"][1].isnan().all()
    assert levels["audio"].tolist() == [3, 0, 0, 3] and (types["audio"] >= 0).tolist() == [True, False, False, True]


# Bad input

@pytest.mark.parametrize("change,message", [
    (dict(levels=(0, 11)), r"noise.visual: levels must be \(low, high\) with 0 < low"),
    (dict(levels=(5, 2)), "levels must be"),
    (dict(levels=(1, 2, 3)), "levels must be"),
    (dict(levels=(1, math.inf)), "levels must be"),
    (dict(levels=(0.5, 2)), "whole_levels=False"),
    (dict(levels=(1, 25)), r"level 25: strength of 'occlusion' is 1.25, expected a finite number in \[0, 1\]"),
    (dict(types=["fog"]), r"types names \['fog'\], known types are \['gaussian'"),
    (dict(types="gaussian"), "types must be a list"),
    (dict(types=[]), "types must be a list"),
    (dict(types=["gain"]), "scale has no entry for 'gain'"),
    (dict(types=["sound_snr"], scale=dict(sound_snr=-1)), "'sound_snr' does not fit kind='image'"),
    (dict(scale=dict(gaussian=-1.0)), "scale.gaussian is -1.0 .* give a positive number"),
    (dict(scale=dict(fog=1.0)), r"scale names \['fog'\]"),
    (dict(scale=10.0), "scale must be a dict of numbers by type"),
    (dict(offset=dict(gaussian=-50.0)), "level 1: strength of 'gaussian' is -40.0"),
    (dict(kind="photo"), "noise.visual: kind must be one of"),
    (dict(level=3), r"unknown keys \['level'\]"),
])
def test_bad_noise_of_a_modality(change, message):
    scale = dict(gaussian=10.0, occlusion=0.05)
    good = dict(kind="image", levels=(1, 11), types=["gaussian", "occlusion"], scale=scale)
    with pytest.raises(ValueError, match=message):
        NoiseInjection(["visual", "audio"], dict(visual={**good, **change}))


def test_snr_must_fall_with_the_level():
    with pytest.raises(ValueError, match="scale.sound_snr is 3.0 .signal-to-noise ratio.* give a negative number"):
        NoiseInjection(["audio"], dict(audio=dict(NOISE["audio"], scale=dict(sound_snr=3.0))))


@pytest.mark.parametrize("options,message", [
    (dict(noise=dict(sound=NOISE["audio"])), r"noise names \['sound'\], modalities names"),
    (dict(noise={}), "noise must name at least one modality"),
    (dict(noise=dict(visual="gaussian")), "noise.visual must be a dict"),
    (dict(noise=dict(visual=dict(kind="image"))), r"lacks \['levels', 'scale'\]"),
    (dict(clean_share=1.5), r"^clean_share must be in \[0, 1\]"),
    (dict(clean_level=-1), "^clean_level must be"),
    (dict(mode="all"), "^mode must be one of"),
])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        injection(**options)


@pytest.mark.parametrize("modality,name,level,message", [
    ("smell", "gaussian", 1, "no noise is defined for 'smell'"),
    ("visual", "fog", 1, r"type names \['fog'\]"),
    ("visual", "fog", 0, r"type names \['fog'\]"),
    ("visual", "gain", 1, "noise.visual: scale has no entry for 'gain'"),
    ("visual", "gaussian", -1, "noise.visual: a noise level must be a positive number"),
    ("visual", "gaussian", math.nan, "a noise level must be a positive number"),
    ("visual", "occlusion", 21, "level 21: strength of 'occlusion' is 1.05"),
])
def test_bad_fixed_noise(modality, name, level, message):
    with pytest.raises(ValueError, match=message):
        injection().fixed(modality, name, level)


@pytest.mark.parametrize("spoil,error,message", [
    (lambda x, a: x.pop("audio"), ValueError, r"noise.modalities is .*the batch holds \['depth', 'visual'\]"),
    (lambda x, a: x.update(audio=x["audio"][:2]), ValueError, "different numbers of samples"),
    (lambda x, a: x.update(visual=x["visual"][:, 0]), ValueError, r"the batch's 'visual' has shape \(24, 20\)"),
    (lambda x, a: x.update(visual=x["visual"].long()), ValueError, "torch.int64; image is read as floating point"),
    (lambda x, a: x.update({m: v[:0] for m, v in x.items()}), ValueError, "holds no sample"),
    (lambda x, a: a.pop("depth"), ValueError, "available names"),
    (lambda x, a: a.update(depth=torch.ones(4)), TypeError, "must be bool"),
    (lambda x, a: a.update(depth=torch.ones(3, dtype=torch.bool)), ValueError, r"expected \(4,\)"),
])
def test_bad_batch(spoil, error, message):
    x, available = sensors(), missing(4)
    spoil(x, available)
    for noise in (injection(), injection().eval(), injection().fixed("visual", "gaussian", 1)):
        with pytest.raises(error, match=message):
            noise(x, available)


def test_keys_name_every_sample():
    with pytest.raises(ValueError, match="keys must name each of the 4 samples, got 3"):
        injection()(sensors(), keys=[1, 2, 3])


def test_the_mapping_from_levels_to_strengths_is_printed():
    assert "visual: gaussian at levels 1..11: 10..110, standard deviation, grey levels" in repr(injection())
    assert "audio: sound_snr at levels 1..11: 27..-3, signal-to-noise ratio in dB" in repr(injection())


def test_torch_alone_is_enough_for_corruptions(tmp_path):
    libraries = ("mmengine", "mmcv", "mmseg", "mmaction")
    run = python(tmp_path, "-W", "ignore", "-c", "import mmfusion_plugin.corruptions", without=libraries)
    assert run.returncode == 0, run.stderr
