from __future__ import annotations

import csv
import gzip
import json
import wave
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("mmaction")

from mmfusion_plugin.recognition import digit_clips
from mmfusion_plugin.recognition.digit_clips import CLASSES, IMAGES, SPEAKERS, Difficulty, generate, plan, read_mnist
from mmfusion_plugin.recognition.media import read_frames, read_sound

COUNTS = dict(train=12, val=3, test=3)


def spoken(digit, speaker, take):
    """A hum whose pitch tells the digit, in a quarter of a second or, for one speaker, longer than a clip."""
    time = np.arange(9000 if speaker == "lucas" else 2000) / 8000
    return np.sin(2 * np.pi * (300 + 100 * digit) * time) * (0.2 + 0.1 * take)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(10000) % 10).astype(np.uint8)
    images = np.zeros((10000, 28, 28), np.uint8)
    images[:, 6:22, 6:22] = 255 * (rng.random((10000, 16, 16)) < 0.1 * labels[:, None, None])
    for name, header, data in (("t10k-images-idx3-ubyte.gz", (2051, 10000, 28, 28), images),
                               ("t10k-labels-idx1-ubyte.gz", (2049, 10000), labels)):
        (root / name).write_bytes(gzip.compress(np.array(header, ">i4").tobytes() + data.tobytes(), 1))
    (root / "recordings").mkdir()
    for speaker in sum(SPEAKERS.values(), ()):
        for digit in range(10):
            for take in range(2):
                with wave.open(str(root / "recordings" / f"{digit}_{speaker}_{take}.wav"), "wb") as file:
                    file.setparams((1, 2, 8000, 0, "NONE", ""))
                    file.writeframes((spoken(digit, speaker, take) * 32767).astype("<i2").tobytes())
    return root


@pytest.fixture(scope="module")
def clips(sources, tmp_path_factory):
    return generate(tmp_path_factory.mktemp("digits") / "clips", sources, sources, COUNTS)


def planned(sources, counts, seed=0):
    return plan(read_mnist(sources)[1], digit_clips.find_recordings(sources), counts, seed)


def test_image_and_word_are_of_the_class(sources):
    labels = read_mnist(sources)[1]
    for part in planned(sources, dict(train=200, val=30, test=30)).values():
        assert all(labels[clip.image] == clip.label == int(clip.recording.name[0]) for clip in part)


def test_parts_share_no_speaker_and_no_image(sources):
    parts = planned(sources, dict(train=2000, val=500, test=1000))
    for part, clips in parts.items():
        assert {clip.recording.stem.split("_")[1] for clip in clips} == set(SPEAKERS[part])
        assert all(clip.image in IMAGES[part] for clip in clips)
    spans = sorted((span.start, span.stop) for span in IMAGES.values())
    assert spans == [(0, 7000), (7000, 8000), (8000, 10000)]
    assert len(set(sum(SPEAKERS.values(), ()))) == 6


def test_classes_and_sources_are_used_evenly(sources):
    clips = planned(sources, dict(train=400, val=1, test=1))["train"]
    assert set(Counter(clip.label for clip in clips).values()) == {40}
    assert set(Counter(clip.recording for clip in clips).values()) == {5}  # 80 recordings
    assert max(Counter(clip.image for clip in clips).values()) == 1
    assert [clip.label for clip in clips[:12]] == [*range(10), 0, 1]


def test_partners_change_with_the_seed(sources):
    assert planned(sources, COUNTS) == planned(sources, COUNTS)
    assert planned(sources, COUNTS) != planned(sources, COUNTS, seed=1)


def test_lists_folders_and_sources_agree(clips):
    assert (clips / "train.txt").read_text().splitlines()[0] == "train/zero/0001.mp4 0"
    rows = list(csv.DictReader((clips / "sources.csv").open()))
    assert len(rows) == 18
    for part, number in COUNTS.items():
        listed = [line.rsplit(" ", 1) for line in (clips / f"{part}.txt").read_text().splitlines()]
        assert len(listed) == number
        assert {name for name, _ in listed} == {str(p.relative_to(clips)) for p in (clips / part).rglob("*.mp4")}
        assert all(name.split("/")[1] == CLASSES[int(label)] for name, label in listed)
        recordings = [row["recording"] for row in rows if row["path"].startswith(part)]
        assert [int(name[0]) for name in recordings] == [int(label) for _, label in listed]
    meta = json.loads((clips / "META.json").read_text())
    assert meta["difficulty"]["noise"] == Difficulty.noise
    assert meta["parts"] == COUNTS
    assert "CC BY-SA 4.0" in (clips / "README.txt").read_text()


def test_same_seed_same_files_in_any_number_of_processes(sources, clips, tmp_path):
    again = generate(tmp_path / "again", sources, sources, COUNTS, workers=2)
    for path in clips.rglob("*.*"):
        assert (again / path.relative_to(clips)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("label", [0, 3, 9])
def test_the_stored_clip_shows_and_says_its_digit(sources, tmp_path, label):
    """Without noise: the pitch that was stored in the source, and about the image's share of bright pixels."""
    easy = Difficulty(contrast=100, noise=0, clutter=0, snr=40, spread=0)
    out = generate(tmp_path / "easy", sources, sources, dict(train=10, val=1, test=1), difficulty=easy)
    path = out / "train" / CLASSES[label] / f"{label + 1:04d}.mp4"
    sound, rate = read_sound(path)
    assert (len(sound), rate) == (8000, 8000)
    assert np.abs(np.fft.rfft(sound)).argmax() == pytest.approx(300 + 100 * label, abs=3)
    frames, _ = read_frames(path, np.arange(8) / 8)
    film = np.stack(frames).astype(float)
    y, x = np.meshgrid(*[np.linspace(-1, 1, 48)] * 2, indexing="ij")
    plane = np.stack([y, x, np.ones_like(x)], -1).reshape(-1, 3)
    outer = (np.maximum(abs(x), abs(y)) > 0.95).ravel()
    amount = []
    for frame in film:
        fit = plane @ np.linalg.lstsq(plane[outer], frame.reshape(-1, 3)[outer], rcond=None)[0]
        amount.append((np.abs(frame.reshape(-1, 3) - fit).sum(1) > 80).sum())
    ink = 0.1 * label * 16**2
    assert 0.5 * ink < np.median(amount) + 20 < 2.5 * ink + 60


def film(image, others=None, seed=0, **difficulty):
    others = np.zeros((0, 28, 28), np.uint8) if others is None else others
    return digit_clips.film(np.random.default_rng(seed), image, others, 48, replace(Difficulty(), **difficulty))


def test_sensor_noise_has_the_stated_strength_and_is_new_in_every_frame():
    blank = np.zeros((28, 28), np.uint8)
    noise = film(blank, noise=20, clutter=0).astype(float) - film(blank, noise=0, clutter=0)
    assert noise.std() == pytest.approx(20, rel=0.05)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05


def test_clutter_is_small_pieces_of_the_others():
    blank, full = np.zeros((28, 28), np.uint8), np.full((2, 28, 28), 255, np.uint8)
    strokes = np.abs(film(blank, full, noise=0).astype(float) - film(blank, 0 * full, noise=0)).sum(-1)
    area = (strokes > 40).sum((1, 2))
    assert (area < 2 * (1.3 * 8) ** 2 + 40).all()
    assert (area > (0.8 * 8) ** 2 - 10).all()


def test_the_digit_drifts_inside_the_picture():
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 4:24] = 255
    travelled = []
    for seed in range(10):
        clip = np.abs(film(image, seed=seed, noise=0).astype(float) - film(0 * image, seed=seed, noise=0)).sum(-1)
        shown = clip > clip.max() / 2
        centres = [np.argwhere(frame).mean(0) for frame in shown]
        travelled.append(np.linalg.norm(centres[-1] - centres[0]))
        area = shown.sum((1, 2))
        assert area.min() > 0.85 * area.max()  # nothing leaves the picture
    assert np.median(travelled) > 2


@pytest.mark.parametrize("snr", [-6, 0, 6])
def test_the_noise_has_the_stated_ratio(snr):
    speech = np.sin(np.arange(8000) * 0.7)  # as long as the clip
    difficulty = Difficulty(snr=snr, spread=0)
    mixed = digit_clips.sound(np.random.default_rng(0), speech, difficulty).astype(float)
    gain = mixed @ speech / (speech @ speech)
    noise = mixed - gain * speech
    assert 10 * np.log10((gain * speech).var() / noise.var()) == pytest.approx(snr, abs=0.5)


def test_a_short_word_comes_at_a_random_moment_and_a_long_one_is_cut():
    easy = Difficulty(snr=60, spread=0)
    starts = set()
    for seed in range(5):
        sound = digit_clips.sound(np.random.default_rng(seed), np.ones(1000), easy)
        loud = np.flatnonzero(sound > sound.max() / 2)
        assert len(loud) == 1000
        starts.add(int(loud[0]))
    assert len(starts) == 5
    ramp = np.linspace(0, 1, 16000)
    sound = digit_clips.sound(np.random.default_rng(0), ramp, easy)
    assert np.corrcoef(sound, ramp[:8000])[0, 1] > 0.999


def test_absent_and_damaged_sources_are_named(sources, tmp_path):
    with pytest.raises(FileNotFoundError, match="t10k-images"):
        generate(tmp_path / "a", tmp_path, sources, COUNTS)
    with pytest.raises(FileNotFoundError, match="no spoken digits"):
        generate(tmp_path / "a", sources, tmp_path, COUNTS)
    for name in digit_clips.MNIST_FILES:
        (tmp_path / name).write_bytes((sources / name).read_bytes())
    cut = tmp_path / digit_clips.MNIST_FILES[0]
    cut.write_bytes(cut.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="t10k-images.* is damaged"):
        read_mnist(tmp_path)
    cut.write_bytes((sources / digit_clips.MNIST_FILES[1]).read_bytes())
    with pytest.raises(ValueError, match="t10k-images.* is no such IDX file"):
        read_mnist(tmp_path)


def test_another_kind_of_wav_is_refused(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((2, 2, 44100, 0, "NONE", ""))
        file.writeframes(bytes(400))
    with pytest.raises(ValueError, match=r"a\.wav: expected .* 8000 Hz, got \(2, 2, 44100\)"):
        digit_clips.read_wav(tmp_path / "a.wav")
    (tmp_path / "b.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match=r"b\.wav is no readable wav"):
        digit_clips.read_wav(tmp_path / "b.wav")


def test_a_speaker_without_a_digit_is_named(sources):
    paths = [p for p in digit_clips.find_recordings(sources) if not p.name.startswith("4_george")]
    with pytest.raises(ValueError, match="digit 4 by george, who belong to 'val'"):
        plan(read_mnist(sources)[1], paths, COUNTS, 0)


def test_impossible_numbers(sources, tmp_path):
    with pytest.raises(ValueError, match="one clip or more in each of"):
        generate(tmp_path / "a", sources, sources, dict(train=1, val=1))
    with pytest.raises(ValueError, match="even size"):
        generate(tmp_path / "a", sources, sources, COUNTS, size=31)


def test_the_real_sources(shared_data):
    images, labels = read_mnist(shared_data / "mnist")
    assert Counter(labels.tolist())[1] == 1135  # the published counts of MNIST's test part
    assert images.mean() == pytest.approx(33.79, abs=0.01)
    parts = plan(labels, digit_clips.find_recordings(shared_data / "spoken_digits"),
                 dict(train=4000, val=500, test=1000), 0)
    assert {part: len({clip.recording for clip in clips}) for part, clips in parts.items()} == dict(
        train=2000, val=500, test=500)
    assert all(len({clip.image for clip in clips}) == len(clips) for clips in parts.values())
    assert len(digit_clips.read_wav(parts["train"][0].recording)) > 1000
