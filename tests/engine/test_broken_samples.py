"""Broken files in training: replaced, counted once over all processes, named, and bounded."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("mmseg")
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from segmentation.scene import LOAD, PACK, dataset_cfg, write_frames
from torch.utils.data import DataLoader

from mmfusion_plugin.engine.broken_samples import BrokenSamples, TooManyBroken
from mmfusion_plugin.segmentation.sensors import SensorReadError

NUMBER = 20


@pytest.fixture
def frames(tmp_path):
    """Twenty frames; frame i's colour picture is ``damage``d by :func:`damage`."""
    return write_frames(tmp_path / "frames", names=[f"{i:02d}" for i in range(NUMBER)], size=(16, 16))


def damage(frames: Path, indices) -> None:
    for i in indices:
        path = frames / "RGB" / f"{i:02d}.png"
        path.write_bytes(path.read_bytes()[:100])


def build(frames, **options):
    init_default_scope("mmseg")
    return DATASETS.build(dataset_cfg(frames, [*LOAD, PACK], **options))


def epoch(dataset, workers):
    loader = DataLoader(dataset, batch_size=5, num_workers=workers, collate_fn=list,
                        generator=torch.Generator().manual_seed(0))
    return [Path(x["data_samples"].img_path).stem for batch in loader for x in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_ones_are_replaced_counted_once_and_named(frames, tmp_path, workers):
    damage(frames, [3, 7])
    dataset = build(frames, max_broken=0.1, broken_list=str(tmp_path / "out" / "broken.txt"))
    for _ in range(2):
        names = epoch(dataset, workers)
        assert len(names) == NUMBER and not {"03", "07"} & set(names)
        assert names[2] == "02" and names[4] == "04"
        assert dataset.number_broken == 2
    lines = (tmp_path / "out" / "broken.txt").read_text().splitlines()
    assert sorted(Path(line.split("\t")[0]).name for line in lines) == ["03.png", "07.png"]
    assert all("SensorReadError" in line and "is no readable image (100 bytes)" in line for line in lines)


def test_each_is_logged_once_with_what_is_allowed(frames, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("mmfusion_plugin.engine.broken_samples.print_log", lambda text, **_: said.append(text))
    damage(frames, [3, 7])
    dataset = build(frames, max_broken=0.1, broken_list=str(tmp_path / "broken.txt"))
    for _ in range(2):
        epoch(dataset, 0)
    assert [text.split(" is broken and replaced by another sample ")[1] for text in said] == [
        f"({i} of 20, dataset.max_broken allows 2; see {tmp_path}/broken.txt)" for i in (1, 2)]


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_allowed_stop_training(frames, tmp_path, workers):
    damage(frames, [3, 7, 11])
    dataset = build(frames, max_broken=0.1, broken_list=str(tmp_path / "broken.txt"))
    with pytest.raises(TooManyBroken, match=r"3 of 20 samples are broken, dataset.max_broken=0.1 allows 2; see .*txt"):
        epoch(dataset, workers)


def test_exactly_the_stated_share_is_allowed(tmp_path):
    """0.29 x 100 is less than 29."""
    class Hundred:
        def full_init(self):
            pass

        def __len__(self):
            return 100

        def get_data_info(self, idx):
            return dict(filename=str(idx))

        def prepare_data(self, idx):
            raise OSError(idx)

    class Broken(BrokenSamples, Hundred):
        broken_errors = (OSError,)

    dataset = Broken()
    dataset.allow_broken(0.29, str(tmp_path / "broken.txt"), False)
    dataset.full_init()
    assert [dataset.prepare_data(i) for i in range(29)] == [None] * 29
    with pytest.raises(TooManyBroken, match=r"30 of 100 samples are broken, dataset.max_broken=0.29 allows 29"):
        dataset.prepare_data(29)


def test_nothing_but_broken_samples_stops_even_where_all_may_be(frames, tmp_path):
    damage(frames, range(NUMBER))
    dataset = build(frames, max_broken=1.0, broken_list=str(tmp_path / "broken.txt"))
    with pytest.raises(TooManyBroken, match="20 of 20"):
        epoch(dataset, 0)


def test_without_the_option_and_in_test_mode_the_first_is_an_error(frames, tmp_path):
    damage(frames, [3])
    for options in ({}, dict(test_mode=True)):
        with pytest.raises(SensorReadError, match=r"03\.png"):
            epoch(build(frames, **options), 0)
    listed = dict(broken_list=str(tmp_path / "broken.txt"))
    with pytest.raises(ValueError, match="in test_mode: a score over other samples is no score"):
        build(frames, max_broken=0.1, test_mode=True, **listed)
    with pytest.raises(ValueError, match="needs dataset.broken_list"):
        build(frames, max_broken=0.1)
    with pytest.raises(ValueError, match=r"share of the samples in \[0, 1\], got 3"):
        build(frames, max_broken=3, **listed)


def test_what_is_no_fault_of_a_file_stays_an_error(frames, tmp_path):
    """A label outside the classes is a wrong config, not a broken sample."""
    dataset = build(frames, max_broken=1.0, broken_list=str(tmp_path / "broken.txt"), label_offset=0,
                    metainfo=dict(classes=("one",), palette=[[0, 0, 0]]))
    with pytest.raises(ValueError, match="label .* holds"):
        epoch(dataset, 0)
    assert dataset.number_broken == 0


def test_clips_too(tmp_path):
    pytest.importorskip("mmaction")
    from mmaction.registry import DATASETS as ACTIONS

    from mmfusion_plugin.recognition.media import write_wav

    for i in range(4):
        write_wav(tmp_path / f"{i}.wav", torch.rand(1600).numpy(), 16000)
    (tmp_path / "2.wav").write_bytes(b"RIFF")
    (tmp_path / "list.txt").write_text("".join(f"- {i}.wav 0\n" for i in range(4)))
    init_default_scope("mmaction")
    load = dict(type="LoadClip", modalities=["audio"], sound=dict(sample_rate=16000, seconds=0.1))
    dataset = ACTIONS.build(dict(
        type="AudioVisualDataset", data_root=str(tmp_path), ann_file="list.txt", fields=["visual", "audio", "label"],
        num_classes=1, pipeline=[load], max_broken=0.25, broken_list=str(tmp_path / "broken.txt")))
    assert [len(dataset[i]["waveform"][0]) for i in range(4)] == [1600] * 4 and dataset.number_broken == 1
    assert "2.wav\tDamagedMedia" in (tmp_path / "broken.txt").read_text()
