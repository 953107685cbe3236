"""Lists of clips and arrays of features, read back; and what is wrong with them named."""
from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("mmaction")
pytest.importorskip("av")
savemat = pytest.importorskip("scipy.io").savemat

from mmaction.registry import DATASETS, TRANSFORMS  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402

import mmfusion_plugin  # noqa: E402, F401
from mmfusion_plugin.recognition import datasets  # noqa: E402, F401
from mmfusion_plugin.recognition.clip_lists import load_class_list  # noqa: E402
from mmfusion_plugin.recognition.media import MissingFile  # noqa: E402

CLASSES = ["dog", "playing guitar", "cat"]


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmaction")


def build(root, text=None, kind="AudioVisualDataset", **options):
    if text is not None:
        (root / "list.txt").write_text(text, encoding="utf-8")
    cfg = dict(type=kind, data_root=str(root), ann_file="list.txt", pipeline=[])
    if kind == "AudioVisualDataset" and "num_classes" not in options:
        cfg["metainfo"] = dict(classes=CLASSES)
    return DATASETS.build(cfg | options)


def media(root, text, **options):
    return build(root, text, **options).get_data_info(0)["media"]


# --- lines of a list ---


def test_sound_comes_from_the_listed_file(tmp_path):
    sample = build(tmp_path, "a/1.mp4 2\nb/2.mp4 0\n")[1]
    assert sample["media"] == dict(visual=f"{tmp_path}/b/2.mp4", audio=f"{tmp_path}/b/2.mp4")
    assert (sample["filename"], sample["label"], sample["line"]) == (f"{tmp_path}/b/2.mp4", 0, 2)


def test_paths_may_hold_blanks(tmp_path):
    info = build(tmp_path, "playing guitar/my clip.mp4 1\r\n\r\n").get_data_info(0)
    assert (info["filename"], info["label"]) == (f"{tmp_path}/playing guitar/my clip.mp4", 1)


@pytest.mark.parametrize("name", ["playing_guitar", "Playing_Guitar", "1"])
def test_labels_are_indices_or_names(tmp_path, name):
    assert build(tmp_path, f"x.mp4 {name}\n").get_data_info(0)["label"] == 1


def test_a_name_with_blanks_needs_another_delimiter(tmp_path):
    assert build(tmp_path, "x y.mp4,playing guitar\n", delimiter=",").get_data_info(0)["label"] == 1


def test_sound_from_a_folder_of_its_own(tmp_path):
    found = media(tmp_path, "a/v1.2.mp4 0\n", data_prefix=dict(visual="video", audio="wav"))
    assert found == dict(visual=f"{tmp_path}/video/a/v1.2.mp4", audio=f"{tmp_path}/wav/a/v1.2.wav")


def test_sound_with_a_name_of_its_own(tmp_path):
    fields = ["visual", "audio", "label"]
    assert media(tmp_path, "a b.mp4 c.ogg 0\n", fields=fields) == dict(
        visual=f"{tmp_path}/a b.mp4", audio=f"{tmp_path}/c.ogg"
    )
    prefix = dict(visual="v", audio="s")
    assert media(tmp_path, "c d.ogg\ta b.mp4\t0\n", fields=["audio", "visual", "label"], delimiter="\t",
                 data_prefix=prefix) == dict(visual=f"{tmp_path}/v/a b.mp4", audio=f"{tmp_path}/s/c d.ogg")


def test_a_dash_stands_for_no_file(tmp_path):
    fields = ["visual", "audio", "label"]
    assert media(tmp_path, "a.mp4 - 0\n", fields=fields) == dict(visual=f"{tmp_path}/a.mp4", audio=None)
    assert media(tmp_path, "- a.wav 0\n", fields=fields) == dict(visual=None, audio=f"{tmp_path}/a.wav")
    with pytest.raises(ValueError, match=r"list\.txt, line 1 names neither"):
        build(tmp_path, "- - 0\n", fields=fields)


def test_one_list_serves_extracted_clips_too(tmp_path):
    prefix = dict(visual="frames", audio="wav")
    dataset = build(tmp_path, "a/1.mp4 0\na/2 0\n", data_prefix=prefix, visual_suffix="")
    for i, name in enumerate("12"):
        assert dataset.get_data_info(i)["media"] == dict(
            visual=f"{tmp_path}/frames/a/{name}", audio=f"{tmp_path}/wav/a/{name}.wav")
    with pytest.raises(ValueError, match=r"dataset\.visual_suffix=''.*data_prefix\.audio"):
        build(tmp_path, visual_suffix="")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n \n", r"list\.txt lists no clip"),
        ("a.mp4 0\nb.mp4\n", r"list\.txt, line 2: expected visual label .*got 'b\.mp4'"),
        ("a.mp4 3\n", r"list\.txt, line 1: label 3 is outside 0\.\.2"),
        ("a.mp4 -1\n", r"line 1: label -1 is outside 0\.\.2"),
        ("\na.mp4 horse\n", r"list\.txt, line 2: 'horse' is none of the 3 classes"),
        ("a.mp4 0\nb.mp4 1\na.mp4 1\n", r"list\.txt lists .*a\.mp4 twice, in lines 1 and 3"),
    ],
)
def test_broken_lists_name_file_and_line(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        build(tmp_path, text)


def test_rare_classes_can_be_evened_out(tmp_path):
    from mmengine.dataset import ClassBalancedDataset

    dataset = build(tmp_path, "a.mp4 0\nb.mp4 0\nc.mp4 0\nd.mp4 2\n")
    balanced = ClassBalancedDataset(dataset, oversample_thr=1.0)
    assert [balanced.get_cat_ids(i) for i in range(len(balanced))].count([2]) == 2  # sqrt(1 / (1 / 4))


def test_one_video_may_have_several_sounds(tmp_path):
    fields = ["visual", "audio", "label"]
    assert len(build(tmp_path, "a.mp4 b.wav 0\na.mp4 c.wav 0\n", fields=fields)) == 2
    with pytest.raises(ValueError, match="twice, in lines 1 and 2"):
        build(tmp_path, "a.mp4 b.wav 0\na.mp4 b.wav 0\n", fields=fields)


def test_a_name_may_hold_what_ends_a_line_elsewhere(tmp_path):
    names = ["a\u2028b.mp4", "a\u0085b.mp4"]
    dataset = build(tmp_path, "".join(f"{name} 0\n" for name in names))
    assert [dataset.get_data_info(i)["filename"] for i in range(len(dataset))] == [f"{tmp_path}/{n}" for n in names]


def test_a_list_that_is_no_text(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"list\.txt is no UTF-8 text"):
        build(tmp_path)


def test_an_absent_list(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"list\.txt: no such list.*data_root"):
        build(tmp_path)


def test_absent_clips_are_named_at_once_if_asked(tmp_path):
    (tmp_path / "3.mp4").touch()
    text = "".join(f"{i}.mp4 0\n" for i in range(9))
    with pytest.raises(FileNotFoundError, match=r"8 files that .*list\.txt asks for.*'line 1: .*/0\.mp4'") as raised:
        build(tmp_path, text, check_files=True)
    assert str(raised.value).count("line ") == 5
    (tmp_path / "3.wav").touch()
    build(tmp_path, "3.mp4 0\n", data_prefix=dict(audio=""), check_files=True)


def test_an_absent_clip_is_named_with_its_line_when_it_is_read(tmp_path):
    def read(results):
        raise MissingFile(f"{results['filename']}: no such file")

    dataset = build(tmp_path, "\na.mp4 0\n", pipeline=[read])
    with pytest.raises(MissingFile, match=r"a\.mp4: no such file \(line 2 of .*list\.txt; check dataset\.data_root"):
        dataset[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(data_prefix=dict(video="")), r"dataset\.data_prefix names \['video'\]"),
        (dict(fields=["label", "visual"]), r"dataset\.fields must be"),
        (dict(fields=["label"]), r"dataset\.fields must be"),
        (dict(delimiter=""), r"dataset\.delimiter"),
        (dict(multi_class=True), r"dataset\.multi_class"),
        (dict(num_classes=4, metainfo=dict(classes=CLASSES)), r"num_classes is 4, metainfo\.classes lists 3"),
        (dict(metainfo=dict(classes=["1", "2"])), "label '1' would be ambiguous"),
        (dict(num_classes=None), r"dataset\.num_classes has to say"),
        (dict(num_classes=0), r"dataset\.num_classes must be a positive integer"),
    ],
)
def test_wrong_options_name_the_key(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        build(tmp_path, "a.mp4 0\n", **options)


def test_indices_need_no_names(tmp_path):
    assert build(tmp_path, "a.mp4 6\n", num_classes=7).get_data_info(0)["label"] == 6
    with pytest.raises(ValueError, match="label 'dog' is no index"):
        build(tmp_path, "a.mp4 dog\n", num_classes=7)


# --- the data sets' own classes ---


@pytest.mark.parametrize(("name", "number"), [("ks31", 31), ("ks32", 32), ("ks33", 33), ("ks34", 34)])
def test_class_lists_are_complete(name, number):
    assert len(load_class_list(name)) == number


def test_how_the_class_lists_differ():
    ks31, ks32, ks33, ks34 = (set(load_class_list(f"ks{n}")) for n in (31, 32, 33, 34))
    assert ks33 - ks31 == {"tying tie", "finger snapping"}
    assert ks32 - ks31 == {"strumming guitar"}
    assert ks31 < ks33 and ks31 < ks32
    assert ks34 - ks33 == {"typing", "blowing out", "dribbling ball", "mowing the lawn by pushing lawnmower",
                           "stomping", "fingerpicking", "patting"}


def test_kinetics_sound_knows_its_classes(tmp_path):
    dataset = build(tmp_path, "a.mp4 playing_xylophone\n", "KineticsSoundDataset", class_list="ks33")
    assert len(dataset.metainfo["classes"]) == 33
    assert dataset.metainfo["classes"][dataset.get_data_info(0)["label"]] == "playing xylophone"
    with pytest.raises(ValueError, match=r"label 31 is outside 0\.\.30"):
        build(tmp_path, "a.mp4 31\n", "KineticsSoundDataset")
    with pytest.raises(FileNotFoundError, match="class_list='ks30' is none of"):
        build(tmp_path, kind="KineticsSoundDataset", class_list="ks30")


def test_a_class_list_of_ones_own(tmp_path):
    (tmp_path / "mine.txt").write_text("# two\nb\n\na\n")
    assert load_class_list(tmp_path / "mine.txt") == ["b", "a"]
    (tmp_path / "mine.txt").write_text("a_b\nA b\n")
    with pytest.raises(ValueError, match="more than once"):
        load_class_list(tmp_path / "mine.txt")


def test_crema_d_knows_its_folders_and_classes(tmp_path):
    info = build(tmp_path, "1001_DFA_ANG_XX.flv ANG\n", "CremaDDataset").get_data_info(0)
    assert info["label"] == 5
    assert info["media"] == dict(visual=f"{tmp_path}/VideoFlash/1001_DFA_ANG_XX.flv",
                                 audio=f"{tmp_path}/AudioWAV/1001_DFA_ANG_XX.wav")


# --- features ---

ROWS = dict(text=np.arange(12.0).reshape(4, 3), audio=np.arange(8.0).reshape(4, 1, 2), label=np.array([0, 1, 1, 0]))


def features(root, ending=".npz", content=None, **options):
    write = np.savez if ending == ".npz" else lambda path, **values: savemat(path, values)
    write(root / f"data{ending}", **(content or ROWS))
    cfg = dict(type="FeatureDataset", data_root=str(root), ann_file=f"data{ending}", num_classes=2,
               arrays=dict(text="text", audio="audio"), pipeline=[dict(type="PackFeatures")])
    return DATASETS.build(cfg | options)


@pytest.mark.parametrize("ending", [".npz", ".mat"])
def test_a_row_is_a_sample(tmp_path, ending):
    dataset = features(tmp_path, ending)
    packed = dataset[2]
    assert dataset.get_cat_ids(2) == [1]
    torch.testing.assert_close(packed["inputs"]["text"], torch.tensor([6.0, 7.0, 8.0]))
    torch.testing.assert_close(packed["inputs"]["audio"], torch.tensor([[4.0, 5.0]]))
    sample = packed["data_samples"]
    assert sample.gt_label.tolist() == [1]
    assert sample.metainfo == dict(
        filename=f"{tmp_path}/data{ending}[2]", num_classes=2, available=dict(text=True, audio=True))


def test_keys_by_split_and_labels_from_one(tmp_path):
    arrays = dict(x_train=np.zeros((2, 3)), x_test=np.ones((3, 3)), y_train=[[1], [2]], y_test=[[2], [1], [2]])
    dataset = features(tmp_path, ".mat", arrays, arrays=dict(x="x_{split}"), label="y_{split}", split="test",
                       label_offset=1)
    assert [dataset.get_data_info(i)["label"] for i in range(len(dataset))] == [1, 0, 1]
    assert dataset[0]["inputs"]["x"].tolist() == [1, 1, 1]


def test_packing_a_part_of_the_modalities(tmp_path):
    packed = features(tmp_path, pipeline=[dict(type="PackFeatures", modalities=["audio"])])[0]
    assert list(packed["inputs"]) == ["audio"]
    assert packed["data_samples"].available == dict(audio=True)
    with pytest.raises(ValueError, match=r"PackFeatures\.modalities names \['rgb'\]"):
        features(tmp_path, pipeline=[dict(type="PackFeatures", modalities=["rgb"])])[0]
    with pytest.raises(ValueError, match=r"must be a list"):
        TRANSFORMS.build(dict(type="PackFeatures", modalities="rgb"))


def test_standardised_by_the_training_part(tmp_path):
    rng = np.random.default_rng(0)
    train = dict(text=rng.normal(5, 3, (50, 3)), audio=rng.normal(-2, 0.1, (50, 4, 2)), label=np.zeros(50))
    train["text"][:, 1] = 0.1
    np.savez(tmp_path / "train.npz", **train)
    dataset = features(tmp_path, standardize=dict(file="train.npz"))
    for i in range(4):
        inputs = dataset[i]["inputs"]
        for c in (0, 2):
            column = train["text"][:, c].tolist()
            mean = sum(column) / 50
            std = (sum((v - mean) ** 2 for v in column) / 50) ** 0.5
            assert inputs["text"][c].item() == pytest.approx((ROWS["text"][i, c] - mean) / std, rel=1e-5)
        assert inputs["text"][1].item() == pytest.approx(ROWS["text"][i, 1] - 0.1, rel=1e-5)
        flat = train["audio"].reshape(200, 2)
        expected = (ROWS["audio"][i] - flat.mean(0)) / flat.std(0)
        torch.testing.assert_close(inputs["audio"], torch.tensor(expected, dtype=torch.float32))


def test_standardised_by_the_training_rows_of_a_fold(tmp_path):
    content = ROWS | dict(text=np.array([[1.0], [900.0], [3.0], [700.0]]))
    parts = [features(tmp_path, content=content, standardize=dict(file="data.npz"),
                      fold=dict(number=2, index=1, part=part)) for part in ("train", "validation")]
    assert [parts[0][i]["inputs"]["text"].item() for i in range(2)] == [-1, 1]
    assert parts[1][0]["inputs"]["text"].item() == 898


def test_standardised_by_given_numbers(tmp_path):
    given = dict(mean=dict(text=[1.0, 2.0, 3.0], audio=0.5), std=dict(text=2.0, audio=[1.0, 4.0]))
    inputs = features(tmp_path, standardize=given)[1]["inputs"]
    assert inputs["text"].tolist() == [1.0, 1.0, 1.0]
    assert inputs["audio"].tolist() == [[1.5, 0.625]]


def spoilt(**values):
    """ROWS with text's row 2 or others' rows changed."""
    arrays = {key: array.astype(float) for key, array in ROWS.items()}
    for key, (row, value) in values.items():
        arrays[key][row] = value
    return arrays


def test_non_finite_values_are_an_error_that_names_key_and_row(tmp_path):
    with pytest.raises(ValueError, match=r"data\.npz: 'text' holds a non-finite value in row 2"):
        features(tmp_path, content=spoilt(text=(2, [0, np.nan, 0])))


def test_non_finite_rows_count_as_missing_if_allowed(tmp_path):
    np.savez(tmp_path / "train.npz", **spoilt(text=(0, np.inf)))
    dataset = features(tmp_path, content=spoilt(text=(2, [0, np.nan, 0]), audio=(1, np.inf)), nonfinite="missing",
                       standardize=dict(file="train.npz"))
    assert [dataset.get_data_info(i)["available"] for i in (0, 1, 2)] == [
        dict(text=True, audio=True), dict(text=True, audio=False), dict(text=False, audio=True)]
    packed = dataset[2]
    assert packed["inputs"]["text"].tolist() == [0, 0, 0]
    assert packed["data_samples"].available == dict(text=False, audio=True)
    assert dataset[1]["inputs"]["text"][0].item() == pytest.approx((3 - 6) / np.std([3, 6, 9]))
    with pytest.raises(ValueError, match="row 1 has a non-finite value in every modality"):
        features(tmp_path, content=spoilt(text=(1, np.nan), audio=(1, np.inf)), nonfinite="missing")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(audio=np.zeros((3, 2))), r"different numbers of rows: \{'text': 4, 'audio': 3, 'label': 4\}"),
        (dict(label=np.zeros(5)), "'label': 5"),
        (dict(label=np.array([0, 1, 2, 0])), r"'label' holds 2 in row 2 \(1 such rows\), expected integers 0\.\.1"),
        (dict(label=np.array([0, 0.5, 1, 0])), r"'label' holds 0\.5 in row 1"),
        (dict(label=np.array([0, np.nan, 1, 0])), r"'label' holds nan in row 1"),
        (dict(label=np.zeros((4, 2))), r"labels 'label' have shape \(4, 2\)"),
        (dict(text=np.zeros(4)), r"'text' has shape \(4,\), expected \(N, C\)"),
        (dict(text=np.array(["a"] * 4)), "'text' is <U1 of shape"),
        (dict(text=np.zeros((4, 2), complex)), "expected an array of real numbers"),
        (dict(text=None), r"holds no \['text'\]; it holds \['audio', 'label'\]"),
        (dict(text=np.zeros((0, 2)), audio=np.zeros((0, 2)), label=np.zeros(0)), "'label' holds no row"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, change, words):
    arrays = {key: value for key, value in {**ROWS, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=words):
        features(tmp_path, content=arrays)


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_no_file_can_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"data\.npz is no readable .*pickles are refused"):
        features(tmp_path, content={**ROWS, "text": np.array([Bomb()] * 4)})
    (tmp_path / "bomb.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"bomb\.npz is no readable"):
        features(tmp_path, ann_file="bomb.npz")
    with pytest.raises(ValueError, match=r"data\.mat .*'text' is a cell array, expected an array of real numbers"):
        features(tmp_path, ".mat", {**ROWS, "text": np.array([1, "a", 2.0, "b"], object)})
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["broken.npz", "broken.mat"])
def test_broken_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"MATLAB 5.0 no file" * 20)
    with pytest.raises(ValueError, match=f"{name} is no readable"):
        features(tmp_path, ann_file=name)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz: no such file"):
        features(tmp_path, ann_file="nowhere.npz")
    with pytest.raises(ValueError, match=r"data\.pkl: expected a file that ends in"):
        (tmp_path / "data.pkl").touch()
        features(tmp_path, ann_file="data.pkl")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(arrays=dict(x="x_{split}")), r"set dataset\.split"),
        (dict(arrays=["text"]), r"dataset\.arrays"),
        (dict(nonfinite="zero"), r"dataset\.nonfinite"),
        (dict(standardize=dict(std=1)), r"dataset\.standardize must be"),
        (dict(standardize=dict(mean=dict(text=0), std=dict(text=1))), r"dataset\.standardize\.mean must name"),
        (dict(standardize=dict(mean=dict(text=0, audio=0), std=dict(text=0, audio=1))), r"std\.text .* positive"),
        (dict(standardize=dict(mean=dict(text=[0, 0], audio=0), std=dict(text=1, audio=1))), r"mean\.text .* 3"),
        (dict(multi_class=True), r"dataset\.multi_class"),
        (dict(num_classes=None), r"dataset\.num_classes has to say"),
    ],
)
def test_wrong_options_of_features_name_the_key(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        features(tmp_path, **options)


def test_handwritten_digits(shared_data):
    views = {f"view{i}": f"x{i}_{{split}}" for i in range(1, 7)}
    options = dict(type="FeatureDataset", data_root=str(shared_data / "handwritten6"), arrays=views, num_classes=10,
                   ann_file="handwritten_6views.mat", label="gt_{split}", label_offset=1, pipeline=[],
                   standardize=dict(file="handwritten_6views.mat", split="train"))
    train, test = (DATASETS.build({**options, "split": split}) for split in ("train", "test"))
    assert (len(train), len(test)) == (1600, 400)
    assert [train[0]["inputs"][f"view{i}"].shape for i in range(1, 7)] == [
        (240,), (76,), (216,), (47,), (64,), (6,)]
    view = np.stack([train[i]["inputs"]["view4"] for i in range(1600)])
    np.testing.assert_allclose(view.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(view.std(0), 1, atol=1e-5)
    assert np.bincount([test[i]["label"] for i in range(400)]).tolist() == [40] * 10


def test_sentiment_features(shared_data):
    options = dict(type="FeatureDataset", data_root=str(shared_data / "cmu_mosi"), pipeline=[], num_classes=2,
                   arrays=dict(text="text", audio="audio", video="video"))
    train, val = (DATASETS.build({**options, "ann_file": f"{part}.npz"}) for part in ("train", "val"))
    assert (len(train), len(val)) == (1447, 326)
    assert sum(val[i]["label"] for i in range(326)) == 198


def test_folds_share_out_the_rows(tmp_path):
    whole = features(tmp_path)
    parts = {part: features(tmp_path, fold=dict(number=2, index=1, part=part)) for part in ("train", "validation")}
    rows = {part: [found.get_data_info(i)["row"] for i in range(len(found))] for part, found in parts.items()}
    assert rows["validation"] == list(range(1, len(whole), 2))
    assert sorted(rows["train"] + rows["validation"]) == list(range(len(whole)))


@pytest.mark.parametrize("fold", [
    dict(number=2), dict(number=2, index=2, part="train"), dict(number=1, index=0, part="train"),
    dict(number=2, index=0, part="test")])
def test_impossible_folds_are_refused(tmp_path, fold):
    with pytest.raises(ValueError, match=r"dataset\.fold"):
        features(tmp_path, fold=fold)
