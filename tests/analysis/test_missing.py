"""Subsets of modalities: the same numbers as withholding them one evaluation at a time, with one encoder pass each."""
from __future__ import annotations

import copy
import os

import pytest
import torch
from analysis import tiny

from mmfusion_plugin.analysis.calibration import Counts, labels_and_probabilities
from mmfusion_plugin.analysis.conditions import Condition, EncoderMemo, class_names, evaluate_conditions, in_order
from mmfusion_plugin.analysis.evidence import EvidenceError
from mmfusion_plugin.analysis.identity import fingerprint
from mmfusion_plugin.analysis.missing import (
    fill_of,
    plot_subsets,
    subset_conditions,
    subsets_markdown,
    summarise_subsets,
)
from mmfusion_plugin.fusion.modes import constant_weights, evaluating


def plainly(model, loader, missing):
    """Counts of an evaluation with ``test_missing``, without any memory; weights are constant in tools/test.py, too."""
    model.data_preprocessor.test_missing = missing
    counts = None
    with evaluating(model), constant_weights(model):
        for batch in in_order(loader, loader["dataset"]):
            for sample in model.test_step(copy.deepcopy(batch)):
                labels, shares, predicted = labels_and_probabilities(sample)
                counts = Counts(shares.shape[1]) if counts is None else counts
                counts.update(labels, shares, predicted)
    model.data_preprocessor.test_missing = ()
    return counts


def check_against_plain(model, loader, evaluator):
    asked = subset_conditions(model.data_preprocessor.modalities)
    memo = EncoderMemo(model.backbone.encoders)
    before, training = tiny.state(model), model.training
    outcomes = evaluate_conditions(model, loader, evaluator, asked, memo=memo)
    batches = -(-len(loader["dataset"]) // loader["batch_size"])
    assert memo.passes == dict.fromkeys(model.backbone.encoders, batches)
    assert model.training == training and "forward" not in vars(next(iter(model.backbone.encoders.values())))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    for condition in asked:
        counts = plainly(model, loader, condition.missing)
        assert outcomes[condition.name]["confusion"] == counts.confusion_KK.tolist(), condition
        assert outcomes[condition.name]["calibration_error"] == counts.calibration_error, condition
    assert len({outcome["calibration_error"] for outcome in outcomes.values()}) == len(asked)
    return outcomes


def test_a_recognizers_subsets_are_those_of_test_missing():
    pytest.importorskip("mmaction")
    outcomes = check_against_plain(*tiny.recognition())
    outcome = outcomes["visual"]
    hits = sum(outcome["confusion"][k][k] for k in range(5))
    assert outcome["metrics"]["acc/fused_top1"] == pytest.approx(hits / 10)


def test_a_segmentors_subsets_are_those_of_test_missing(tmp_path):
    pytest.importorskip("mmseg")
    outcomes = check_against_plain(*tiny.segmentation(tmp_path))
    from mmfusion_plugin.analysis.calibration import class_iou

    for outcome in outcomes.values():
        mean = torch.tensor(class_iou(outcome["confusion"])).nanmean()
        assert outcome["metrics"]["mIoU"] == pytest.approx(100 * float(mean), abs=0.01)


def test_weights_by_noise_and_six_modalities_work_too():
    pytest.importorskip("mmaction")
    from recognition.model import batch, build, feature_cfg
    from recognition.test_udml_recognizer import at, udml_cfg

    model, loader, evaluator = tiny.recognition(udml_cfg(dict(preset="default", dependency="per_sample")))
    at(model, 1.0)
    outcomes = check_against_plain(model, loader, evaluator)
    assert outcomes["audio"]["weights"]["visual"] == 0 < outcomes["visual"]["weights"]["visual"]
    widths = dict(a=3, b=4, c=5, d=6, e=3, f=2)
    model = build(feature_cfg(widths))
    items = tiny.Items(batch({m: (C,) for m, C in widths.items()}, number=3))
    outcomes = evaluate_conditions(model, tiny.loader(items), tiny.ACCURACY, subset_conditions(list(widths)))
    assert len(outcomes) == 63


def test_an_interrupted_evaluation_goes_on_behind_its_last_batch(tmp_path):
    pytest.importorskip("mmaction")
    model, loader, evaluator = tiny.recognition()
    asked = subset_conditions(["visual", "audio"])
    whole = evaluate_conditions(model, loader, evaluator, asked)
    partial, encoder = tmp_path / "new" / "x.partial", model.backbone.encoders["audio"]
    real, calls = encoder.forward, []

    def breaks(x):
        calls.append(len(x))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(x)

    encoder.forward = breaks
    memo = EncoderMemo(model.backbone.encoders)
    with pytest.raises(KeyboardInterrupt):
        evaluate_conditions(model, loader, evaluator, asked, partial=partial, key="k", memo=memo)
    assert partial.is_file()
    with pytest.raises(ValueError, match="another evaluation"):
        evaluate_conditions(model, loader, evaluator, asked, partial=partial, key="other")
    stored = partial.read_bytes()
    partial.write_bytes(stored[:-100])
    with pytest.raises(EvidenceError, match=r"x\.partial.*damaged.*remove"):
        evaluate_conditions(model, loader, evaluator, asked, partial=partial, key="k")
    partial.write_bytes(stored)
    seen = []
    again = evaluate_conditions(model, loader, evaluator, asked, partial=partial, key="k",
                                report=lambda done, total: seen.append((done, total)))
    assert seen == [(8, 10), (10, 10)] and again == whole
    kept = evaluate_conditions(model, loader, evaluator, asked, partial=partial, key="k", memo=memo)
    assert kept == whole and memo.passes["audio"] == 2, "until its file is removed, the outcome costs nothing"


def test_what_was_broken_off_in_the_middle_of_a_batch_counts_once(tmp_path):
    pytest.importorskip("mmaction")
    model, loader, evaluator = tiny.recognition()
    asked = subset_conditions(["visual", "audio"])
    whole = evaluate_conditions(model, loader, evaluator, asked)
    predict, calls = model.predict, []

    def breaks(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:  # the second batch, after one of its conditions
            raise KeyboardInterrupt
        return predict(*args, **kwargs)

    model.predict = breaks
    with pytest.raises(KeyboardInterrupt):
        evaluate_conditions(model, loader, evaluator, asked, partial=tmp_path / "x", key="k")
    model.predict = predict
    assert evaluate_conditions(model, loader, evaluator, asked, partial=tmp_path / "x", key="k") == whole


@pytest.mark.parametrize("moment", ["report", "states"])
def test_an_interruption_between_two_batches_counts_once(tmp_path, monkeypatch, moment):
    pytest.importorskip("mmaction")
    model, loader, evaluator = tiny.recognition()
    asked = subset_conditions(["visual", "audio"])
    whole = evaluate_conditions(model, loader, evaluator, asked)
    noted, calls = Counts.state, []

    def breaks(counts):
        calls.append(1)
        if len(calls) == 3 * len(asked) - 1:  # behind the second batch, before it is noted as a whole
            raise KeyboardInterrupt
        return noted(counts)

    def report(done, total):
        if done == 8:
            raise KeyboardInterrupt

    if moment == "states":
        monkeypatch.setattr(Counts, "state", breaks)
    with pytest.raises(KeyboardInterrupt):
        evaluate_conditions(model, loader, evaluator, asked, partial=tmp_path / "x", key="k",
                            report=report if moment == "report" else None)
    seen = []
    again = evaluate_conditions(model, loader, evaluator, asked, partial=tmp_path / "x", key="k",
                                report=lambda done, total: seen.append(done))
    assert again == whole and seen[0] == (8 if moment == "report" else 4)


def test_the_complete_row_is_complete_whatever_the_config_withholds():
    pytest.importorskip("mmaction")
    model, loader, evaluator = tiny.recognition()
    asked = [*subset_conditions(["visual", "audio"]), Condition("as configured")]
    whole = evaluate_conditions(model, loader, evaluator, asked)
    model.data_preprocessor.test_missing = ("audio",)
    found = evaluate_conditions(model, loader, evaluator, asked)
    assert found["visual + audio"] == whole["visual + audio"] != whole["visual"]
    assert found["as configured"] == whole["visual"] and model.data_preprocessor.test_missing == ("audio",)


def test_conditions_that_do_not_fit_are_named():
    pytest.importorskip("mmaction")
    model, loader, evaluator = tiny.recognition()
    for condition, said in ((Condition("x", ("sonar",)), "'sonar'"), (Condition("x", ("audio", "visual")), "every mod"),
                            (Condition("x", noise=dict(nir={})), "'nir'")):
        with pytest.raises(ValueError, match=said):
            evaluate_conditions(model, loader, evaluator, [condition])
    with pytest.raises(ValueError, match="sizes"):
        subset_conditions(["a", "b"], [3])
    _, loader, _ = tiny.recognition(missing=[(i, "visual") for i in range(10)])
    with pytest.raises(EvidenceError, match="'visual' leaves no sample of the test set any modality"):
        evaluate_conditions(model, loader, evaluator, subset_conditions(["visual", "audio"]))


def test_samples_that_a_condition_leaves_nothing_are_left_out_and_counted(tmp_path):
    pytest.importorskip("mmaction")
    gaps = [(2, "visual"), *((i, "audio") for i in range(4, 9))]  # a batch without any audio
    model, loader, evaluator = tiny.recognition(missing=gaps)
    asked = subset_conditions(["visual", "audio"])
    outcomes = evaluate_conditions(model, loader, evaluator, asked, partial=tmp_path / "x")
    assert [outcomes[c.name]["samples"] for c in asked] == [10, 9, 5]
    assert [sum(map(sum, outcomes[c.name]["confusion"])) for c in asked] == [10, 9, 5]
    items, kept = loader["dataset"].batch, [i for i in range(10) if (i, "audio") not in gaps]
    fewer = dict(inputs={m: [x[i] for i in kept] for m, x in items["inputs"].items()},
                 data_samples=[items["data_samples"][i] for i in kept])
    alone = evaluate_conditions(model, tiny.loader(tiny.Items(fewer)), evaluator, [asked[2]])["audio"]
    assert outcomes["audio"]["confusion"] == alone["confusion"] and outcomes["audio"]["metrics"] == alone["metrics"]
    again = evaluate_conditions(model, loader, evaluator, asked, partial=tmp_path / "x")
    assert again == outcomes
    record = dict(summarise_subsets(outcomes, asked, ["visual", "audio"]), fill="zeros", command="x")
    assert "nothing of a row's modalities are left out of it: visual 9, audio 5 of 10." in subsets_markdown(record)


@pytest.mark.parametrize("change", ["label", "sensor", "list"])
def test_a_data_set_that_was_changed_in_place_is_another_evaluation(tmp_path, change):
    pytest.importorskip("mmseg")
    from mmengine.registry import init_default_scope
    from segmentation.scene import LOAD, PACK, dataset_cfg, write_frames

    import mmfusion_plugin.segmentation  # noqa: F401

    init_default_scope("mmseg")
    write_frames(tmp_path)
    cfg = dict(model=dict(type="X"), test_dataloader=dict(dataset=dataset_cfg(tmp_path, [*LOAD, PACK])))
    before = fingerprint(cfg, "x.pth", "missing")
    assert fingerprint(copy.deepcopy(cfg), "x.pth", "missing") == before, "what was broken off goes on"
    assert fingerprint(cfg, "x.pth", "noise") != before
    if change == "list":
        (tmp_path / "train.txt").write_text("1\n2\n3\n")
    else:
        path = tmp_path / ("Label" if change == "label" else "RGB") / "1.png"
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # as many bytes, written anew
    assert fingerprint(cfg, "x.pth", "missing") != before


def test_features_and_clips_that_were_changed_in_place_are_another_evaluation(tmp_path):
    pytest.importorskip("mmaction")
    import numpy as np
    from mmengine.registry import init_default_scope

    import mmfusion_plugin.recognition  # noqa: F401

    init_default_scope("mmaction")
    features = dict(type="FeatureDataset", data_root=str(tmp_path), ann_file="a.npz", arrays=dict(a="a"), label="y",
                    num_classes=2, pipeline=[dict(type="PackFeatures", modalities=["a"])])
    clips = dict(type="AudioVisualDataset", data_root=str(tmp_path), ann_file="clips.txt", num_classes=2, pipeline=[])
    (tmp_path / "1.mp4").write_bytes(b"old")
    (tmp_path / "clips.txt").write_text("1.mp4 0\n")
    found = []
    for value, content, label in ((0.0, b"old", 0), (1.0, b"newer", 0), (1.0, b"newer", 1)):
        np.savez(tmp_path / "a.npz", a=np.full((2, 3), value, np.float32), y=np.array([0, label]))
        (tmp_path / "clips.txt").write_text(f"1.mp4 {label}\n")
        if (tmp_path / "1.mp4").read_bytes() != content:
            (tmp_path / "1.mp4").write_bytes(content)
        found.append([fingerprint(dict(test_dataloader=dict(dataset=d)), "x.pth") for d in (features, clips)])
    assert all(len(set(keys)) == 3 for keys in zip(*found))


def test_the_summary_has_every_subset_and_the_mean(tmp_path):
    pytest.importorskip("mmaction")
    asked = subset_conditions(["a", "b", "c"], [1])
    assert [c.name for c in asked] == ["a + b + c", "a", "b", "c"] and asked[2].missing == ("a", "c")
    values = dict(zip([c.name for c in asked], (0.9, 0.5, 0.4, 0.3)))
    outcomes = {n: dict(metrics={"acc/fused_top1": v, "x": 1.0}, samples=4, calibration_error=None)
                for n, v in values.items()}
    found = summarise_subsets(outcomes, asked, ["a", "b", "c"])
    assert found["metric"] == "acc/fused_top1" and found["rows"][1]["modalities"] == ["a"]
    assert found["mean"]["acc/fused_top1"] == pytest.approx(0.525)
    assert found["mean_incomplete"]["acc/fused_top1"] == pytest.approx(0.4)
    with pytest.raises(ValueError, match="'mAP'.*acc/fused_top1"):
        summarise_subsets(outcomes, asked, ["a", "b", "c"], "mAP")
    assert plot_subsets(found, tmp_path / "x.png").stat().st_size > 1000
    assert fill_of(tiny.recognition()[0]) == "missing_fill=zeros, SCFAE's missing_neighbour=zeros"


def test_calibration_error_of_stated_bins():
    counts = Counts(2)
    # three predictions of confidence 0.6 (bin 9), two right; one of confidence 0.9 (bin 14), wrong
    counts.update(torch.tensor([0, 0, 1, 1]), torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.6, 0.4], [0.9, 0.1]]))
    assert counts.calibration_error == pytest.approx(0.75 * abs(2 / 3 - 0.6) + 0.25 * 0.9)
    assert counts.confusion_KK.tolist() == [[2, 0], [2, 0]]
    with pytest.raises(ValueError, match="labels"):
        counts.update(torch.tensor([2]), torch.tensor([[0.5, 0.5]]))


def test_a_confidence_on_the_edge_of_two_bins_counts_in_the_lower_one():
    counts = Counts(2)
    counts.update(torch.tensor([0]), torch.tensor([[0.6, 0.4]], dtype=torch.float64))
    assert counts.bins_3[0].nonzero().tolist() == [[8]]  # from 8/15 to 9/15


def test_scores_of_clips_are_probabilities_unless_the_head_averages_logits():
    pytest.importorskip("mmaction")
    from mmaction.structures import ActionDataSample

    sample, score = ActionDataSample().set_gt_label(1), torch.tensor([0.25, 0.75])
    sample.set_field(dict(fused=score), "pred_score")
    for average, expected in (("prob", score), ("score", score.softmax(0))):
        label, shares, predicted = labels_and_probabilities(sample, average)
        assert torch.equal(shares, expected[None]) and label.tolist() == predicted.tolist() == [1]


def test_a_head_of_one_logit_is_counted_by_its_probability_and_threshold(tmp_path):
    pytest.importorskip("mmseg")
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS
    from segmentation.scene import LOAD, PACK, dataset_cfg, write_frames
    from segmentation.test_segmentor import BINARY, build

    init_default_scope("mmseg")
    model, loader, evaluator = tiny.segmentation(tmp_path, model=build(decode_head=BINARY))
    write_frames(tmp_path, classes=2)
    loader["dataset"] = DATASETS.build(dataset_cfg(
        tmp_path, [*LOAD, PACK], metainfo=dict(classes=("one", "two"), palette=[[0] * 3, [9] * 3])))
    shares, labels = [], []
    with evaluating(model), constant_weights(model):
        for batch in in_order(loader, loader["dataset"]):
            data = model.data_preprocessor(copy.deepcopy(batch), False)
            metas = [sample.metainfo for sample in data["data_samples"]]
            label = torch.stack([sample.gt_sem_seg.data[0] for sample in data["data_samples"]])
            with torch.no_grad():
                logit = model.inference(data["inputs"], metas)[:, 0]
            labels.append(label[label != 255])
            shares.append(logit.sigmoid()[label != 255].double())
    share, label = torch.cat(shares), torch.cat(labels)
    model.decode_head.threshold = float(share.quantile(0.7))
    outcome = evaluate_conditions(model, loader, evaluator, [Condition("all")])["all"]
    predicted = (share > model.decode_head.threshold).long()
    assert outcome["confusion"] == [[int(((label == a) & (predicted == b)).sum()) for b in (0, 1)] for a in (0, 1)]
    assert 0 < predicted.sum() != (share > 0.5).sum()
    confidence, error = torch.where(predicted == 1, share, 1 - share), 0.0
    for i in range(15):
        here = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if here.any():
            gap = (predicted == label)[here].double().mean() - confidence[here].mean()
            error += float(here.double().mean() * gap.abs())
    assert outcome["calibration_error"] == pytest.approx(error, abs=1e-6)


def test_classes_are_named_by_the_config_or_the_data_set():
    pytest.importorskip("mmseg")
    from mmengine.registry import init_default_scope

    import mmfusion_plugin.segmentation.datasets  # noqa: F401

    init_default_scope("mmseg")
    assert class_names(dict(dataset=dict(type="CWFIDDataset"))) == ["soil", "crop", "weed"]
    assert class_names(dict(dataset=dict(type="CWFIDDataset", metainfo=dict(classes=("a", "b"))))) == ["a", "b"]


def test_the_own_head_of_a_withheld_modality_shows_no_accuracy():
    conditions = subset_conditions(["a", "b"])
    outcomes = {c.name: dict(metrics={"acc/fused_top1": 0.5, "acc/a_top1": 0.25, "acc/b_top1": 0.75}, samples=4,
                             calibration_error=0.1) for c in conditions}
    record = dict(summarise_subsets(outcomes, conditions, ["a", "b"]), fill="zeros", command="x")
    assert subsets_markdown(record).startswith("Every subset of modalities")
    assert subsets_markdown(dict(record, rows=record["rows"][:1])).startswith("Subsets of 2 modalities")
    lines = [line for line in subsets_markdown(record).splitlines() if line.startswith("| ")]
    assert lines[2:] == ["| a + b | 50.0 | 25.0 | 75.0 | 10.0 |", "| a | 50.0 | 25.0 | - | 10.0 |",
                         "| b | 50.0 | - | 75.0 | 10.0 |", "| mean of all | 50.0 | - | - | - |",
                         "| mean of the incomplete | 50.0 | - | - | - |"]
