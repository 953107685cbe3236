"""Clips extracted to frames and wav files: the same samples as from the videos, and runs that are broken off."""
from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
import wave
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("mmaction")
pytest.importorskip("av")

import av
from mmengine.registry import init_default_scope

import mmfusion_plugin  # noqa: F401
from mmfusion_plugin.recognition import extraction, frame_folders
from mmfusion_plugin.recognition.clip_lists import ConversionError
from mmfusion_plugin.recognition.datasets import AudioVisualDataset
from mmfusion_plugin.recognition.extraction import Options, extract
from mmfusion_plugin.recognition.media import DamagedMedia, MissingFile, NoStream, read_frames, read_sound, write_clip

RATE, FPS = 8000, 10
EXTRACTED = dict(visual_suffix="", data_prefix=dict(visual="extracted", audio="extracted"))
LISTED = "a/clip one.mp4 0\na/silent.mp4 1\nb/cut.mp4 1\n"


def picture(i):
    """64 x 96, a smooth gradient, so that JPEG is close, whose level tells the frame."""
    gradient = np.add.outer(np.arange(64), np.arange(96))[..., None] + np.array([0, 30, 60])
    return np.clip(gradient * 0.4 + 6 * i, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    for folder in "ab":
        (root / folder).mkdir()
    frames = [picture(i) for i in range(20)]
    tone = 0.5 * np.sin(np.arange(2 * RATE) * 0.3)
    write_clip(root / "a" / "clip one.mp4", frames, FPS, tone, RATE)
    write_clip(root / "a" / "silent.mp4", frames[:8], FPS)
    content = (root / "a" / "clip one.mp4").read_bytes()
    (root / "b" / "cut.mp4").write_bytes(content[: len(content) // 2])
    (root / "list.txt").write_text(LISTED)
    return root


@pytest.fixture
def data(source, tmp_path):
    init_default_scope("mmaction")
    return Path(shutil.copytree(source, tmp_path / "data"))


def lines_of(out):
    return {line["clip"]: line for line in map(json.loads, (out / "manifest.jsonl").read_text().splitlines())}


def samples(data, loader=None, **options):
    load = dict(type="LoadClip", num_frames=4, sound=dict(sample_rate=RATE, seconds=1.0), test_mode=True)
    return AudioVisualDataset("list.txt", [load | (loader or {})], data_root=str(data), num_classes=2, **options)


def stamps(out):
    return {path.relative_to(out): path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


# what is written

def test_frames_are_those_of_the_video_in_order(data):
    extract(data, "list.txt", data / "extracted")
    video = data / "a" / "clip one.mp4"
    names = sorted(os.listdir(data / "extracted" / "a" / "clip one"))
    assert names == [f"img_{i:05d}.jpg" for i in range(1, 21)]
    decoded, _ = read_frames(video, np.arange(20) / FPS)
    for name, frame in zip(names, decoded):
        stored = cv2.imread(str(data / "extracted" / "a" / "clip one" / name))[..., ::-1]
        assert np.abs(stored.astype(int) - frame).mean() < 2  # neighbours differ by 6


def test_sound_is_16_bit_mono_at_the_asked_rate(data):
    extract(data, "list.txt", data / "extracted", Options(sample_rate=4000))
    path = data / "extracted" / "a" / "clip one.wav"
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 4000)
    expected, _ = read_sound(data / "a" / "clip one.mp4", sample_rate=4000)
    np.testing.assert_allclose(read_sound(path)[0], expected, atol=1 / 32768)


def test_manifest_tells_times_size_and_sound(data):
    extract(data, "list.txt", data / "extracted")
    line = lines_of(data / "extracted")["a/clip one"]
    np.testing.assert_allclose(line["times"], np.arange(20) / FPS, atol=1e-9)
    keys = ("frames", "fps", "size", "seconds", "sample_rate")
    assert [line[key] for key in keys] == [20, 10, [64, 96], 2, RATE]


def test_thinning_keeps_the_frames_on_screen_at_each_tick(data):
    extract(data, "list.txt", data / "extracted", Options(fps=4))
    line = lines_of(data / "extracted")["a/clip one"]
    # ticks 0, 0.25, 0.5, 0.75, ... of 10 frames per second
    np.testing.assert_allclose(line["times"], [0, 0.2, 0.5, 0.7, 1.0, 1.2, 1.5, 1.7], atol=1e-9)
    assert line["end"] == pytest.approx(2.0)
    extract(data, "list.txt", data / "all", Options(fps=50))
    assert lines_of(data / "all")["a/clip one"]["frames"] == 20


def test_shrinking_brings_the_shorter_side_to_the_asked_length_and_never_enlarges(data):
    extract(data, "list.txt", data / "small", Options(short_side=32))
    extract(data, "list.txt", data / "large", Options(short_side=640))
    first = Path("a", "clip one", "img_00001.jpg")
    assert cv2.imread(str(data / "small" / first)).shape == (32, 48, 3)
    assert cv2.imread(str(data / "large" / first)).shape == (64, 96, 3)
    assert lines_of(data / "small")["a/clip one"]["size"] == [32, 48]


def test_broken_clips_are_counted_and_leave_no_files(data):
    report = extract(data, "list.txt", data / "extracted", processes=2)
    assert (report.clips, report.frames, report.broken) == (3, 28, 1)
    assert report.faults == {"audio: damaged": 1, "audio: no stream": 1, "visual: damaged": 1}
    assert "cut.mp4" in report.text()
    left = {path.relative_to(data / "extracted").as_posix() for path in (data / "extracted").rglob("*")}
    assert {name for name in left if not name.endswith(".jpg")} == {
        "manifest.jsonl", "list.txt", "a", "a/clip one", "a/clip one.wav", "a/silent", "b"}


def test_list_beside_the_frames_reads_alone(data):
    extract(data, "list.txt", data / "extracted")
    dataset = samples(data / "extracted", data_prefix=dict(visual="", audio=""))
    assert [dataset.get_data_info(i)["label"] for i in range(3)] == [0, 1, 1]
    assert dataset[0]["available"] == dict(visual=True, audio=True)


def test_clips_that_differ_only_in_their_ending_are_refused(data):
    (data / "list.txt").write_text("a/clip.mp4 0\na/clip.avi 0\n")
    with pytest.raises(ConversionError, match="lines 1 and 2"):
        extract(data, "list.txt", data / "extracted")


@pytest.mark.parametrize("name", ["a/clip.avi.mp4", "a/clip.mp4.mp4"])
def test_clips_with_two_endings_are_refused(data, name):
    (data / "list.txt").write_text(f"{name} 0\n")
    with pytest.raises(ConversionError, match=r"line 1: the clip would be named a/clip\.(avi|mp4).*rename"):
        extract(data, "list.txt", data / "extracted")


def test_sources_are_never_replaced(data):
    with pytest.raises(ConversionError, match=r"list\.txt.*another --out"):
        extract(data, "list.txt", data, overwrite=True)


# reading it back

@pytest.mark.parametrize("loader", [
    dict(), dict(clip_seconds=0.7, num_clips=3, num_frames=3), dict(cache_mb=8),
    dict(test_mode=False, sample="random", num_frames=6, clip_seconds=0.5)])
def test_samples_equal_those_of_the_video(data, loader):
    extract(data, "list.txt", data / "extracted")
    np.random.seed(3)
    decoded = samples(data, loader)[0]
    np.random.seed(3)
    stored = samples(data, loader, **EXTRACTED)[0]
    assert stored["frame_inds"].tolist() == decoded["frame_inds"].tolist()
    for key in ("frame_times", "clip_starts"):
        np.testing.assert_array_equal(stored[key], decoded[key])
    assert (stored["total_frames"], stored["img_shape"]) == (decoded["total_frames"], decoded["img_shape"])
    assert np.abs(np.array(stored["imgs"], int) - np.array(decoded["imgs"])).mean() < 2
    np.testing.assert_allclose(stored["waveform"], decoded["waveform"], atol=1 / 32768)


def test_windows_of_thinned_clips_are_those_of_the_video(data):
    extract(data, "list.txt", data / "extracted", Options(fps=3))
    loader = dict(clip_seconds=0.7, num_clips=3, num_frames=1)
    np.testing.assert_allclose(
        samples(data, loader, **EXTRACTED)[0]["clip_starts"], samples(data, loader)[0]["clip_starts"], atol=1e-9)


def test_windows_of_sound_that_sets_in_late_are_those_of_the_video(data):
    with av.open(str(data / "a" / "clip one.mp4")) as given, av.open(str(data / "late.mkv"), "w") as container:
        streams = [container.add_stream_from_template(stream) for stream in given.streams]
        for packet in given.demux():
            if packet.dts is not None:
                late, stream = round(packet.stream_index / packet.time_base), streams[packet.stream_index]
                packet.pts, packet.dts, packet.stream = packet.pts + late, packet.dts + late, stream
                container.mux(packet)
    (data / "list.txt").write_text("late.mkv 0\n")
    extract(data, "list.txt", data / "extracted")
    loader = dict(clip_seconds=0.5, num_clips=3)
    decoded, stored = (samples(data, loader, **options)[0] for options in ({}, EXTRACTED))
    assert decoded["clip_starts"].min() > 0.8
    np.testing.assert_array_equal(stored["clip_starts"], decoded["clip_starts"])
    line = lines_of(data / "extracted")["late"]
    (data / "extracted" / "manifest.jsonl").write_text(json.dumps(line | dict(sound=[1])) + "\n")
    with pytest.raises(DamagedMedia, match=r"late\.wav.*gives no span of sound"):
        samples(data, loader, **EXTRACTED)[0]


def test_stream_that_was_not_extracted_is_that_of_the_source(data):
    extract(data, "list.txt", data / "extracted")
    with pytest.raises(NoStream, match=r"silent\.mp4 has no audio stream.*on_fault"):
        samples(data, **EXTRACTED)[1]
    sample = samples(data, dict(on_fault=dict(audio="missing")), **EXTRACTED)[1]
    assert sample["available"] == dict(visual=True, audio=False)
    with pytest.raises(DamagedMedia, match=r"cut\.mp4"):
        samples(data, **EXTRACTED)[2]


def test_frame_that_is_gone_is_named(data):
    extract(data, "list.txt", data / "extracted")
    (data / "extracted" / "a" / "clip one" / "img_00003.jpg").unlink()
    dataset = samples(data, dict(num_frames=20), **EXTRACTED)
    with pytest.raises(DamagedMedia, match=r"img_00003\.jpg is missing.*20 frames"):
        dataset[0]


def test_frame_that_claims_too_many_pixels_is_named(data, huge_jpeg):
    extract(data, "list.txt", data / "extracted")
    (data / "extracted" / "a" / "clip one" / "img_00003.jpg").write_bytes(huge_jpeg)
    with pytest.raises(DamagedMedia, match=r"img_00003\.jpg is no picture"):
        samples(data, dict(num_frames=20), **EXTRACTED)[0]


@pytest.mark.parametrize("line", [
    '{"clip": "a", "times": 3, "size": [4, 4], "end": 1}', '{"clip": "a", "times": [0], "end": 1}',
    '{"clip": "a", "times": [0], "size": [4], "end": 1}', '{"clip": "a", "times": [0], "size": [4, 4], "end": null}'])
def test_line_of_a_manifest_that_gives_no_frames_is_a_broken_clip(tmp_path, line):
    (tmp_path / "a").mkdir()
    (tmp_path / "manifest.jsonl").write_text(line + "\n")
    with pytest.raises(DamagedMedia, match="gives no times, size and end"):
        frame_folders.folder_index(tmp_path / "a")


@pytest.mark.parametrize("line", ['{"clip": []}', '{"clip": null}'])
def test_manifest_whose_clips_have_no_names_is_refused(tmp_path, line):
    path = tmp_path / "manifest.jsonl"
    path.write_text("[" * 100_000 + "\n")
    assert frame_folders.read_manifest(path) == {}
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match="is no manifest of extracted clips"):
        frame_folders.read_manifest(path)


def test_folder_without_a_line_is_an_error_whatever_on_fault_says(data):
    extract(data, "list.txt", data / "extracted")
    (data / "extracted" / "manifest.jsonl").unlink()
    with pytest.raises(MissingFile, match=r"no line in a manifest\.jsonl.*line 1 of"):
        samples(data, dict(on_fault=dict(visual="missing")), **EXTRACTED)[0]


# runs that are broken off, and runs over what is there

def test_second_run_leaves_everything_alone(data):
    extract(data, "list.txt", data / "extracted")
    before = stamps(data / "extracted")
    report = extract(data, "list.txt", data / "extracted")
    assert report.earlier == 3 and report.frames == 28
    assert stamps(data / "extracted") == before


@pytest.mark.parametrize("stage", ["_write_sound", "_put_in_place"])
def test_killed_run_goes_on(data, monkeypatch, stage):
    """Broken off within a clip, and between its line and its names; with half a line as well."""
    whole, out = data / "whole", data / "extracted"
    extract(data, "list.txt", whole)

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(extraction, stage, killed)
        with pytest.raises(KeyboardInterrupt):
            extract(data, "list.txt", out)
    assert not (out / "a" / "clip one").exists()
    with open(out / "manifest.jsonl", "a") as file:
        file.write('{"clip": "a/clip one", "ti')
    report = extract(data, "list.txt", out)
    assert report.earlier == (stage == "_put_in_place")
    assert {name.as_posix() for name in stamps(out)} == {name.as_posix() for name in stamps(whole)}
    for name in stamps(whole):
        if name.suffix in (".jpg", ".wav"):
            assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_clip_that_lost_a_frame_is_extracted_again(data):
    extract(data, "list.txt", data / "extracted")
    gone = data / "extracted" / "a" / "clip one" / "img_00003.jpg"
    gone.unlink()
    assert extract(data, "list.txt", data / "extracted").earlier == 2
    assert gone.is_file()


def test_other_options_need_overwrite(data):
    out = data / "extracted"
    extract(data, "list.txt", out)
    before = stamps(out)
    with pytest.raises(ConversionError, match=r"clip one.*--overwrite"):
        extract(data, "list.txt", out, Options(short_side=32))
    assert stamps(out) == before
    extract(data, "list.txt", out, Options(short_side=32), overwrite=True)
    assert cv2.imread(str(out / "a" / "clip one" / "img_00020.jpg")).shape == (32, 48, 3)
    assert lines_of(out)["a/clip one"]["size"] == [32, 48]


def test_files_of_others_are_kept(data):
    foreign = data / "extracted" / "a" / "clip one.wav"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    with pytest.raises(ConversionError, match=r"clip one\.wav.*--overwrite"):
        extract(data, "list.txt", data / "extracted")
    assert foreign.read_text() == "mine"


def test_manifest_of_another_tool_is_refused(data):
    (data / "extracted").mkdir()
    (data / "extracted" / "manifest.jsonl").write_text('{"key": "x", "reason": null}\n')
    with pytest.raises(ConversionError, match="no manifest of extracted clips.*another --out"):
        extract(data, "list.txt", data / "extracted")


def test_tool(data, monkeypatch, capsys):
    tool = str(Path(__file__).parents[2] / "tools" / "extract_clips.py")
    command = [tool, str(data), "list.txt", "--out", str(data / "out"), "--processes", "2"]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(tool, run_name="__main__")
    assert "list.txt: 3 clips (0 extracted earlier): 28 frames" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "--fps", "2"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(tool, run_name="__main__")
    assert "error: " in (message := capsys.readouterr().err) and "--overwrite" in message
