"""Windows, frames and sound that belong together; faults; options."""
from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("mmaction")
pytest.importorskip("av")

from recognition.ramps import FPS, RATE, SOUND, STEP, load

import mmfusion_plugin  # noqa: F401
from mmfusion_plugin.recognition.media import (
    DamagedMedia,
    EmptyStream,
    MissingFile,
    NoStream,
    read_frames,
    read_sound,
)
from mmfusion_plugin.recognition.spectrograms import log_spectrogram
from mmfusion_plugin.recognition.transforms import AudioSpectrogram, LoadClip


def draws(files, key, count=60, visual="clip.mp4", audio="ramp.wav", **options):
    """What one loader gives for one clip, again and again; the cache makes it quick."""
    loader = LoadClip(**dict(num_frames=4, sound=SOUND, cache_mb=64) | options)
    media = dict(visual=str(files / visual), audio=str(files / audio))
    return np.array([loader(dict(media=media))[key] for _ in range(count)])


def numbers_of(images):
    return [round(float(image.mean()) / STEP) for image in images]


def time_of(waveform):
    return (waveform + 0.5) / 0.2


# windows and frames

def test_frames_are_those_at_the_centres_of_segments(files):
    results = load(files, num_frames=5, test_mode=True)
    # 4 s in 5 segments: centres 0.4, 1.2, 2.0, 2.8, 3.6 s at 20 fps
    assert results["frame_inds"].tolist() == [8, 24, 40, 56, 72]
    assert numbers_of(results["imgs"]) == [8, 24, 40, 56, 72]
    np.testing.assert_allclose(results["frame_times"], [0.4, 1.2, 2.0, 2.8, 3.6], atol=1e-9)


def test_one_window_is_centred_at_test(files):
    results = load(files, num_frames=2, clip_seconds=2.0, sound=dict(sample_rate=RATE), test_mode=True)
    assert results["clip_starts"].tolist() == [1.0]
    assert numbers_of(results["imgs"]) == [30, 50]  # 1.5 s and 2.5 s
    assert time_of(results["waveform"][0])[[0, -1]] == pytest.approx([1.0, 3.0], abs=1e-3)


def test_windows_are_spread_evenly_at_test(files):
    results = load(files, num_frames=1, clip_seconds=1.0, num_clips=4, test_mode=True)
    np.testing.assert_allclose(results["clip_starts"], [0, 1, 2, 3], atol=1e-3)
    assert numbers_of(results["imgs"]) == [10, 30, 50, 70]
    np.testing.assert_allclose(time_of(results["waveform"][:, 0]), [0, 1, 2, 3], atol=1e-3)
    assert (results["num_clips"], results["clip_len"]) == (4, 1)


def test_test_mode_leaves_chance_alone(files):
    before = np.random.get_state()[1].copy(), np.random.get_state()[2]
    first, second = (load(files, clip_seconds=1.0, num_clips=2, test_mode=True) for _ in range(2))
    assert (np.random.get_state()[1] == before[0]).all() and np.random.get_state()[2] == before[1]
    assert all(np.array_equal(a, b) for a, b in zip(first["imgs"], second["imgs"]))
    assert np.array_equal(first["waveform"], second["waveform"])


def test_training_draws_one_time_from_each_segment(files):
    drawn = draws(files, "frame_inds")
    for k in range(4):
        assert (drawn[:, k] // 20 == k).all() and len(set(drawn[:, k])) > 10


def test_random_sampling_spans_the_window_in_order(files):
    drawn = draws(files, "frame_inds", sample="random")
    assert (np.diff(drawn) >= 0).all()
    assert drawn[:, 0].max() >= 20 and drawn[:, 3].min() < 60  # not held in segments
    assert drawn.min() < 8 and drawn.max() > 72


def test_center_sampling_is_regular_in_training(files):
    drawn = draws(files, "frame_inds", count=9, clip_seconds=2.0, sample="center")
    np.testing.assert_allclose(np.diff(drawn), 10, atol=1)
    assert len(set(drawn[:, 0])) > 3  # the windows still lie at random


def test_training_windows_cover_the_clip_and_stay_inside(files):
    starts = draws(files, "clip_starts", count=80, clip_seconds=1.0)
    assert starts.min() < 0.3 and starts.max() > 2.7 and starts.min() >= 0 and starts.max() <= 3.0 + 1e-3


def test_the_numpy_seed_fixes_what_training_draws(files):
    inds = []
    for _ in range(2):
        np.random.seed(7)
        inds.append(load(files, clip_seconds=1.0)["frame_inds"].tolist())
    assert inds[0] == inds[1]


def test_frames_and_sound_are_of_one_window(files):
    for _ in range(3):
        results = load(files, num_frames=3, clip_seconds=1.0, num_clips=2)
        for n in range(2):
            start = results["clip_starts"][n]
            assert time_of(results["waveform"][n])[0] == pytest.approx(start, abs=2e-3)
            times = results["frame_times"].reshape(2, 3)[n]
            assert (times >= start - 1 / FPS).all() and (times <= start + 1).all()
        np.testing.assert_allclose(results["frame_inds"] / FPS, results["frame_times"], atol=1e-9)
        assert numbers_of(results["imgs"]) == results["frame_inds"].tolist()


def test_windows_lie_where_both_streams_are(files):
    starts = draws(files, "clip_starts", 40, "short_sound.mp4", "short_sound.mp4", clip_seconds=1.0)
    assert 0.7 < starts.max() <= 1.1  # sound ends at 2 s, frames at 4 s


@pytest.mark.parametrize(("visual", "audio"), [("clip.mp4", "short.wav"), ("short_video.mp4", "ramp.wav")])
def test_windows_hold_all_that_streams_share_for_less_than_a_window(files, visual, audio):
    starts = draws(files, "clip_starts", 40, visual, audio, clip_seconds=2.0)
    assert (starts == 0).all()


def test_a_window_holds_sound_that_is_short_and_in_the_middle(files, monkeypatch):
    monkeypatch.setattr("mmfusion_plugin.recognition.transforms.sound_span", lambda path: (2.0, 2.5))
    starts = draws(files, "clip_starts", 60, clip_seconds=1.0, cache_mb=0)
    assert 1.5 <= starts.min() < 1.6 and 1.9 < starts.max() <= 2.0


@pytest.mark.parametrize("span", [(4.5, 6.0), (-2.0, -1.0)])
def test_streams_that_share_nothing_give_one_window_whatever_is_drawn(files, monkeypatch, span):
    monkeypatch.setattr("mmfusion_plugin.recognition.transforms.sound_span", lambda path: span)
    starts = draws(files, "clip_starts", 5, clip_seconds=1.0, cache_mb=0)
    assert len(np.unique(starts)) == 1


def test_a_clip_shorter_than_the_window_is_taken_whole(files):
    results = load(files, num_frames=4, clip_seconds=10.0, sound=dict(sample_rate=RATE), test_mode=True)
    assert results["clip_starts"].tolist() == [0.0]
    assert numbers_of(results["imgs"]) == [10, 30, 50, 70]
    assert results["sound_samples"].tolist() == [4 * RATE] and results["waveform"].shape == (1, 10 * RATE)


def test_one_single_frame_is_repeated_as_arrays_of_their_own(files):
    results = load(files, visual="one.mp4", num_frames=3)
    assert numbers_of(results["imgs"]) == [20, 20, 20] and results["frame_inds"].tolist() == [0, 0, 0]
    assert not np.shares_memory(results["imgs"][0], results["imgs"][1])


# sound

def test_short_sound_is_tiled(files):
    results = load(files, audio="short.wav", test_mode=True)
    part = read_sound(files / "short.wav")[0]
    assert results["sound_samples"].tolist() == [len(part)] == [2400]
    np.testing.assert_array_equal(results["waveform"][0], np.tile(part, 4)[:RATE])


def test_short_sound_is_padded_and_the_padding_told(files):
    results = load(files, audio="short.wav", sound=SOUND | dict(pad="zero"), test_mode=True)
    assert results["sound_samples"].tolist() == [2400]
    assert results["waveform"][0, :2400].any() and not results["waveform"][0, 2400:].any()


def test_sound_beyond_the_window_is_left_out(files):
    results = load(files, clip_seconds=0.5, sound=SOUND, test_mode=True)
    assert results["sound_samples"].tolist() == [RATE // 2]
    np.testing.assert_array_equal(results["waveform"][0, : RATE // 2], results["waveform"][0, RATE // 2 :])


def test_sound_is_resampled_to_the_rate_asked_for(files):
    results = load(files, sound=dict(sample_rate=22050, seconds=2.0), test_mode=True)
    assert results["waveform"].shape == (1, 44100) and results["sample_rate"] == 22050
    assert results["waveform"].dtype == np.float32


def test_sound_alone_and_frames_alone(files):
    only = LoadClip(sound=SOUND, modalities=["audio"], clip_seconds=1.0, test_mode=True)
    results = only(dict(media=dict(audio=str(files / "ramp.wav"))))
    assert "imgs" not in results and results["available"] == {"audio": True}
    assert results["clip_starts"].tolist() == [1.5]
    only = LoadClip(num_frames=2, modalities=["visual"], test_mode=True)
    results = only(dict(media=dict(visual=str(files / "silent.mp4"), audio=None)))
    assert "waveform" not in results and numbers_of(results["imgs"]) == [20, 60]


# faults

@pytest.mark.parametrize(("visual", "audio", "kind", "m"), [
    ("silent.mp4", "silent.mp4", NoStream, "audio"),
    ("clip.mp4", "empty.wav", EmptyStream, "audio"),
    ("clip.mp4", "cut.mp4", DamagedMedia, "audio"),
    ("cut.mp4", "ramp.wav", DamagedMedia, "visual"),
    ("ramp.wav", "ramp.wav", NoStream, "visual"),
])
def test_a_fault_is_an_error_or_a_missing_modality_as_the_config_says(files, visual, audio, kind, m):
    bad = visual if m == "visual" else audio
    with pytest.raises(kind, match=rf"{bad}.*LoadClip.on_fault=dict\({m}='missing'\)"):
        load(files, visual, audio)
    results = load(files, visual, audio, on_fault={m: "missing"})
    other = "audio" if m == "visual" else "visual"
    assert results["available"] == {m: False, other: True}


def test_on_fault_of_one_modality_does_not_excuse_the_other(files):
    with pytest.raises(NoStream, match="silent.mp4"):
        load(files, "silent.mp4", "silent.mp4", on_fault=dict(visual="missing"))


def test_nothing_left_is_always_an_error(files):
    both = dict(visual="missing", audio="missing")
    with pytest.raises(DamagedMedia, match="cut.mp4.*drop the clip"):
        load(files, "cut.mp4", "cut.mp4", on_fault=both)
    with pytest.raises(DamagedMedia, match="drop the clip"):
        load(files, None, None, on_fault=both)


def test_a_file_that_does_not_exist_is_always_an_error(files):
    with pytest.raises(MissingFile, match="absent.wav"):
        load(files, audio="absent.wav", on_fault=dict(audio="missing"))


def test_a_modality_that_the_data_set_declares_missing_needs_no_option(files):
    results = load(files, audio=None)
    assert results["available"] == {"visual": True, "audio": False}
    assert results["waveform"].shape == (1, RATE) and results["sound_samples"].tolist() == [0]


def test_what_an_earlier_step_says_is_missing_is_not_read_and_the_rest_stays(files):
    media = dict(visual=str(files / "clip.mp4"), audio=str(files / "cut.mp4"))
    results = LoadClip(num_frames=2, sound=SOUND)(dict(media=media, available=dict(audio=False, depth=False)))
    assert results["available"] == {"visual": True, "audio": False, "depth": False}
    assert not results["waveform"].any()


def test_a_fault_is_told_once_for_each_file(files, monkeypatch):
    told = []
    monkeypatch.setattr("mmfusion_plugin.recognition.transforms.print_log", lambda text, **_: told.append(text))
    loader = LoadClip(num_frames=2, sound=SOUND, on_fault=dict(audio="missing"))
    for _ in range(3):
        loader(dict(media=dict(visual=str(files / "silent.mp4"), audio=str(files / "silent.mp4"))))
    assert len(told) == 1 and "'audio' is marked as missing" in told[0] and "silent.mp4" in told[0]


def test_a_fault_does_not_change_what_is_drawn(files):
    inds = []
    for audio in ("ramp.wav", "empty.wav"):
        np.random.seed(3)
        load(files, audio=audio, on_fault=dict(audio="missing"))
        inds.append(load(files)["frame_inds"].tolist())
    assert inds[0] == inds[1]


def test_missing_video_takes_the_given_size_where_nothing_resizes(files):
    results = load(files, visual=None, missing_size=(48, 64))
    assert results["imgs"][0].shape == (48, 64, 3) and results["img_shape"] == (48, 64)
    assert np.isnan(results["frame_times"]).all()


# real clips

def test_real_clips(shared_data):
    loader = LoadClip(num_frames=3, clip_seconds=2.0, sound=dict(sample_rate=16000), on_fault=dict(audio="missing"),
                      test_mode=True)
    path = str(shared_data / "clips" / "with_sound.avi")
    results = loader(dict(media=dict(visual=path, audio=path)))
    start = results["clip_starts"][0]
    assert start == pytest.approx((6.56 - 2) / 2, abs=0.1)
    asked = start + np.array([1 / 3, 1, 5 / 3])
    assert all(np.array_equal(a, b) for a, b in zip(results["imgs"], read_frames(path, asked)[0]))
    np.testing.assert_array_equal(results["waveform"][0], read_sound(path, start, 2.0, 16000)[0])
    path = str(shared_data / "clips" / "silent.mp4")
    results = loader(dict(media=dict(visual=path, audio=path)))
    assert results["available"] == {"visual": True, "audio": False}
    assert results["clip_starts"][0] == pytest.approx(4.0)


# options

@pytest.mark.parametrize(("options", "told"), [
    (dict(modalities="visual"), "modalities must be a list"),
    (dict(modalities=["visual", "depth"]), "modalities must be a list"),
    (dict(num_frames=0), "num_frames must be a positive integer"),
    (dict(num_frames=None), "num_frames is None with modalities"),
    (dict(sound=None), "sound is None with modalities"),
    (dict(sound=dict(sample_rate=RATE)), "sound.seconds must be positive, got None"),
    (dict(sound=SOUND | dict(pad="wrap")), "sound.pad must be one of"),
    (dict(sound=SOUND | dict(rate=3)), "sound must name sample_rate, seconds and pad"),
    (dict(sound=SOUND | dict(sample_rate=8e3)), "sound.sample_rate must be a positive integer"),
    (dict(on_fault=dict(audio="ignore")), "on_fault must say one of"),
    (dict(on_fault=dict(depth="missing")), "on_fault must say one of"),
    (dict(clip_seconds=-1), "clip_seconds must be positive"),
    (dict(num_clips=2), "num_clips is 2, but clip_seconds=None"),
    (dict(sample="dense"), "sample must be one of"),
    (dict(cache_mb=-1), "cache_mb must not be negative"),
    (dict(missing_size=(0, 4)), "missing_size must be"),
])
def test_impossible_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        LoadClip(**dict(num_frames=2, sound=SOUND) | options)


@pytest.mark.parametrize(("options", "told"), [
    (dict(), "needs a preset or n_fft and hop"),
    (dict(preset="vggish"), "preset must be one of"),
    (dict(preset="crema-d-udml", hop=3), "drop one of them"),
    (dict(preset="crema-d-udml", floor=0), "floor must be positive"),
    (dict(preset="crema-d-udml", floor=-1.0), "floor must be positive"),
])
def test_impossible_spectrogram_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        AudioSpectrogram(**options)


def test_mmaction2s_own_decoding_gives_no_waveform():
    with pytest.raises(ValueError, match=r"results\['waveform'\], found \['imgs'\]; decode by LoadClip"):
        AudioSpectrogram(n_fft=64, hop=32)(dict(imgs=[]))


def test_a_data_set_without_media_is_told():
    with pytest.raises(ValueError, match="LoadClip.modalities is .*the data set gives .'visual'."):
        LoadClip(num_frames=2, sound=SOUND)(dict(media=dict(visual="x.mp4")))


def test_a_file_alone_holds_every_modality(files):
    results = LoadClip(num_frames=2, sound=SOUND)(dict(filename=str(files / "clip.mp4"), label=-1))
    assert results["available"] == {"visual": True, "audio": True} and results["waveform"].any()


def test_a_data_set_that_names_no_file_is_told():
    with pytest.raises(ValueError, match=r"the data set gives \['frame_dir', 'label'\]; use dataset.type="):
        LoadClip(num_frames=2, sound=SOUND)(dict(frame_dir="x", label=0))


def test_the_root_mean_square_takes_loudness_away_and_leaves_silence():
    quiet = np.random.default_rng(0).normal(0, 0.01, (2, 4000)).astype(np.float32)
    quiet[1] = 0
    spectrogram = AudioSpectrogram(n_fft=256, hop=128, rms=0.5)

    def of(waveform):
        return spectrogram(dict(waveform=waveform, sample_rate=RATE))["spectrogram"]

    np.testing.assert_allclose(of(quiet), of(quiet * 30), atol=1e-4)
    scaled = quiet[0] * 0.5 / np.sqrt(np.mean(quiet[0] ** 2))
    np.testing.assert_allclose(of(quiet)[0, 0], log_spectrogram(torch.from_numpy(scaled), 256, 128).numpy(), atol=1e-4)
    assert (of(quiet)[1] == of(quiet)[1].min()).all()
    with pytest.raises(ValueError, match="rms must be positive"):
        AudioSpectrogram(n_fft=256, hop=128, rms=0)


def test_the_sound_is_rolled_by_so_many_seconds_at_most_and_only_where_asked():
    click = np.zeros((1, 8000), np.float32)
    click[0, 4000] = 1.0

    def place(**options) -> int:
        made = AudioSpectrogram(n_fft=16, hop=8, **options)(dict(waveform=click, sample_rate=8000))
        return int(made["spectrogram"].sum((0, 1, 2)).argmax())

    np.random.seed(0)
    places = [place(roll=0.1) for _ in range(40)]
    assert 400 <= min(places) < 440 and 560 < max(places) <= 600  # 0.1 s are 100 steps of 8 samples
    assert place() == 500
    with pytest.raises(ValueError, match="roll must be a number of seconds"):
        AudioSpectrogram(n_fft=16, hop=16, roll=-1)
