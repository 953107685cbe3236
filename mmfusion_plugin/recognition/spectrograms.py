"""Log spectrograms of waveforms, and the settings in use.

Frames are centred as in ``librosa.stft`` (0.10 or later, which pads with zeros): frame t covers the samples
around t * hop, zeros stand before the first and after the last sample, and S samples give 1 + S // hop frames.
"""
from __future__ import annotations

import warnings
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

__all__ = ["PRESETS", "log_mel", "log_spectrogram", "mel_filters"]

FLOOR = 1e-7

# ``sample_rate`` (Hz), ``seconds`` and ``pad`` belong to LoadClip.sound, the rest to the functions below.
PRESETS = {
    # The way of UDML's scripts for CREMA-D: 22,050 Hz, sound repeated to 3 s, librosa.stft with n_fft 512 and hop 353,
    # log(|STFT| + 1e-7); several public audio-visual code bases share these lines. 66,150 samples -> (257, 188).
    # LoadClip.clip_seconds=None. Other than there, sound shorter than 1 s is repeated to 3 s too, not three times.
    "crema-d-udml": dict(sample_rate=22050, seconds=3.0, pad="tile", n_fft=512, hop=353),
    # UDML's settings for Kinetics-Sound as stated for this project, not compared with the scripts: 16 kHz, 5 s at
    # random in training and from the centre at test, n_fft 256, hop 128; ``tile`` and the floor are those above.
    # 80,000 samples -> (129, 626). LoadClip.clip_seconds=5.0 gives frames and sound of the same 5 s.
    "kinetics-sound-udml": dict(sample_rate=16000, seconds=5.0, pad="tile", n_fft=256, hop=128),
    # In the style of the field's front ends for AudioSet, e.g. AST (Gong et al., Interspeech 2021): 16 kHz, 25 ms
    # windows every 10 ms, 128 mel bins, clips of 10 s. 160,000 samples -> (128, 1001). Not AST's own numbers: it takes
    # Kaldi's filter bank (512 points, pre-emphasis, HTK's mel scale); here plain STFT power, n_fft 400 and Slaney's
    # scale, on which each of 128 filters holds an FFT bin (on HTK's some do not), log(power + 1e-7).
    "audioset-logmel": dict(sample_rate=16000, seconds=10.0, pad="tile", n_fft=400, hop=160, n_mels=128),
}


# S samples, F frequencies, T frames
def log_spectrogram(x: Tensor, n_fft: int, hop: int, floor: float = FLOOR) -> Tensor:
    """log(|STFT| + floor) with a periodic Hann window of ``n_fft`` samples.

    Shapes: (..., S) float -> (..., F = n_fft // 2 + 1, T = 1 + S // hop).
    Raises: ValueError for an empty waveform or impossible numbers.
    """
    return (_stft(x, n_fft, hop).abs() + floor).log()


def log_mel(x: Tensor, filters: Tensor, n_fft: int, hop: int, floor: float = FLOOR) -> Tensor:
    """log(filters |STFT|^2 + floor).

    Args:
        filters: (n_mels, n_fft // 2 + 1), from :func:`mel_filters`.

    Shapes: (..., S) float -> (..., n_mels, T = 1 + S // hop).
    Raises: ValueError for an empty waveform, impossible numbers, filters of another size.
    """
    if filters.shape[-1] != n_fft // 2 + 1:
        raise ValueError(f"filters have {filters.shape[-1]} frequencies, n_fft={n_fft} gives {n_fft // 2 + 1}")
    return (filters @ _stft(x, n_fft, hop).abs().square() + floor).log()


@lru_cache(maxsize=8)
def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> Tensor:
    """(n_mels, n_fft // 2 + 1) float32 triangles of height 1 on Slaney's mel scale, 0 Hz to half the rate.

    Raises: ImportError without librosa; ValueError if a filter holds no frequency.
    """
    if find_spec("librosa") is None:
        raise ImportError("log-mel spectrograms need librosa: pip install librosa (or mmfusion_plugin[mel])")
    import librosa.filters  # seconds to import, and needed for nothing else

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an error of ours says it below
        filters = librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels, norm=None)
    empty = int((filters.max(1) == 0).sum())
    if empty:
        raise ValueError(
            f"{empty} of n_mels={n_mels} filters hold no frequency of n_fft={n_fft} at {sample_rate} Hz; "
            "lower AudioSpectrogram.n_mels or raise n_fft"
        )
    return torch.from_numpy(filters)


def _stft(x: Tensor, n_fft: int, hop: int) -> Tensor:
    for key, value in (("n_fft", n_fft), ("hop", hop)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{key} must be a positive integer, got {value!r}")
    if n_fft % 2:
        raise ValueError(f"n_fft must be even, got {n_fft}")
    if not x.shape[-1]:
        raise ValueError("a spectrogram of no sample: the waveform is empty")
    window = torch.hann_window(n_fft, device=x.device, dtype=x.dtype)
    padded = torch.nn.functional.pad(x.reshape(-1, x.shape[-1]), (n_fft // 2, n_fft // 2))
    spectrum = torch.stft(padded, n_fft, hop, window=window, center=False, return_complex=True)
    return spectrum.reshape(*x.shape[:-1], *spectrum.shape[1:])
