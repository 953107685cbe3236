from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("mmaction")

from mmfusion_plugin.recognition import demo_shapes
from mmfusion_plugin.recognition.demo_shapes import CLASSES, generate, render, write_clip_set
from mmfusion_plugin.recognition.media import read_frames, read_sound


def clip(label, i=0):
    return render(np.random.default_rng([3, label, i]), label)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("demo") / "clips", 7, 2)


def test_formats():
    for label in range(len(CLASSES)):
        frames, sound = clip(label)
        assert (frames.shape, frames.dtype) == ((8, 48, 48, 3), np.uint8)
        assert (sound.shape, sound.dtype) == ((8000,), np.float32)
        assert 0.25 < np.abs(sound).max() < 0.95


def test_neither_part_of_a_class_tells_it():
    shapes, tones = zip(*(name.split("_") for name in CLASSES))
    assert all(list(part).count(value) == 2 for part in (shapes, tones) for value in part)


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_the_tone_is_what_the_class_says(label):
    """Pitch of the strongest partial early and late, and how the loudness swings, by plain Fourier sums."""
    tone = CLASSES[label].split("_")[1]
    bends, swings = [], []
    for i in range(12):
        _, sound = clip(label, i)
        early, late = (np.abs(np.fft.rfft(part * np.hanning(len(part)))) for part in (sound[:2000], sound[-2000:]))
        bends.append(np.log2(late[10:].argmax() + 10) - np.log2(early[10:].argmax() + 10))
        loudness = np.sqrt((sound.reshape(-1, 160) ** 2).mean(1))
        swings.append(loudness.std() / loudness.mean())
    if tone == "pulsing":
        assert np.median(swings) > 0.2
    else:
        assert np.median(swings) < 0.15
        assert np.median(bends) * (1 if tone == "rising" else -1) > 0.2


def test_the_shape_is_what_the_class_says():
    """A shape's area over that of the circle around it tells disc, triangle and cross apart, at any turn."""
    grid = np.linspace(-1.2, 1.2, 201)
    u, v = np.meshgrid(grid, grid)
    filling, areas = {}, []
    for shape in demo_shapes.SHAPES:
        inside = demo_shapes._distance(shape, u, v) < 0
        reach = np.hypot(u, v)[inside].max()
        areas.append(inside.sum() * (grid[1] - grid[0]) ** 2)
        filling[shape] = areas[-1] / (np.pi * reach**2)
    assert filling["disc"] == pytest.approx(1, abs=0.03)
    assert filling["triangle"] == pytest.approx(3 * 3**0.5 / (4 * np.pi), abs=0.03)
    w = 0.26  # half the width of a bar of the cross, whose bars are 2 long
    assert filling["cross"] == pytest.approx((8 * w - 4 * w**2) / (np.pi * (1 + w**2)), abs=0.03)
    assert max(areas) < 1.05 * min(areas)  # so that size does not tell the shape


def test_shapes_with_the_same_random_numbers_differ_in_their_outline_only():
    frames = [demo_shapes._film(np.random.default_rng(0), shape, 48).astype(int) for shape in demo_shapes.SHAPES]
    assert (abs(frames[0] - frames[1]).max(-1) == 0).mean() > 0.5


def test_the_shape_moves_inside_the_picture(monkeypatch):
    """Without texture and noise the figure is what differs from the corner; its centre travels."""
    monkeypatch.setattr(demo_shapes, "_texture", lambda rng: lambda x, y: 0 * x)
    travelled = []
    for i in range(10):
        film = demo_shapes._film(np.random.default_rng(i), "disc", 48).astype(float)
        away = np.abs(film - film.mean((1, 2), keepdims=True)).sum(-1)
        figure = away > (away.max() + away.min()) / 2
        centres = [np.argwhere(f).mean(0) for f in figure]
        travelled.append(np.linalg.norm(centres[-1] - centres[0]))
        assert figure.any((1, 2)).all()
    assert np.median(travelled) > 3


def test_lists_and_folders_agree(demo):
    lines = (demo / "train.txt").read_text().splitlines()
    assert lines[0] == "train/disc_rising/0001.mp4 0"
    assert lines[6] == "train/disc_rising/0007.mp4 0"
    for part, number in (("train", 7), ("val", 2)):
        listed = [line.rsplit(" ", 1) for line in (demo / f"{part}.txt").read_text().splitlines()]
        assert {name for name, _ in listed} == {str(p.relative_to(demo)) for p in (demo / part).rglob("*.mp4")}
        assert len(listed) == number
        assert all(name.split("/")[1] == CLASSES[int(label)] for name, label in listed)
    assert json.loads((demo / "META.json").read_text())["parts"] == {"train": 7, "val": 2}


def test_what_is_stored_is_what_was_rendered(demo):
    """Through the codecs: small errors in brightness, sound in step to the sample."""
    frames, sound = render(np.random.default_rng([0, 0, 2]), 2)
    path = demo / "train" / "cross_falling" / "0003.mp4"
    stored, times = read_frames(path, np.arange(8) / 8)
    np.testing.assert_allclose(times, np.arange(8) / 8)
    assert np.abs(np.stack(stored).astype(float) - frames).mean() < 15
    heard, rate = read_sound(path)
    assert rate == 8000
    assert len(heard) == len(sound)
    assert np.correlate(heard, sound, "full").argmax() == len(sound) - 1
    assert np.corrcoef(heard, sound)[0, 1] > 0.98


def test_the_same_seed_gives_the_same_clip():
    for label in range(len(CLASSES)):
        for one, two, other in zip(clip(label), clip(label), clip(label, 1)):
            assert np.array_equal(one, two)
            assert not np.array_equal(one, other)


def test_same_seed_same_files_in_any_number_of_processes(demo, tmp_path):
    again = generate(tmp_path / "again", 7, 2, workers=2)
    for path in demo.rglob("*.*"):
        assert (again / path.relative_to(demo)).read_bytes() == path.read_bytes()


def test_training_and_validation_clips_differ(demo):
    train, val = (read_sound(demo / part / "disc_rising" / "0001.mp4")[0] for part in ("train", "val"))
    assert abs(np.corrcoef(train, val)[0, 1]) < 0.9


def test_a_finished_set_is_kept_and_another_replaced_only_when_asked(tmp_path):
    out = generate(tmp_path / "a", 2, 1)
    before = (out / "train.txt").stat().st_mtime_ns
    generate(out, 2, 1)
    assert (out / "train.txt").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="another clip set"):
        generate(out, 1, 1)
    assert len(list(out.rglob("*.mp4"))) == 3
    generate(out, 1, 1, overwrite=True)
    assert len(list(out.rglob("*.mp4"))) == 2
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_of_something_else_stays_even_with_overwrite(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError, match="no generated clip set"):
        generate(tmp_path / "mine", 1, 1, overwrite=True)
    with pytest.raises(FileExistsError, match="is a file"):
        generate(tmp_path / "mine" / "thesis.txt", 1, 1, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_an_interrupted_run_leaves_the_old_set_and_nothing_half(tmp_path):
    out = generate(tmp_path / "a", 1, 1)
    before = files(out)

    def die(clips, total):
        yield next(iter(clips))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(out, 2, 1, overwrite=True, progress=die)
    assert files(out) == before
    assert list(tmp_path.iterdir()) == [out]


def test_impossible_numbers(tmp_path):
    with pytest.raises(ValueError, match="even size of 32 or more, got 0, 1, 48"):
        generate(tmp_path / "a", 0, 1)
    with pytest.raises(ValueError, match="got 1, 1, 33"):
        generate(tmp_path / "a", 1, 1, size=33)
    with pytest.raises(ValueError, match="at least one worker, got 0"):
        write_clip_set(tmp_path / "a", {}, [], {}, {}, workers=0)
    assert list(tmp_path.iterdir()) == []
