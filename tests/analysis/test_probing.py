"""Linear probes on frozen encoders: vectors and maps."""
from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from analysis import tiny
from running import run_tool
from torch import nn

from mmfusion_plugin.analysis.features import (
    neck_inputs,
    pick_positions,
    pooled,
    stacked_levels,
    without_augmentation,
)
from mmfusion_plugin.analysis.probing import damage_rows, fit_probe, plot_damage, probe_encoders


def test_a_probe_is_penalised_logistic_regression():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=generator) * torch.tensor([1, 10, 0.1, 1, 1]) + 3
    labels = (x[:, 0] + 10 * x[:, 2] + torch.randn(300, generator=generator) > 33).long() + (x[:, 3] > 3.5).long()
    probe = fit_probe(x, labels, 3, decay=1e-2, steps=500)
    linear = pytest.importorskip("sklearn.linear_model")
    standard = (x - x.mean(0)) / x.std(0, unbiased=False)
    # its penalty is 1/2 |W|^2 beside C times the sum of the losses
    other = linear.LogisticRegression(C=1 / (1e-2 * 300), tol=1e-8, max_iter=5000).fit(standard.numpy(), labels.numpy())
    expected = other.predict_proba(standard.numpy())
    np.testing.assert_allclose(probe(x).softmax(1).detach().numpy(), expected, atol=2e-3)
    for bad, said in (((x[:0], labels[:0]), "nothing to fit"), ((x / 0, labels), "non-finite"),
                      ((x, labels + 1), "expected 0..2")):
        with pytest.raises(ValueError, match=said):
            fit_probe(*bad, 3)


def test_positions_are_labelled_ones_and_depend_on_the_picture_alone():
    label = torch.arange(64).reshape(8, 8) // 8
    label[:4] = 255
    places, found = pick_positions(label, (4, 4), 6, index=3, seed=0)
    assert len(places) == 6 and (places >= 8).all() and len(set(places.tolist())) == 6
    assert found.tolist() == [int(label[2 * (p // 4) + 1, 0]) for p in places.tolist()], "the pixel at the centre"
    assert torch.equal(places, pick_positions(label, (4, 4), 6, index=3, seed=0)[0])
    assert not torch.equal(places, pick_positions(label, (4, 4), 6, index=4, seed=0)[0])
    assert len(pick_positions(label, (4, 4), 99, 0, 0)[0]) == 8


def test_a_recognizers_neck_gets_what_its_own_classifiers_read():
    pytest.importorskip("mmaction")
    model, loader, _ = tiny.recognition(missing=[(1, "audio")])
    samples = list(neck_inputs(model, loader, loader["dataset"]))
    assert [s.index for s in samples] == list(range(10)) and set(samples[1].levels) == {"visual"}
    data = model.data_preprocessor(loader["dataset"].batch, False)
    with torch.no_grad():
        vectors, _ = model.extract_feat(data["inputs"], data_samples=data["data_samples"], test_mode=True)
    torch.testing.assert_close(torch.stack([pooled(s.levels["visual"]) for s in samples]), vectors["visual"])
    assert [int(s.label) for s in samples] == [i % 5 for i in range(10)]


def test_an_encoder_that_knows_beats_one_that_does_not():
    pytest.importorskip("mmaction")
    from mmaction.structures import ActionDataSample
    from recognition.model import build, feature_cfg

    widths, labels, rng = dict(a=4, b=3), torch.arange(60) % 5, torch.Generator().manual_seed(0)
    known = torch.randn(5, 4, generator=rng)[labels] * 3 + torch.randn(60, 4, generator=rng)
    inputs = dict(a=list(known), b=list(torch.randn(60, 3, generator=rng)))
    samples = [ActionDataSample().set_gt_label(int(y)) for y in labels]
    items, half = dict(inputs=inputs, data_samples=samples), slice(0, 30)
    first = tiny.Items(dict(inputs={m: x[half] for m, x in inputs.items()}, data_samples=samples[half]))
    loader, model, seen = tiny.loader(tiny.Items(items)), build(feature_cfg(widths)), []
    before = tiny.state(model)
    found = probe_encoders(model, loader, first, loader, tiny.Items(items), 5, report=lambda *n: seen.append(n))
    assert found["a"]["accuracy"] > 0.85 > 0.6 > found["b"]["accuracy"]
    assert found["a"]["train_samples"] == 30 and np.mean(found["a"]["correct"]) == pytest.approx(found["a"]["accuracy"])
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items()) and seen[-1] == (60, 60)


class Colours(nn.Module):
    """An encoder whose map is the label's own scale, and one of noise."""

    def __init__(self, in_channels=3):
        super().__init__()
        self.in_channels = in_channels

    def forward(self, x):
        return (x[..., ::2, ::2], x[..., ::4, ::4])


def test_maps_get_a_probe_at_every_position(tmp_path):
    pytest.importorskip("mmseg")
    model, loader, _ = tiny.segmentation(tmp_path)
    forward = model.fusion_output

    def without_neck(inputs, samples):
        feats = {m: Colours()(x) for m, x in model.backbone.split(inputs).items()}
        model.neck.forward, real = (lambda feats, available=None: None), model.neck.forward
        model.neck(feats, None)
        model.neck.forward = real

    model.fusion_output = without_neck
    found = probe_encoders(model, loader, loader["dataset"], loader, loader["dataset"], 3, positions=200)
    # depth is 1 m + 0.5 m x label, an eighth of it lost; colour is noise
    assert found["depth"]["mIoU"] > 0.6 > 0.35 > found["rgb"]["mIoU"] and found["depth"]["correct"] is None
    model.fusion_output = forward
    sample = next(neck_inputs(model, loader, loader["dataset"]))
    assert stacked_levels(sample.levels["rgb"]).shape == (8 + 16 + 32 + 64, 12, 16) and sample.label.shape == (48, 64)


def test_rows_compare_the_same_test_samples():
    joint = dict(a=dict(mIoU=None, accuracy=0.5, correct=[1, 0, 1, 0]), b=dict(mIoU=0.4, accuracy=0.9, correct=None))
    alone = dict(a=dict(mIoU=None, accuracy=0.75, correct=[1, 1, 1, 0]))
    first, second = damage_rows(joint, alone)
    assert first["difference"] == -0.25 and first["standard_error"] == pytest.approx(0.25)
    assert second["metric"] == "mIoU" and second["joint"] == 0.4 and second["difference"] is None


def test_the_training_loader_reads_as_evaluation_does():
    def dataset(name):
        return dict(type="D", ann_file=name, pipeline=[dict(type=name)])

    cfg = dict(train_dataloader=dict(batch_size=32, dataset=dataset("train")),
               test_dataloader=dict(batch_size=1, dataset=dataset("test")))
    train = without_augmentation(cfg)
    assert train["dataset"] == dict(type="D", ann_file="train", pipeline=[dict(type="test")])
    assert train["batch_size"] == 1 and cfg["train_dataloader"]["dataset"] == dataset("train")
    cfg["train_dataloader"]["dataset"] = dict(type="RepeatDataset", dataset=dataset("train"))
    with pytest.raises(ValueError, match="RepeatDataset"):
        without_augmentation(cfg)


def test_the_tool(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mmaction")
    config, checkpoint = tiny.trained_features(tmp_path, monkeypatch)
    reference = f"a={config}:{checkpoint}"
    run_tool(monkeypatch, "encoder_damage", config, checkpoint, "--reference", reference)
    record = json.loads((tmp_path / "run" / "evidence" / "encoder_damage.json").read_text())
    rows = {row["modality"]: row for row in record["rows"]}
    assert rows["a"]["difference"] == 0 and rows["b"]["difference"] is None and rows["a"]["joint"] == 1
    assert plot_damage(record, tmp_path / "x.png").stat().st_size > 1000
    capsys.readouterr()
    run_tool(monkeypatch, "encoder_damage", config, checkpoint, "--reference", reference)
    assert "12/12" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, "encoder_damage", config, checkpoint, "--reference", "a")
