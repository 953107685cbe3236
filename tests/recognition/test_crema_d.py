"""The converter on tiny folders with real clips; the splits on all names there are."""
from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import sys
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("mmaction")
pytest.importorskip("av")

from mmengine.registry import init_default_scope

from mmfusion_plugin.recognition import crema_d
from mmfusion_plugin.recognition.clip_lists import ConversionError
from mmfusion_plugin.recognition.crema_d import EMOTIONS, convert, random_split, speaker_split
from mmfusion_plugin.recognition.media import write_clip, write_wav

# 1002 trains, 1015 validates, 1010 and 1013 test in the speaker-disjoint split.
IDS = [f"{actor}_DFA_{emotion}_XX" for actor in (1002, 1010, 1013, 1015) for emotion in EMOTIONS[:5]]
SENTENCES = "DFA IEO IOM ITH ITS IWL IWW MTI TAI TIE TSI WSI".split()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, [np.full((32, 32, 3), 60 * i, np.uint8) for i in range(4)], 6)
    return path.read_bytes()


@pytest.fixture
def tree(tmp_path, clip):
    root = tmp_path / "crema-d"
    for folder in ("VideoFlash", "AudioWAV"):
        (root / folder).mkdir(parents=True)
    for id in IDS:
        (root / "VideoFlash" / f"{id}.mp4").write_bytes(clip)
        write_wav(root / "AudioWAV" / f"{id}.wav", 0.3 * np.sin(np.arange(4000)), 8000)
    return root


def lines(path):
    return path.read_text().splitlines()


def all_ids():
    """The design: 91 actors, 12 sentences in 6 emotions, one of the sentences at 3 levels."""
    levels = {("IEO", emotion): ("LO", "MD", "HI") for emotion in EMOTIONS if emotion != "NEU"}
    return [f"{actor}_{s}_{e}_{level}" for actor in range(1001, 1092) for s in SENTENCES for e in EMOTIONS
            for level in levels.get((s, e), ("XX",))]


# --- splits ---


def test_speaker_split_has_the_published_validation_and_test_parts():
    """Of 7,462 clips in the design 20 were never published; those are of actors who train."""
    ids = all_ids()
    assert len(ids) == 7462
    parts = Counter(speaker_split(ids).values())
    assert (parts["val"], parts["test"]) == (738, 1556)
    assert parts["train"] - 20 == 5144


def test_speaker_split_shares_no_actor():
    actors = {"train": set(), "val": set(), "test": set()}
    for id, part in speaker_split(all_ids()).items():
        actors[part].add(id[:4])
    assert [len(actors[part]) for part in actors] == [63, 9, 19]
    assert len(set.union(*actors.values())) == 91


def test_speaker_split_of_a_part_is_a_part_of_the_split():
    whole = speaker_split(all_ids())
    some = all_ids()[::17]
    assert speaker_split(some) == {id: whole[id] for id in some if id in whole}


def test_random_split_has_the_usual_sizes_and_is_reproducible():
    ids = all_ids()[:7442]
    parts = random_split(ids)
    assert Counter(parts.values()) == dict(train=6698, test=744)
    assert random_split(reversed(ids)) == parts
    assert random_split(ids, seed=1) != parts


def test_random_split_shares_actors():
    parts = random_split(all_ids()[:7442])
    assert len({id[:4] for id, part in parts.items() if part == "test"}) == 91


# --- conversion ---


def test_lists_by_speaker(tree):
    report = convert(tree, split="speakers")
    assert lines(tree / "speakers_val.txt") == [
        f"1015_DFA_{emotion}_XX.mp4 {label}" for emotion, label in sorted(zip(EMOTIONS, range(5)))]
    assert {line[:4] for line in lines(tree / "speakers_train.txt")} == {"1002"}
    assert {line[:4] for line in lines(tree / "speakers_test.txt")} == {"1010", "1013"}
    assert (report.actors, report.shared_actors) == (4, 0)
    assert report.kept["val"] == dict(NEU=1, HAP=1, SAD=1, FEA=1, DIS=1, ANG=0)


def test_a_part_without_a_clip_leaves_good_lists_alone(tree):
    convert(tree, split="speakers")
    before = {path.name: path.read_bytes() for path in tree.glob("speakers_*")}
    for path in (tree / "AudioWAV").glob("1015*"):
        path.unlink()
    with pytest.raises(ConversionError, match=r"no clip is left for val, .*: audio: no file \(5\); check the folders"):
        convert(tree, split="speakers", overwrite=True)
    assert {path.name: path.read_bytes() for path in tree.glob("speakers_*")} == before


def test_training_reads_what_was_written(tree):
    from mmaction.registry import DATASETS

    import mmfusion_plugin  # noqa: F401
    from mmfusion_plugin.recognition import datasets  # noqa: F401

    init_default_scope("mmaction")
    convert(tree, split="speakers")
    dataset = DATASETS.build(dict(type="CremaDDataset", data_root=str(tree), ann_file="speakers_train.txt",
                                  pipeline=[], check_files=True))
    for i in range(5):
        info = dataset.get_data_info(i)
        assert dataset.metainfo["classes"][info["label"]] in info["filename"]
        assert info["media"]["audio"].endswith(f"AudioWAV/{info['filename'][-19:-4]}.wav")


def test_a_random_split_says_that_it_leaks_and_is_not_the_usual_one(tree):
    report = convert(tree)
    assert report.split == "usual-random"
    both = [{line[:4] for line in lines(tree / f"usual-random_{part}.txt")} for part in ("train", "test")]
    assert report.shared_actors == len(both[0] & both[1]) > 0
    text = (tree / "usual-random_report.txt").read_text()
    assert f"LEAK: {report.shared_actors} of 4 actors are in both parts" in text
    assert "not the field's file lists" in text
    assert len(both[0] | both[1]) == 4


def test_the_usual_lists_are_followed(tree):
    (tree / "train.csv").write_text("".join(f"{id},{id[9:12]}\n" for id in IDS[:12]))
    (tree / "test.csv").write_text("".join(f"{id},{id[9:12]}\n" for id in [*IDS[12:19], "1091_DFA_ANG_XX"]))
    report = convert(tree, train_list=tree / "train.csv", test_list=tree / "test.csv")
    assert [line[:15] for line in lines(tree / "usual_train.txt")] == sorted(IDS[:12])
    assert [line[:15] for line in lines(tree / "usual_test.txt")] == sorted(IDS[12:19])
    assert report.reasons() == {"in none of the lists": 1, "visual: no file": 1}
    assert "not the field's" not in report.text() and "LEAK" in report.text()


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ("1001_DFA_ANG_XX,SAD\n", "", r"train\.csv, line 1: the label is 'SAD', the name says 'ANG'"),
        ("1001_DFA_ANG_XX\n", "1002_DFA_ANG_XX\n1001_DFA_ANG_XX\n", r"test\.csv, line 2: .* listed before, for train"),
        ("id,label\n", "", r"train\.csv, line 1: expected a line such as"),
        ("1001_DFA_ANG_XX\n", "\n", r"lists no clip"),
        (f'"{"x" * 200_000}"\n', "\n", r"train\.csv is no csv file: field larger"),
    ],
)
def test_broken_lists_are_named(tree, train, test, words):
    (tree / "train.csv").write_text(train)
    (tree / "test.csv").write_text(test)
    with pytest.raises(ConversionError, match=words):
        convert(tree, train_list=tree / "train.csv", test_list=tree / "test.csv")


def test_broken_clips_go_from_both_sides_and_move_no_other(tree, clip):
    whole = convert(tree)
    parts = {line: part for part in whole.lists for line in lines(tree / whole.lists[part])}
    (tree / "VideoFlash" / f"{IDS[0]}.mp4").write_bytes(clip[: len(clip) // 2])
    (tree / "AudioWAV" / f"{IDS[1]}.wav").write_bytes(b"")
    (tree / "AudioWAV" / f"{IDS[2]}.wav").unlink()
    (tree / "VideoFlash" / f"{IDS[3]}.mp4").unlink()
    (tree / "VideoFlash" / "1001_DFA_JOY_XX.mp4").write_bytes(clip)
    report = convert(tree, split="speakers")
    assert report.reasons() == {"audio: damaged": 1, "audio: no file": 1, "name without actor and emotion": 1,
                                "sound without a video": 1, "visual: damaged": 1}
    written = json.loads((tree / "speakers_report.json").read_text())
    assert {clip["id"] for clip in written["dropped"]} == {*IDS[:4], "1001_DFA_JOY_XX"}
    (tree / "VideoFlash" / f"{IDS[3]}.mp4").write_bytes(clip)
    again = convert(tree, overwrite=True)
    kept = {line: part for part in again.lists for line in lines(tree / again.lists[part])}
    assert len(kept) == 17 and kept.items() <= parts.items()


def test_flash_videos_and_sound_in_the_video(tmp_path):
    (tmp_path / "VideoFlash").mkdir()
    write_clip(tmp_path / "a.mp4", [np.full((32, 32, 3), 60 * i, np.uint8) for i in range(4)], 6,
               0.3 * np.sin(np.arange(5333)), 8000)
    for id in ("1002_DFA_ANG_XX", "1010_DFA_ANG_XX", "1015_DFA_ANG_XX"):
        (tmp_path / "VideoFlash" / f"{id}.flv").write_bytes((tmp_path / "a.mp4").read_bytes())
    report = convert(tmp_path, split="speakers", sound_folder=None)
    assert report.dropped == []
    assert lines(tmp_path / "speakers_train.txt") == ["1002_DFA_ANG_XX.flv 5"]


def test_sound_elsewhere_than_the_data_set_looks_is_an_error(tree):
    (tree / "AudioWAV" / "more").mkdir()
    (tree / "AudioWAV" / f"{IDS[0]}.wav").rename(tree / "AudioWAV" / "more" / f"{IDS[0]}.wav")
    with pytest.raises(ConversionError, match=rf"more/{IDS[0]}\.wav .*expected .*AudioWAV/{IDS[0]}\.wav"):
        convert(tree)


def test_wrong_folders_and_options(tree, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*Videos; see --video-folder"):
        convert(tree, video_folder="Videos")
    with pytest.raises(ConversionError, match="holds no video with a name such as"):
        convert(tree, video_folder="AudioWAV")
    with pytest.raises(ConversionError, match="go together"):
        convert(tree, train_list="train.csv")
    with pytest.raises(ConversionError, match="--split must be"):
        convert(tree, split="fair")
    convert(tree)
    with pytest.raises(ConversionError, match="exist already.*--overwrite"):
        convert(tree)


def test_the_command_prints_the_leak(tree, repository, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convert_crema_d.py", str(tree), "--split", "usual", "--processes", "1"])
    runpy.run_path(str(repository / "tools" / "convert_crema_d.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert "LEAK" in told and "in both parts" in told and "CremaDDataset" in told


def datasets_of(repository, options=""):
    """The three data sets of a config, with options as they are given to tools/train.py."""
    from mmaction.registry import DATASETS

    import mmfusion_plugin  # noqa: F401
    from mmfusion_plugin.engine import launch

    parser = argparse.ArgumentParser()
    launch.add_common_arguments(parser)
    args = parser.parse_args(shlex.split(options))
    args.config = str(repository / "configs" / "recognition" / "concat_r18_crema-d.py")
    cfg = launch.load_config(args)
    init_default_scope("mmaction")
    loaders = (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
    return [DATASETS.build(loader.dataset | dict(pipeline=[], check_files=True)) for loader in loaders]


def test_the_command_of_the_configs_header_makes_what_they_read(tree, repository, tmp_path, monkeypatch):
    header = (repository / "configs" / "_base_" / "data" / "crema_d.py").read_text()
    command = re.search(r"python tools/(convert_crema_d\.py .*)", header)[1].split()
    (tmp_path / "data").mkdir()
    tree.rename(tmp_path / "data" / "crema_d")
    for name, ids in (("train", IDS[:12]), ("test", IDS[12:])):
        (tmp_path / f"{name}.csv").write_text("".join(f"{id},{id[9:12]}\n" for id in ids))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [*command, "--processes", "1"])
    runpy.run_path(str(repository / "tools" / "convert_crema_d.py"), run_name="__main__")
    assert [len(dataset) for dataset in datasets_of(repository)] == [12, 8, 8]


@pytest.mark.parametrize(("split", "numbers"), [("usual", [18, 2, 2]), ("speakers", [5, 5, 10])])
def test_the_options_that_the_command_prints_make_the_configs_read_its_lists(tree, repository, monkeypatch, capsys,
                                                                            split, numbers):
    monkeypatch.chdir(tree.parent)
    monkeypatch.setattr(sys, "argv", ["convert_crema_d.py", tree.name, "--split", split, "--processes", "1"])
    runpy.run_path(str(repository / "tools" / "convert_crema_d.py"), run_name="__main__")
    monkeypatch.chdir(repository)
    options = capsys.readouterr().out.splitlines()[-1].partition(": ")[2]
    assert [len(dataset) for dataset in datasets_of(repository, options)] == numbers


def test_emotions_are_the_data_sets_classes():
    from mmfusion_plugin.recognition.datasets import CremaDDataset

    assert CremaDDataset.METAINFO["classes"] == crema_d.EMOTIONS
