"""Spectrograms against a plain numpy formulation, and the presets' numbers."""
from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from mmfusion_plugin.recognition.spectrograms import PRESETS, log_mel, log_spectrogram, mel_filters

needs_librosa = pytest.mark.skipif(find_spec("librosa") is None, reason="librosa is not installed")


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def framed_magnitudes(x, n_fft, hop):
    """|DFT| of windowed frames centred at t * hop, one by one."""
    padded = np.concatenate([np.zeros(n_fft // 2), x, np.zeros(n_fft // 2)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    frames = [padded[t * hop : t * hop + n_fft] * window for t in range(1 + len(x) // hop)]
    return np.abs(np.fft.rfft(frames)).T


@pytest.mark.parametrize(("n_fft", "hop"), [(512, 353), (256, 128), (400, 160), (16, 20)])
def test_log_spectrogram_equals_framing_by_hand(n_fft, hop):
    x = noise(3000).double()
    expected = np.log(framed_magnitudes(x.numpy(), n_fft, hop) + 1e-7)
    found = log_spectrogram(x, n_fft, hop).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_a_tone_peaks_at_its_frequency():
    x = torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)
    assert log_spectrogram(x, 256, 128)[:, 60].argmax() == 1000 / (16000 / 256)


def test_silence_is_the_floor():
    assert torch.allclose(log_spectrogram(torch.zeros(1000), 256, 128), torch.tensor(1e-7).log())


def test_leading_axes_are_kept():
    x = noise(2, 3, 1000)
    together = log_spectrogram(x, 64, 32)
    assert together.shape == (2, 3, 33, 32)
    torch.testing.assert_close(together[1, 2], log_spectrogram(x[1, 2], 64, 32))


def test_sound_shorter_than_a_window():
    assert log_spectrogram(noise(10), 512, 353).shape == (257, 1)


@pytest.mark.parametrize(("name", "shape"), [
    ("crema-d-udml", (257, 188)),
    ("kinetics-sound-udml", (129, 626)),
    pytest.param("audioset-logmel", (128, 1001), marks=needs_librosa),
])
def test_presets_have_the_sizes_they_state(name, shape):
    preset = PRESETS[name]
    x = noise(round(preset["sample_rate"] * preset["seconds"]))
    if "n_mels" in preset:
        filters = mel_filters(preset["sample_rate"], preset["n_fft"], preset["n_mels"])
        assert log_mel(x, filters, preset["n_fft"], preset["hop"]).shape == shape
    else:
        assert log_spectrogram(x, preset["n_fft"], preset["hop"]).shape == shape


def test_presets_keep_the_numbers_of_their_sources():
    assert PRESETS["crema-d-udml"] == dict(sample_rate=22050, seconds=3.0, pad="tile", n_fft=512, hop=353)
    assert PRESETS["kinetics-sound-udml"] == dict(sample_rate=16000, seconds=5.0, pad="tile", n_fft=256, hop=128)
    audioset = PRESETS["audioset-logmel"]
    assert (audioset["n_fft"] / 16000, audioset["hop"] / 16000, audioset["n_mels"]) == (0.025, 0.010, 128)


@needs_librosa
def test_mel_filters_are_triangles_on_slaneys_scale():
    """Linear below 1 kHz (200 / 3 Hz per mel), logarithmic above (27 mels per factor 6.4)."""
    def hertz(mel):
        return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))

    top = 15 + 27 * np.log(8) / np.log(6.4)  # 8 kHz
    corners = hertz(np.linspace(0, top, 40 + 2))
    frequencies = np.arange(257) * 16000 / 512
    expected = [np.interp(frequencies, corners[i : i + 3], [0, 1, 0]) for i in range(40)]
    np.testing.assert_allclose(mel_filters(16000, 512, 40), expected, atol=1e-5)


@needs_librosa
def test_log_mel_is_the_log_of_filtered_power():
    x, filters = noise(3000).double(), mel_filters(16000, 400, 64).double()
    expected = np.log(filters.numpy() @ framed_magnitudes(x.numpy(), 400, 160) ** 2 + 1e-7)
    np.testing.assert_allclose(log_mel(x, filters, 400, 160).numpy(), expected, atol=1e-8)


@needs_librosa
def test_a_filter_without_any_frequency_is_refused():
    with pytest.raises(ValueError, match="filters hold no frequency.*lower AudioSpectrogram.n_mels"):
        mel_filters(16000, 256, 128)


def test_log_mel_without_librosa_says_what_to_install(monkeypatch):
    monkeypatch.setattr("mmfusion_plugin.recognition.spectrograms.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install librosa"):
        mel_filters(16000, 400, 63)


@pytest.mark.parametrize(("x", "n_fft", "hop", "told"), [
    (torch.zeros(0), 64, 32, "waveform is empty"),
    (torch.zeros(99), 65, 32, "n_fft must be even"),
    (torch.zeros(99), 0, 32, "n_fft must be a positive integer"),
    (torch.zeros(99), 64, 2.5, "hop must be a positive integer"),
], ids=["empty", "odd", "zero", "fraction"])
def test_impossible_numbers_are_refused(x, n_fft, hop, told):
    with pytest.raises(ValueError, match=told):
        log_spectrogram(x, n_fft, hop)


def test_filters_of_another_size_are_refused():
    with pytest.raises(ValueError, match="filters have 9 frequencies, n_fft=64 gives 33"):
        log_mel(noise(100), torch.ones(4, 9), 64, 32)
