"""Spectrograms, mmaction2's own transforms behind LoadClip, and packed samples."""
from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("mmaction")
pytest.importorskip("av")

from mmaction.registry import TRANSFORMS
from recognition.ramps import SOUND, load

import mmfusion_plugin  # noqa: F401
from mmfusion_plugin.recognition.spectrograms import log_spectrogram
from mmfusion_plugin.recognition.transforms import AudioSpectrogram, LoadClip, PackAudioVisual


def pipeline(visual, files, audio="ramp.wav", crops="CenterCrop", input_format="NCHW", num_clips=1, **options):
    steps = [
        dict(type="LoadClip", num_frames=4, clip_seconds=1.0, num_clips=num_clips, sound=SOUND, test_mode=True)
        | options,
        dict(type="AudioSpectrogram", n_fft=64, hop=32), dict(type="Resize", scale=(-1, 40)),
        dict(type=crops, crop_size=40 if crops == "ThreeCrop" else 32),
        dict(type="FormatShape", input_format=input_format), dict(type="PackAudioVisual")]
    media = {m: None if name is None else str(files / name) for m, name in (("visual", visual), ("audio", audio))}
    results = dict(media=media, label=2, filename="x")
    for step in steps:
        results = TRANSFORMS.build(step)(results)
    return results


@pytest.mark.parametrize(("options", "shape"), [
    (dict(), (4, 3, 32, 32)),
    (dict(num_clips=2), (8, 3, 32, 32)),
    (dict(input_format="NCTHW"), (1, 3, 4, 32, 32)),
    (dict(input_format="NCTHW", num_clips=2), (2, 3, 4, 32, 32)),
    (dict(crops="ThreeCrop"), (12, 3, 40, 40)),
    (dict(crops="ThreeCrop", input_format="NCTHW", num_clips=2), (6, 3, 4, 40, 40)),
])
def test_mmaction2s_own_transforms_follow(files, options, shape):
    packed = pipeline("clip.mp4", files, **options)
    assert packed["inputs"]["visual"].shape == shape and packed["inputs"]["visual"].dtype == torch.uint8
    audio = packed["inputs"]["audio"]
    assert audio.shape == (options.get("num_clips", 1), 1, 33, 251) and audio.dtype == torch.float32


def test_packing_keeps_label_and_metainfo(files):
    sample = pipeline("clip.mp4", files, audio="silent.mp4", on_fault=dict(audio="missing"))["data_samples"]
    assert sample.gt_label.tolist() == [2]
    meta = sample.metainfo
    assert meta["filename"] == "x" and meta["available"] == {"visual": True, "audio": False}
    assert meta["num_clips"] == 1 and meta["frame_inds"].tolist() == [32, 37, 42, 47]


def test_one_modality_of_a_loaded_pair_can_be_packed(files):
    results = load(files, test_mode=True)
    results["imgs"] = np.stack(results["imgs"])
    packed = PackAudioVisual(modalities=["visual"])(results)
    assert set(packed["inputs"]) == {"visual"} and packed["data_samples"].metainfo["available"] == {"visual": True}


@pytest.mark.parametrize(("keys", "meant"), [
    (dict(picture="imgs", sound="spectrogram"), dict(picture=True, sound=False)),
    (dict(visual="imgs", sound="waveform"), dict(visual=True, sound=False)),
    (dict(picture="imgs"), dict(picture=True)),
])
def test_a_modality_of_another_name_is_missing_where_its_file_is(files, keys, meant):
    results = AudioSpectrogram(n_fft=64, hop=32)(load(files, audio=None, test_mode=True))
    results["imgs"] = np.stack(results["imgs"])
    packed = PackAudioVisual(modalities=list(keys), keys=keys)(results)
    assert packed["data_samples"].metainfo["available"] == meant


def test_a_step_of_ones_own_marks_what_is_missing_by_the_packed_name(files):
    results = load(files, test_mode=True)
    results.update(imgs=np.stack(results["imgs"]), flow=np.zeros((1, 4), np.float32))
    results["available"]["flow"] = False
    pack = PackAudioVisual(modalities=["picture", "flow"], keys=dict(picture="imgs", flow="flow"))
    assert pack(results)["data_samples"].metainfo["available"] == {"picture": True, "flow": False}
    del results["available"]
    assert pack(results)["data_samples"].metainfo["available"] == {"picture": True, "flow": True}


def test_packing_only_what_is_missing_is_refused(files):
    results = AudioSpectrogram(n_fft=64, hop=32)(load(files, audio=None))
    with pytest.raises(ValueError, match="x has none of .*audio.*PackAudioVisual.modalities"):
        PackAudioVisual(modalities=["audio"])(results)


def test_packing_names_the_transform_that_is_lacking(files):
    with pytest.raises(ValueError, match="results.*imgs.*FormatShape"):
        PackAudioVisual()(load(files))


def test_spectrograms_are_those_of_each_clip(files):
    results = AudioSpectrogram(n_fft=64, hop=32)(load(files, clip_seconds=1.0, num_clips=3))
    assert results["spectrogram"].shape == (3, 1, 33, 251) and results["spectrogram"].dtype == np.float32
    for n in range(3):
        expected = log_spectrogram(torch.from_numpy(results["waveform"][n]), 64, 32)
        np.testing.assert_allclose(results["spectrogram"][n, 0], expected, atol=1e-5)


def test_a_preset_checks_the_waveform(files):
    with pytest.raises(ValueError, match=r"3.0 s at 22050 Hz, the waveform has 1.000 s at 8000 Hz; set LoadClip.sound"):
        AudioSpectrogram(preset="crema-d-udml")(load(files))
    results = load(files, sound=dict(sample_rate=22050, seconds=3.0))
    assert AudioSpectrogram(preset="crema-d-udml")(results)["spectrogram"].shape == (1, 1, 257, 188)


def test_the_kinetics_sound_preset_is_centred_at_test_and_random_in_training(files):
    sound = dict(sample_rate=16000, seconds=5.0)
    pipe = [LoadClip(num_frames=3, clip_seconds=5.0, sound=sound, test_mode=True),
            AudioSpectrogram(preset="kinetics-sound-udml")]
    results = dict(media=dict(visual=str(files / "clip.mp4"), audio=str(files / "clip.mp4")))
    for step in pipe:
        results = step(results)
    assert results["spectrogram"].shape == (1, 1, 129, 626)


def test_missing_video_takes_the_size_the_pipeline_gives(files):
    packed = [
        pipeline(visual, files)["inputs"]["visual"] for visual in ("clip.mp4", None)
    ]
    assert packed[0].shape == packed[1].shape and packed[0].any() and not packed[1].any()
