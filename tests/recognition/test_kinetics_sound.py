"""The converter on tiny trees with real clips."""
from __future__ import annotations

import json
import os
import runpy
import sys

import numpy as np
import pytest

pytest.importorskip("mmaction")
av = pytest.importorskip("av")

from mmfusion_plugin.recognition import clip_lists, kinetics_sound  # noqa: E402
from mmfusion_plugin.recognition.clip_lists import ConversionError, load_class_list  # noqa: E402
from mmfusion_plugin.recognition.kinetics_sound import convert  # noqa: E402
from mmfusion_plugin.recognition.media import write_clip, write_wav  # noqa: E402

RATE = 8000
CLASSES = ["playing guitar", "bowling"]
TRAIN = ["-aaaaaaaaa1_000010_000020", "bbbbbbbbb_2_000000_000010", "cccccccccc3_000003_000013",
         "ddddddddd-4_000001_000011"]
VAL = ["eeeeeeeeee5_000010_000020", "ffffffffff6_000010_000020"]


def picture(number):
    frame = np.full((32, 48, 3), 60 + 40 * number, np.uint8)
    frame[:, 4 * number : 4 * number + 8] = 200
    return frame


def tone(seconds=0.6):
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """One clip of each kind, as bytes."""
    folder = tmp_path_factory.mktemp("clips")
    frames = [picture(i) for i in range(4)]
    write_clip(folder / "good", frames, 6, tone(), RATE)
    write_clip(folder / "mute", frames, 6)
    write_clip(folder / "silent", frames, 6, np.zeros(4800), RATE)
    kinds = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**kinds, "cut": kinds["good"][: len(kinds["good"]) // 2], "empty": b"", "text": b"no clip at all"}


@pytest.fixture
def tree(tmp_path, clips):
    """Four training and two validation clips, in class folders of either spelling."""
    root = tmp_path / "kinetics400"
    (tmp_path / "two.txt").write_text("# two classes\nplaying guitar\nbowling\n")
    for folder, names in (("train/playing guitar", TRAIN[:2]), ("train/Bowling", TRAIN[2:]),
                          ("val/playing_guitar", VAL[:1]), ("val/bowling", VAL[1:]), ("train/yoga", ["x"])):
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / f"{name}.mp4").write_bytes(clips["good"])
    return root


def run(tree, **options):
    return convert(tree, class_list=tree.parent / "two.txt", **options)


def lines(path):
    return path.read_text().splitlines()


def test_lists_of_class_folders(tree):
    report = run(tree)
    assert lines(tree / "two_train.txt") == [
        f"train/playing guitar/{TRAIN[0]}.mp4 0", f"train/playing guitar/{TRAIN[1]}.mp4 0",
        f"train/Bowling/{TRAIN[2]}.mp4 1", f"train/Bowling/{TRAIN[3]}.mp4 1"]
    assert lines(tree / "two_val.txt") == [f"val/playing_guitar/{VAL[0]}.mp4 0", f"val/bowling/{VAL[1]}.mp4 1"]
    assert not (tree / "two_test.txt").exists()
    assert report.kept == dict(train={"playing guitar": 2, "bowling": 2}, val={"playing guitar": 1, "bowling": 1})
    assert report.dropped == [] and report.silent == []


def test_training_reads_what_was_written(tree):
    from mmaction.registry import DATASETS
    from mmengine.registry import init_default_scope

    import mmfusion_plugin  # noqa: F401
    from mmfusion_plugin.recognition import datasets  # noqa: F401

    init_default_scope("mmaction")
    run(tree)
    dataset = DATASETS.build(dict(type="KineticsSoundDataset", data_root=str(tree), ann_file="two_train.txt",
                                  pipeline=[], class_list=str(tree.parent / "two.txt"), check_files=True))
    assert [dataset.get_data_info(i)["label"] for i in range(4)] == [0, 0, 1, 1]
    assert dataset[1]["filename"].endswith(f"playing guitar/{TRAIN[1]}.mp4")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("mute", "audio: no stream"), *((kind, "visual: damaged") for kind in ("cut", "empty", "text"))],
)
def test_broken_clips_are_dropped_and_counted(tree, clips, kind, reason):
    broken = tree / "train" / "Bowling" / f"{TRAIN[2]}.mp4"
    broken.write_bytes(clips[kind])
    report = run(tree)
    assert not any(TRAIN[2] in line for line in lines(tree / "two_train.txt"))
    assert report.found["train"]["bowling"] == 2 and report.kept["train"]["bowling"] == 1
    written = json.loads((tree / "two_report.json").read_text())
    assert written["reasons"] == {reason: 1}
    assert (written["dropped"][0]["id"], written["dropped"][0]["split"]) == (TRAIN[2], "train")
    assert str(broken) in written["dropped"][0]["message"]
    text = (tree / "two_report.txt").read_text()
    assert f"1  {reason}" in text
    assert any(line.split() == ["bowling", "2", "1", "1", "1"] for line in text.splitlines())


def test_damage_of_one_late_frame_is_found(tree):
    path = tree / "val" / "bowling" / f"{VAL[1]}.mp4"
    write_clip(path, [picture(i % 4) for i in range(40)], 20, tone(2.0), RATE)
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][30]
    data = bytearray(path.read_bytes())
    data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    assert run(tree).reasons() == {"visual: damaged": 1}


def test_a_wrong_folder_of_sound_leaves_good_lists_alone(tree):
    run(tree)
    before = {path.name: path.read_bytes() for path in tree.glob("two_*")}
    (tree.parent / "elsewhere").mkdir()
    with pytest.raises(ConversionError, match=r"no clip is left for train, val, .*: audio: no file \(6\); check"):
        run(tree, sound=tree.parent / "elsewhere", overwrite=True)
    assert {path.name: path.read_bytes() for path in tree.glob("two_*")} == before


def test_silence_is_kept_but_told(tree, clips):
    (tree / "val" / "bowling" / f"{VAL[1]}.mp4").write_bytes(clips["silent"])
    assert run(tree).silent == [VAL[1]]
    assert "silent throughout: 1" in (tree / "two_report.txt").read_text()


def test_sound_files_pair_by_name_and_broken_ones_go_from_both_sides(tree):
    """One clip lacks its sound file, one has a damaged one: all others keep their own."""
    wavs = tree.parent / "wav"
    wavs.mkdir()
    for name in (*TRAIN[1:], *VAL, "nobody"):
        write_wav(wavs / f"{name}.wav", tone(), RATE)
    (wavs / f"{TRAIN[2]}.wav").write_bytes(b"RIFF")
    report = run(tree, sound=wavs)
    assert lines(tree / "two_train.txt") == [
        f"train/playing guitar/{TRAIN[1]}.mp4\t{TRAIN[1]}.wav\t0", f"train/Bowling/{TRAIN[3]}.mp4\t{TRAIN[3]}.wav\t1"]
    assert report.reasons() == {"audio: damaged": 1, "audio: no file": 1}
    assert report.sound_without_video == 1
    (wavs / "again").mkdir()
    write_wav(wavs / "again" / f"{VAL[0]}.wav", tone(), RATE)
    with pytest.raises(ConversionError, match=f"more than one sound file, '{VAL[0]}'"):
        run(tree, sound=wavs, overwrite=True)


def flat(tree, rows, names=None):
    """The same clips in one folder, and a csv."""
    root = tree.parent / "flat"
    (root / "all").mkdir(parents=True)
    for path in sorted(tree.rglob("*.mp4")):
        path.rename(root / "all" / ((names or {}).get(path.stem, path.stem) + ".mp4"))
    (root / "list.csv").write_text("\n".join(["label,youtube_id,time_start,time_end,split,is_cc", *rows, ""]))
    return root


ROWS = ["playing guitar,-aaaaaaaaa1,10,20,train,0", "yoga,x,0,10,train,0", "bowling,cccccccccc3,3,13,train,0",
        '"playing guitar",eeeeeeeeee5,10,20,validate,1', "bowling,ffffffffff6,10,20,validate,0",
        "bowling,gggggggggg7,10,20,validate,0"]


def test_lists_of_flat_videos_with_a_csv(tree):
    root = flat(tree, ROWS, {VAL[1]: "ffffffffff6"})
    report = convert(root, root.parent / "lists", root.parent / "two.txt", [root / "list.csv"])
    assert lines(root.parent / "lists" / "two_train.txt") == [f"all/{TRAIN[0]}.mp4 0", f"all/{TRAIN[2]}.mp4 1"]
    assert lines(root.parent / "lists" / "two_val.txt") == [f"all/{VAL[0]}.mp4 0", "all/ffffffffff6.mp4 1"]
    assert report.not_downloaded == dict(val=1)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("bowling,cccccccccc3,3,,train,0", r"list\.csv, line 2: expected values"),
        ("bowling,cccccccccc3,a,13,train,0", r"list\.csv, line 2: time_start"),
        ("bowling,cccccccccc3,3,13,holdout,0", r"list\.csv, line 2: split 'holdout'"),
    ],
)
def test_broken_csv_lines_are_named(tree, row, words):
    root = flat(tree, [row])
    with pytest.raises(ConversionError, match=words):
        run(root, csv_files=[root / "list.csv"])


def test_a_csv_without_the_columns(tree):
    (tree / "a.csv").write_text("youtube_id,label\n")
    with pytest.raises(ConversionError, match=r"a\.csv has no column \['split', 'time_end', 'time_start'\]"):
        run(tree, csv_files=[tree / "a.csv"])


def test_classes_without_clips_are_named(tree):
    with pytest.raises(ConversionError, match="'train': .*'blowing nose'.*--allow-missing-classes"):
        convert(tree)
    assert not list(tree.glob("*.txt"))
    report = convert(tree, allow_missing_classes=True)
    labels = [load_class_list("ks31").index(name) for name in CLASSES]
    assert [int(line.split()[-1]) for line in lines(tree / "ks31_val.txt")] == labels
    assert len(report.missing_classes["val"]) == 29


def test_a_class_that_only_validation_lacks_is_an_error(tree):
    (tree / "val" / "bowling" / f"{VAL[1]}.mp4").unlink()
    with pytest.raises(ConversionError, match=r"\{'val': \['bowling'\]\}"):
        run(tree)


def test_a_clip_of_two_splits_stays_in_the_evaluated_one(tree, clips):
    (tree / "train" / "Bowling" / f"{VAL[1]}.mp4").write_bytes(clips["good"])
    assert run(tree).reasons() == {"listed twice": 1}
    assert len(lines(tree / "two_train.txt")) == 4 and len(lines(tree / "two_val.txt")) == 2


def test_the_next_copy_of_a_broken_clip_is_taken(tree, clips):
    (tree / "val" / "bowling" / "z").mkdir()
    (tree / "val" / "bowling" / "z" / f"{VAL[1]}.mp4").write_bytes(clips["good"])
    (tree / "val" / "bowling" / f"{VAL[1]}.mp4").write_bytes(clips["cut"])
    (tree / "train" / "Bowling" / f"{VAL[1]}.mp4").write_bytes(clips["good"])
    assert run(tree).reasons() == {"listed twice": 1, "visual: damaged": 1}
    assert f"val/bowling/z/{VAL[1]}.mp4 1" in lines(tree / "two_val.txt")


def test_sound_that_no_window_can_share_with_the_picture_is_dropped(tree):
    wavs = tree.parent / "wav"
    wavs.mkdir()
    for name in (*TRAIN, *VAL):
        write_wav(wavs / f"{name}.wav", tone(), RATE)
    path = tree / "val" / "bowling" / f"{VAL[1]}.mp4"
    with av.open(str(path)) as given, av.open(str(path.with_suffix(".mkv")), "w") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.ones((1, RATE), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, 3 * RATE
        container.mux([*audio.encode(frame), *audio.encode()])
    path.unlink()
    report = run(tree)
    assert report.reasons() == {"audio: empty stream": 1}
    assert "sound from 3.000 s to 4.000 s only, its picture lasts from 0.000 s" in report.dropped[0]["message"]
    assert run(tree, sound=wavs, overwrite=True).reasons() == {}


def test_what_the_system_refuses_is_not_remembered(tree, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(clip_lists, "frame_index", refused)
        with pytest.raises(PermissionError, match="mp4"):
            run(tree)
    assert run(tree).reasons() == {}


@pytest.mark.parametrize("name", [b"a\nb.mp4", b"a\xff.mp4"])
def test_a_name_that_no_list_can_hold_is_refused_before_anything_is_decoded(tree, clips, name):
    with open(os.path.join(os.fsencode(tree / "train" / "Bowling"), name), "wb") as file:
        file.write(clips["good"])
    with pytest.raises(ConversionError, match=r"Bowling/a.*rename it"):
        run(tree)
    assert not (tree / "checked.jsonl").exists()


def test_a_clip_with_two_labels_goes(tree, clips):
    (tree / "train" / "playing guitar" / f"{TRAIN[2]}.mp4").write_bytes(clips["good"])
    assert run(tree).reasons() == {"listed under two labels": 2}
    assert not any(TRAIN[2] in line for line in lines(tree / "two_train.txt"))


def test_nothing_is_overwritten_unasked(tree):
    run(tree)
    (tree / "two_train.txt").write_text("mine")
    with pytest.raises(ConversionError, match="exist already.*--overwrite"):
        run(tree)
    assert (tree / "two_train.txt").read_text() == "mine"
    run(tree, overwrite=True)
    assert len(lines(tree / "two_train.txt")) == 4


def test_an_interrupted_check_goes_on(tree, clips, monkeypatch):
    checked = []
    original = clip_lists.check_clip

    def counting(visual, audio):
        checked.append(visual.stem)
        return original(visual, audio)

    def die_at_third(results, total):
        for number, result in enumerate(results):
            if number == 2:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(clip_lists, "check_clip", counting)
    with pytest.raises(KeyboardInterrupt):
        run(tree, progress=die_at_third)
    assert not (tree / "two_train.txt").exists()
    manifest = tree / "checked.jsonl"
    known = [json.loads(line) for line in lines(manifest)]
    assert len(known) == 2
    manifest.write_text(lines(manifest)[0] + "\n" + lines(manifest)[1][:40])
    first, *_ = checked
    checked.clear()
    run(tree)
    assert len(checked) == 5 and first not in checked
    checked.clear()
    (tree / "val" / "bowling" / f"{VAL[1]}.mp4").write_bytes(clips["mute"])
    assert run(tree, overwrite=True).reasons() == {"audio: no stream": 1}
    assert checked == [VAL[1]]


def test_processes_change_nothing(tree, clips):
    (tree / "train" / "Bowling" / f"{TRAIN[2]}.mp4").write_bytes(clips["cut"])
    one = run(tree)
    content = (tree / "two_train.txt").read_bytes()
    (tree / "checked.jsonl").unlink()
    two = run(tree, processes=2, overwrite=True)
    assert (tree / "two_train.txt").read_bytes() == content
    assert one == two


def test_a_process_that_dies_names_its_clips(tree, monkeypatch):
    monkeypatch.setattr(clip_lists, "frame_index", lambda path: os._exit(9))
    with pytest.raises(ConversionError, match=f"a decoding process died.*{TRAIN[2]}"):
        run(tree, processes=2)


def test_a_tree_without_clips(tmp_path):
    with pytest.raises(ConversionError, match="holds no clip of the 31 classes of ks31"):
        convert(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        convert(tmp_path / "nowhere")


def test_hidden_files_are_no_clips(tree):
    (tree / "train" / "Bowling" / f"._{TRAIN[2]}.mp4").write_bytes(b"resource fork")
    assert run(tree).reasons() == {}


def test_the_command(tree, repository, monkeypatch, capsys):
    command = ["convert_kinetics_sound.py", str(tree), "--class-list", str(tree.parent / "two.txt"), "--processes", "2"]
    monkeypatch.setattr(sys, "argv", command)
    path = str(repository / "tools" / "convert_kinetics_sound.py")
    runpy.run_path(path, run_name="__main__")
    told = capsys.readouterr().out
    assert "two_train.txt" in told and "KineticsSoundDataset" in told
    for split in ("train", "val"):
        (tree / f"two_{split}.txt").unlink()
    wavs = tree / "wav"
    wavs.mkdir()
    for name in (*TRAIN, *VAL):
        write_wav(wavs / f"{name}.wav", tone(), RATE)
    with monkeypatch.context() as patch:
        patch.chdir(tree)
        patch.setattr(sys, "argv", [*command, "--sound", "wav", "--overwrite"])
        runpy.run_path(path, run_name="__main__")
    assert f"audio='{wavs}'" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(path, run_name="__main__")
    assert stopped.value.code == 2
    assert "convert_kinetics_sound.py: error: " in (told := capsys.readouterr().err) and "--overwrite" in told


def test_reports_name_published_counts(tree):
    convert(tree, allow_missing_classes=True)
    assert "14,799 train and 2,597 test" in (tree / "ks31_report.txt").read_text()
    assert kinetics_sound.PUBLISHED.keys() == {"ks31"}
