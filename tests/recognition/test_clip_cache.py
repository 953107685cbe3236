"""Decoded clips that are kept change nothing but the time."""
from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmaction")
pytest.importorskip("av")

from recognition.ramps import FPS, RATE, SOUND, ramp

import mmfusion_plugin  # noqa: F401
from mmfusion_plugin.engine.file_cache import FileCache
from mmfusion_plugin.recognition.media import (
    read_frames,
    write_clip,
)
from mmfusion_plugin.recognition.transforms import LoadClip


def runs(files, cache_mb, **options):
    loader = LoadClip(**dict(num_frames=3, clip_seconds=0.7, sound=SOUND, cache_mb=cache_mb) | options)
    np.random.seed(5)
    names = [("clip.mp4", "clip.mp4"), ("clip.mp4", "ramp.wav"), ("short_sound.mp4", "short_sound.mp4"),
             ("one.mp4", "short.wav")]
    results = []
    for visual, audio in names * 3:
        media = dict(visual=str(files / visual), audio=str(files / audio))
        results.append(loader(dict(media=media)))
    return loader, results


@pytest.mark.parametrize("sound", [SOUND, dict(sample_rate=22050, seconds=0.6)], ids=["stored", "resampled"])
def test_the_cache_never_changes_a_result(files, sound):
    plain = runs(files, 0, sound=sound)[1]
    for cache_mb in (1, 64):
        for a, b in zip(plain, runs(files, cache_mb, sound=sound)[1]):
            assert a["frame_inds"].tolist() == b["frame_inds"].tolist()
            assert np.array_equal(np.stack(a["imgs"]), np.stack(b["imgs"]))
            np.testing.assert_allclose(a["waveform"], b["waveform"], atol=1e-6)
            assert a["sound_samples"].tolist() == b["sound_samples"].tolist()


def test_a_cached_clip_is_not_decoded_again(files, monkeypatch):
    loader, first = runs(files, 64, test_mode=True)

    def never(*_):
        raise AssertionError("decoded again")

    for name in ("read_frames", "read_sound", "frame_index", "sound_span", "probe"):
        monkeypatch.setattr(f"mmfusion_plugin.recognition.transforms.{name}", never)
    again = loader(dict(media=dict(visual=str(files / "clip.mp4"), audio=str(files / "clip.mp4"))))
    assert np.array_equal(np.stack(first[0]["imgs"]), np.stack(again["imgs"]))


def test_pipelines_share_the_cache_and_notice_a_file_written_again(files, tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes((files / "clip.mp4").read_bytes())

    def frames():
        loader = LoadClip(num_frames=2, sound=SOUND, cache_mb=63, test_mode=True)
        return np.stack(loader(dict(media=dict(visual=str(path), audio=str(path))))["imgs"]).astype(int)

    first = frames()
    with monkeypatch.context() as patch:
        patch.setattr("mmfusion_plugin.recognition.transforms.read_frames", None)
        assert np.array_equal(frames(), first)
    write_clip(path, [np.full((48, 64, 3), 250, np.uint8)] * 80, FPS, ramp(4), RATE)
    assert np.abs(frames() - 250).max() < 5


def test_the_cache_stays_within_its_bytes(files):
    loader, _ = runs(files, 1)
    held = sum(size for _, _, size in loader.cache._entries.values())
    assert 0 < held == loader.cache.size <= 2**20


def test_a_full_cache_keeps_what_it_has_and_decodes_nothing_whole_for_the_rest(files, tmp_path, monkeypatch):
    """Epoch after epoch over more than it holds, one that drops the oldest would decode every clip whole."""
    clip = (files / "clip.mp4").read_bytes()
    paths = [tmp_path / f"{i}.mp4" for i in range(4)]
    for path in paths:
        path.write_bytes(clip)
    decoded = []

    def counting(path, at, index=None):
        decoded.append((Path(path).stem, len(at)))
        return read_frames(path, at, index)

    monkeypatch.setattr("mmfusion_plugin.recognition.transforms.read_frames", counting)
    monkeypatch.setattr("mmfusion_plugin.engine.file_cache.print_log", lambda *words: warned.append(words))
    warned = []
    # 80 frames are 0.70 MiB: room for two of four
    loader = LoadClip(num_frames=2, cache_mb=1.6, modalities=("visual",), test_mode=True)
    for _ in range(3):
        for path in paths:
            loader(dict(media=dict(visual=str(path))))
    assert decoded[:4] == [("0", 80), ("1", 80), ("2", 2), ("3", 2)]
    assert decoded[4:] == [("2", 2), ("3", 2)] * 2
    assert len(warned) == 1 and "cache_mb=1.6 has no room" in warned[0][0]


def test_another_version_of_a_file_takes_the_place_of_the_first():
    cache = FileCache(10)
    cache.put("a", 1, "old", 8)
    assert cache.get("a", 2) is None and cache.size == 0
    cache.put("a", 2, "new", 9)
    assert cache.get("a", 2) == "new" and cache.size == 9


def test_a_transform_that_writes_into_frames_leaves_the_cache_alone(files):
    loader = LoadClip(num_frames=2, sound=SOUND, cache_mb=64, test_mode=True)
    media = dict(visual=str(files / "clip.mp4"), audio=str(files / "ramp.wav"))
    first = loader(dict(media=media))
    kept = np.stack(first["imgs"])
    for image in first["imgs"]:
        image[:] = 0
    first["waveform"][:] = 0
    again = loader(dict(media=media))
    assert np.array_equal(np.stack(again["imgs"]), kept) and again["waveform"].any()


def test_a_cached_loader_can_be_sent_to_a_worker(files):
    loader, first = runs(files, 64, test_mode=True)
    again = pickle.loads(pickle.dumps(loader))(
        dict(media=dict(visual=str(files / "clip.mp4"), audio=str(files / "clip.mp4"))))
    assert np.array_equal(np.stack(first[0]["imgs"]), np.stack(again["imgs"]))
