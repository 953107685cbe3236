from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from corruptions.sensors import MOVES, PAIRS, SENSORS, SHAPES, STRENGTHS, corrupt, readings
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfusion_plugin.corruptions import CORRUPTIONS, Sensor

IMAGE, DEPTH, WAVE, SPECTROGRAM = (SENSORS[kind] for kind in ("image", "depth", "waveform", "spectrogram"))


# The rules of every type

@pytest.mark.parametrize("name,kind", PAIRS)
def test_identity_strength_changes_no_bit(name, kind):
    x = readings(kind)
    x[0].view(-1)[3] = float("nan")
    same = corrupt(name, x, CORRUPTIONS[name].identity, SENSORS[kind])
    assert torch.equal(same.view(torch.int32), x.view(torch.int32))  # as bits, because NaN differs from itself


@pytest.mark.parametrize("name,kind", PAIRS)
def test_more_strength_is_more_damage_to_the_same_sample(name, kind):
    x = readings(kind, batch=1)
    if name in MOVES:  # a slope: what lies farther off differs more
        slope = torch.linspace(0.3, 1, x.shape[-1]) + torch.linspace(0, 1, x.shape[-2])[:, None] * (x.ndim > 2)
        x = (slope * x.max() / 2).expand(x.shape)
    damage = [(corrupt(name, x, s, SENSORS[kind]) - x).square().mean().item() for s in STRENGTHS[name]]
    assert 0 < damage[0] < damage[1] < damage[2]


@pytest.mark.parametrize("name,kind", PAIRS)
def test_the_input_is_never_written_to_and_one_generator_state_gives_one_result(name, kind):
    x = readings(kind)
    before = x.clone()
    first, again = (corrupt(name, x, STRENGTHS[name][1], SENSORS[kind]) for _ in range(2))
    assert torch.equal(x, before)
    assert torch.equal(first, again)
    if name not in ("blur", "gain"):  # these two draw nothing
        assert not torch.equal(first, corrupt(name, x, STRENGTHS[name][1], SENSORS[kind], seed=1))


@pytest.mark.parametrize("name,kind", PAIRS)
def test_non_finite_readings_stay_and_do_not_spread(name, kind):
    x = readings(kind)
    broken = torch.zeros_like(x, dtype=torch.bool)
    broken.view(2, -1)[:, [0, 7, -1]] = True
    x[broken] = torch.tensor([float("nan"), float("inf"), -float("inf")]).repeat(2)
    for strength in STRENGTHS[name]:
        changed = corrupt(name, x, strength, SENSORS[kind])
        assert torch.equal(torch.isfinite(changed), ~broken)
        assert torch.equal(changed[broken].nan_to_num(9.0), x[broken].nan_to_num(9.0))


@pytest.mark.parametrize("name,kind", PAIRS)
def test_readings_stay_inside_the_valid_range(name, kind):
    sensor = SENSORS[kind]
    for strength in STRENGTHS[name]:
        changed = corrupt(name, readings(kind), 100 * strength if name == "gaussian" else strength, sensor)
        if sensor.valid_range is not None:
            inside = changed if kind != "depth" else changed[changed != sensor.empty]
            assert sensor.valid_range[0] <= inside.min() and inside.max() <= np.float32(sensor.valid_range[1])


@pytest.mark.parametrize("name", [name for name, kind in PAIRS if kind == "depth"])
def test_depth_without_value_stays_so_and_noise_loses_no_reading(name):
    x = readings("depth")
    changed = corrupt(name, x, STRENGTHS[name][-1], DEPTH)
    assert (changed[x == 0] == 0).all()
    if name not in ("occlusion", "depth_holes", "misalignment"):  # whose purpose it is, or border
        assert (changed[x != 0] != 0).all()


@pytest.mark.parametrize("name,kind", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floating_types_keep_their_type(name, kind, dtype):
    x = readings(kind).to(dtype)
    changed = corrupt(name, x, STRENGTHS[name][1], SENSORS[kind])
    assert changed.dtype == dtype and changed.shape == x.shape and torch.isfinite(changed).all()


def test_uint8_images_become_float_and_are_not_wrapped_around():
    x = torch.tensor([0, 255], dtype=torch.uint8).repeat(600).reshape(1, 3, 20, 20)
    changed = corrupt("gaussian", x, 50.0, IMAGE)
    assert changed.dtype == torch.float32
    assert (changed - x.float()).abs().max() < 255  # 0 - 1 is not 255


@pytest.mark.parametrize("name,kind", PAIRS)
def test_strengths_are_looked_up_by_sample(name, kind):
    x = readings(kind, batch=3)
    identity, mild = CORRUPTIONS[name].identity, STRENGTHS[name][0]
    strengths = torch.tensor([identity, mild, identity])
    changed = CORRUPTIONS[name](x, strengths, torch.Generator().manual_seed(0), SENSORS[kind])
    assert torch.equal(changed[[0, 2]], x[[0, 2]])
    assert torch.equal(changed[1], corrupt(name, x[1:2], mild, SENSORS[kind])[0])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_type_takes_every_shape_of_its_kind(data):
    name, kind = data.draw(st.sampled_from(PAIRS))
    side = st.integers(1, 9)
    layouts = {
        "image": [(3,), (2, 3), (2, 3, 2)], "depth": [(1,), (2, 1)], "waveform": [(), (1,), (2, 1)],
        "spectrogram": [(), (1,), (2, 1)], "vector": [()],
    }
    lead = data.draw(st.sampled_from(layouts[kind]))
    if kind == "image" and len(lead) == 3:
        lead, tail = lead[:2], (2, data.draw(side), data.draw(side))
    else:
        tail = tuple(data.draw(side) for _ in range({"waveform": 1, "vector": 1}.get(kind, 2)))
    x = readings(kind, batch=data.draw(st.integers(1, 3)), shape=(*lead, *tail))
    strength = data.draw(st.sampled_from(STRENGTHS[name]))
    changed = corrupt(name, x, strength, SENSORS[kind], seed=data.draw(st.integers(0, 9)))
    assert changed.shape == x.shape and torch.isfinite(changed).all()


# Each type against its definition, computed another way

@pytest.mark.parametrize("std", [1.0, 5.0, 20.0])
def test_gaussian_has_its_std_in_grey_levels_away_from_the_ends(std):
    x = torch.full((1, 3, 200, 200), 127, dtype=torch.uint8)
    noise = corrupt("gaussian", x, std, IMAGE) - 127
    assert noise.std().item() == pytest.approx(std, rel=0.01)
    assert abs(noise.mean().item()) < 0.02 * std
    assert np.corrcoef(noise[0].reshape(3, -1))[0, 1] == pytest.approx(0, abs=0.02)  # channels are independent


def test_gaussian_is_clipped_on_both_sides():
    x = torch.cat([torch.zeros(1, 3, 50, 50), torch.full((1, 3, 50, 50), 255.0)])
    changed = corrupt("gaussian", x, 20.0, IMAGE)
    for noise in (changed[0], 255 - changed[1]):
        assert noise.min() == 0
        assert (noise == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
        assert noise.mean().item() == pytest.approx(20 / math.sqrt(2 * math.pi), rel=0.05)


@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_salt_and_pepper_hits_its_share_of_pixels_with_all_their_channels(share):
    x = torch.full((1, 2, 3, 200, 200), 100.0)
    changed = corrupt("salt_and_pepper", x, share, IMAGE)[0]
    salt, pepper = changed == 255, changed == 0
    assert ((changed == 100) | salt | pepper).all()
    spread = 3 * math.sqrt(share / 80_000)
    assert (salt | pepper).float().mean().item() == pytest.approx(share, abs=spread)
    assert salt.float().mean().item() == pytest.approx(share / 2, abs=spread)
    for hit in (salt, pepper):
        assert torch.equal(hit.all(1), hit.any(1))


def test_salt_and_pepper_hits_each_pixel_of_a_clip_by_itself():
    changed = corrupt("salt_and_pepper", torch.full((1, 2, 3, 4, 30, 30), 100.0), 0.5, IMAGE)[0]
    hit = changed != 100
    assert torch.equal(hit.all(1), hit.any(1))
    assert not torch.equal(hit[:, :, 0], hit[:, :, 1]), "frames differ"


@pytest.mark.parametrize("kind", ["image", "depth"])
@pytest.mark.parametrize("sigma", [0.3, 1.5, 6.0])
def test_blur_is_the_gaussian_mean_of_the_known_pixels(kind, sigma):
    x = readings(kind, batch=1)
    picture = x[0, 0].double().numpy()
    known = (picture != 0) if kind == "depth" else np.ones_like(picture, dtype=bool)
    expected = np.zeros_like(picture)
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    for i, j in np.argwhere(known):
        weight = np.exp(-((rows - i) ** 2 + (columns - j) ** 2) / (2 * sigma**2)) * known
        expected[i, j] = (weight * picture).sum() / weight.sum()
    changed = corrupt("blur", x, sigma, SENSORS[kind])[0, 0].numpy()
    np.testing.assert_allclose(changed, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.8, 1.0])
def test_occlusion_covers_its_share_with_the_same_patches_in_every_frame_and_channel(share):
    x = torch.full((3, 2, 3, 60, 80), 9.0)
    changed = corrupt("occlusion", x, share, IMAGE)
    covered = changed == 0
    assert torch.equal(changed[~covered], x[~covered])
    assert covered.flatten(1).float().mean(1).tolist() == pytest.approx([share] * 3, abs=1 / 4800)
    assert torch.equal(covered.flatten(1, 2).all(1), covered.flatten(1, 2).any(1))
    if share < 1:
        assert not torch.equal(covered[0], covered[1])


def test_occlusion_is_made_of_patches_and_reaches_the_corners():
    covered = corrupt("occlusion", torch.ones(200, 1, 40, 40), 0.3, Sensor("image"))[:, 0] == 0
    edges = (covered[:, 1:] != covered[:, :-1]).float().mean().item()
    assert edges < 0.1  # 0.42 for single pixels at 30 %
    assert covered[:, [0, 0, -1, -1], [0, -1, 0, -1]].float().mean(0).min() > 0.05


@pytest.mark.parametrize("name", ["occlusion", "depth_holes", "salt_and_pepper", "time_masking"])
def test_a_larger_share_contains_the_smaller(name):
    kind, value = {"time_masking": ("waveform", 0.5)}.get(name, ("depth", 5.0))
    x = torch.full((4, *SHAPES[kind]), value)
    hit = [corrupt(name, x[b : b + 1], s, SENSORS[kind], seed=b) != value for b in range(4) for s in (0.1, 0.3, 0.7)]
    for b in range(4):
        small, middle, large = hit[3 * b : 3 * b + 3]
        assert small.any() and not (small & ~middle).any() and not (middle & ~large).any()


@pytest.mark.parametrize("kind", ["image", "waveform", "vector"])
def test_gain_is_so_many_decibels_of_amplitude(kind):
    x = readings(kind)
    fainter = corrupt("gain", x, 13.0, SENSORS[kind])
    assert 20 * math.log10(x.norm() / fainter.norm()) == pytest.approx(13.0, abs=1e-4)


def test_gain_of_a_log_spectrogram_is_the_spectrogram_of_the_fainter_sound():
    magnitude = readings("spectrogram").exp()
    fainter = corrupt("gain", magnitude.log(), 13.0, SPECTROGRAM)
    expected = (magnitude / 10 ** (13 / 20)).log().clamp(min=-12.0)
    torch.testing.assert_close(fainter, expected)
    unbounded = Sensor("spectrogram", empty=-5.0, decibel=SPECTROGRAM.decibel)
    assert corrupt("gain", readings("spectrogram"), 60.0, unbounded).eq(-5).all(), "no fainter than nothing"


@pytest.mark.parametrize("share", [0.02, 0.3, 0.95, 1.0])
def test_depth_holes_lose_their_share_of_the_readings(share):
    x = readings("depth", shape=(1, 120, 160))
    changed = corrupt("depth_holes", x, share, DEPTH)
    for before, after in zip(x, changed):
        lost = (before != 0) & (after == 0)
        assert int(lost.sum()) == round(share * int((before != 0).sum()))
        assert torch.equal(after[~lost], before[~lost])


def test_depth_holes_are_blobs():
    x = torch.full((4, 1, 120, 160), 3.0)
    lost = corrupt("depth_holes", x, 0.2, DEPTH)[:, 0] == 0
    beside = lost[:, 1:][lost[:, :-1]].float().mean().item()
    assert beside > 0.85  # 0.2 for single pixels


@pytest.mark.parametrize("metres", [1.0, 5.0])
def test_depth_noise_follows_kinects_error(metres):
    x = torch.full((1, 1, 200, 200), metres)
    noise = corrupt("depth_noise", x, 1.0, DEPTH) - metres
    # Khoshelham and Oude Elberink: half of 2.85e-5 z^2, all in centimetres
    assert 100 * noise.std().item() == pytest.approx(0.5 * 2.85e-5 * (100 * metres) ** 2, rel=0.02)


@pytest.mark.parametrize("name", ["sound_snr", "sound_snr_pink"])
@pytest.mark.parametrize("decibel", [-6.0, 0.0, 20.0])
def test_sound_has_its_signal_to_noise_ratio(name, decibel):
    x = 0.01 * torch.sin(torch.arange(8000) / 9.0).repeat(2, 1, 1) * torch.tensor([1.0, 3.0]).reshape(2, 1, 1)
    noise = corrupt(name, x, decibel, WAVE).double() - x.double()
    for signal, own in zip(x.double(), noise):
        assert 10 * math.log10(signal.var() / own.var()) == pytest.approx(decibel, abs=0.1)


def test_the_ratio_counts_what_is_known():
    x = 0.01 * torch.sin(torch.arange(8000) / 9.0)[None]
    x[:, 2000:] = torch.nan
    noise = (corrupt("sound_snr", x, 6.0, WAVE) - x)[:, :2000]
    assert 10 * math.log10(x[:, :2000].square().mean() / noise.square().mean()) == pytest.approx(6.0, abs=0.1)


@pytest.mark.parametrize("name,slope", [("sound_snr", 0.0), ("sound_snr_pink", -1.0)])
def test_colour_of_the_noise(name, slope):
    x = 0.01 * torch.sin(torch.arange(8192) / 9.0).repeat(20, 1)
    noise = (corrupt(name, x, 0.0, WAVE) - x).double().numpy()
    power = (np.abs(np.fft.rfft(noise)) ** 2).mean(0)
    octaves = [power[2**k : 2 ** (k + 1)].mean() for k in range(4, 12)]
    assert np.polyfit(np.arange(8), np.log2(octaves), 1)[0] == pytest.approx(slope, abs=0.1)


def test_silence_gets_no_noise_because_no_ratio_to_it_exists():
    assert corrupt("sound_snr", torch.zeros(1, 1, 100), 0.0, WAVE).abs().max() == 0


@pytest.mark.parametrize("kind", ["waveform", "spectrogram"])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_time_masking_empties_one_span_of_its_share(kind, share):
    x = readings(kind, batch=20)
    masked = corrupt("time_masking", x, share, SENSORS[kind]) == SENSORS[kind].empty
    steps = masked.reshape(20, -1, x.shape[-1])
    assert torch.equal(steps.all(1), steps.any(1))
    assert (steps.any(1).sum(1) == round(share * x.shape[-1])).all()
    edges = torch.nn.functional.pad(steps.any(1).int(), (1, 1)).diff()
    assert (edges == 1).sum(1).eq(1).all()
    if share < 1:
        assert len({int(span.int().argmax()) for span in steps.any(1)}) > 5  # starts differ


# Bad input

@pytest.mark.parametrize("name,strength", [
    ("gaussian", -1.0), ("gaussian", float("inf")), ("gaussian", float("nan")), ("occlusion", 1.01),
    ("salt_and_pepper", -0.1), ("blur", -1.0), ("gain", -3.0),
])
def test_strength_outside_its_limits(name, strength):
    with pytest.raises(ValueError, match=f"strength of '{name}' is .* scale and offset"):
        corrupt(name, readings("image"), strength, IMAGE)


def test_minus_infinite_ratio_is_refused():
    with pytest.raises(ValueError, match="strength of 'sound_snr' is -inf"):
        corrupt("sound_snr", readings("waveform"), -math.inf, WAVE)


def test_type_that_does_not_fit_the_sensor():
    with pytest.raises(ValueError, match=r"'depth_holes' does not fit kind='image'; types that do are \['gaussian'"):
        corrupt("depth_holes", readings("image"), 0.1, IMAGE)


@pytest.mark.parametrize("name,key", [
    ("salt_and_pepper", "valid_range"), ("occlusion", "empty"), ("time_masking", "empty"), ("gain", "decibel"),
])
def test_a_spectrogram_must_state_what_a_type_needs(name, key):
    with pytest.raises(ValueError, match=f"'{name}' on kind='spectrogram' needs {key}"):
        corrupt(name, readings("spectrogram"), 0.1, Sensor("spectrogram"))


@pytest.mark.parametrize("kind,shape,found", [
    ("image", (2, 24, 20), r"shape \(24, 20\) per sample"), ("image", (2, 1, 1, 1, 1, 3, 3), "per sample"),
    ("depth", (2, 3, 24, 20), "3 channels"), ("spectrogram", (2, 30), "per sample"), ("vector", (2, 3, 4, 5), "per"),
])
def test_wrong_rank_or_channels(kind, shape, found):
    with pytest.raises(ValueError, match=found):
        corrupt("gaussian", torch.ones(shape), 0.1, SENSORS[kind])


@pytest.mark.parametrize("kind,dtype", [("depth", torch.uint8), ("waveform", torch.int16), ("image", torch.int64)])
def test_integers_other_than_uint8_images_are_no_physical_unit(kind, dtype):
    with pytest.raises(ValueError, match="as floating point"):
        corrupt("gaussian", readings(kind).to(dtype), 0.1, SENSORS[kind])


@pytest.mark.parametrize("strengths", [torch.ones(3), torch.ones(()), torch.ones(2, 1)])
def test_one_strength_per_sample(strengths):
    with pytest.raises(ValueError, match="one strength for each"):
        CORRUPTIONS["gaussian"](readings("image"), strengths, torch.Generator(), IMAGE)


@pytest.mark.parametrize("options,message", [
    (dict(kind="lidar"), "kind must be one of"),
    (dict(kind="depth"), "needs valid_range in metres"),
    (dict(kind="depth", valid_range=(0, 10)), "holds empty=0.0, which means 'no value'"),
    (dict(kind="image", valid_range=(255, 0)), "must rise"),
    (dict(kind="image", valid_range=(0, math.inf)), "two finite numbers"),
    (dict(kind="image", valid_range=255), "two finite numbers"),
    (dict(kind="image", empty="black"), "empty must be a finite number"),
    (dict(kind="image", decibel=0.1), "for kind='image'"),
    (dict(kind="spectrogram", decibel=-0.1), "positive change"),
])
def test_bad_sensor(options, message):
    with pytest.raises(ValueError, match=message):
        Sensor(**options)


@pytest.mark.parametrize("kind", ["image", "depth"])
def test_misalignment_moves_the_picture_by_its_distance(kind):
    sensor = SENSORS[kind]
    for seed in range(20):
        x = torch.zeros(1, SHAPES[kind][0], 41, 41) + (5.0 if kind == "depth" else 0.0)
        x[..., 20, 20] = 9.0
        changed = corrupt("misalignment", x, 12.0, sensor, seed=seed)
        (row, column), = (changed[0, 0] == 9).nonzero().tolist()
        assert math.hypot(row - 20, column - 20) == pytest.approx(12, abs=0.71)
        outside = torch.ones(41, 41, dtype=torch.bool)
        down, right = row - 20, column - 20
        outside[max(down, 0) : 41 + min(down, 0), max(right, 0) : 41 + min(right, 0)] = False
        assert torch.equal((changed[0] == 0).all(0), outside) or kind == "image"
    assert (corrupt("misalignment", x, 500.0, sensor) == sensor.empty).all()


def test_misalignment_goes_every_way_and_alike_in_all_frames():
    x = torch.zeros(200, 2, 3, 21, 21)
    x[..., 10, 10] = 1
    moved = [corrupt("misalignment", x[:1], 6.0, IMAGE, seed=b)[0, 0, 0] for b in range(99)]
    places = {tuple(picture.nonzero()[0].tolist()) for picture in moved}
    assert len(places) > 20
    changed = corrupt("misalignment", x, 6.0, IMAGE)
    assert torch.equal(changed.amax((1, 2)), changed.amin((1, 2)))


@pytest.mark.parametrize(("kind", "shift", "steps"), [("waveform", 36.6, 37), ("spectrogram", 70.0, 7)])
def test_a_time_shift_is_late_or_early_by_its_milliseconds(kind, shift, steps):
    sensor, x = SENSORS[kind], readings(kind, batch=60)
    changed, late = corrupt("time_shift", x, shift, sensor), 0
    for before, after in zip(x, changed):
        if torch.equal(after[..., steps:], before[..., :-steps]) and (after[..., :steps] == sensor.empty).all():
            late += 1
        else:
            assert torch.equal(after[..., :-steps], before[..., steps:]) and (after[..., -steps:] == sensor.empty).all()
    assert 15 < late < 45


def test_a_time_shift_needs_the_rate_and_a_rate_needs_time():
    with pytest.raises(ValueError, match="needs rate"):
        corrupt("time_shift", readings("waveform"), 5.0, Sensor("waveform"))
    with pytest.raises(ValueError, match="needs empty"):
        corrupt("time_shift", readings("spectrogram"), 5.0, Sensor("spectrogram", rate=10.0))
    for kind, rate in (("image", 5.0), ("waveform", 0.0)):
        with pytest.raises(ValueError, match="rate is"):
            Sensor(kind, rate=rate)


def test_a_types_number_in_logs_never_changes():
    assert list(CORRUPTIONS) == [
        "gaussian", "salt_and_pepper", "blur", "occlusion", "gain", "depth_holes", "depth_noise", "sound_snr",
        "sound_snr_pink", "time_masking", "misalignment", "time_shift"]
