from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("mmaction")
import torch.nn.functional as F
from mmaction.registry import METRICS, MODELS
from mmaction.structures import ActionDataSample
from recognition.model import AV, CLASSES, WIDTHS

from mmfusion_plugin.models.availability import availability

FUSED = 12


def build(**options):
    torch.manual_seed(0)
    cfg = dict(type="mmaction.FusionHead", num_classes=CLASSES, in_channels=FUSED, modality_in_channels=WIDTHS)
    head = MODELS.build({**cfg, **options})
    for p in head.parameters():
        torch.nn.init.normal_(p)
    return head


def features(rows):
    generator = torch.Generator().manual_seed(1)
    widths = dict(fused=FUSED, **WIDTHS)
    return {name: torch.randn(rows, C, generator=generator).requires_grad_() for name, C in widths.items()}


def samples(labels, missing=()):
    made = []
    for i, label in enumerate(labels):
        sample = ActionDataSample().set_gt_label(label)
        sample.set_metainfo(dict(filename=f"{i}.mp4", available={m: (i, m) not in missing for m in AV}))
        made.append(sample)
    return made


def test_each_classifier_reads_its_own_vector():
    head, feats = build(), features(3)
    logits = head(feats)
    assert set(logits) == {"fused", "audio", "visual"}
    for name, fc in dict(fused=head.fc_cls, **head.modality_fc).items():
        torch.testing.assert_close(logits[name], feats[name] @ fc.weight.T + fc.bias)


def test_the_fused_loss_is_cross_entropy():
    head, feats = build(modality_in_channels=None), features(4)
    losses = head.loss(feats, samples([0, 1, 4, 1]))
    assert set(losses) == {"loss_cls", "top1_acc"}
    torch.testing.assert_close(losses["loss_cls"], F.cross_entropy(head.fc_cls(feats["fused"]),
                                                                   torch.tensor([0, 1, 4, 1])))


def test_accuracies_that_cannot_fail_are_not_logged():
    assert build().topk == (1,) and build(num_classes=6).topk == (1, 5) and build(topk=(1, 3)).topk == (1, 3)


def test_a_data_set_of_other_classes_is_told():
    head, data = build(), samples([0, 1])
    for number in (CLASSES - 1, CLASSES + 1):
        data[0].set_metainfo(dict(num_classes=number))
        for read in (head.loss, head.predict):
            with pytest.raises(ValueError, match=f"cls_head.num_classes is {CLASSES}, the data set has {number}"):
                read(features(2), data)


def test_an_auxiliary_loss_counts_the_samples_that_have_the_modality():
    head, feats = build(aux_weight=2.5), features(4)
    losses = head.loss(feats, samples([0, 1, 4, 1], missing=[(0, "audio"), (2, "audio")]))
    expected = F.cross_entropy(head.modality_fc["audio"](feats["audio"][[1, 3]]), torch.tensor([1, 1]))
    torch.testing.assert_close(losses["aux_audio.loss_cls"], 2.5 * expected)
    whole = F.cross_entropy(head.modality_fc["visual"](feats["visual"]), torch.tensor([0, 1, 4, 1]))
    torch.testing.assert_close(losses["aux_visual.loss_cls"], 2.5 * whole)
    losses["aux_audio.loss_cls"].backward()
    assert not feats["audio"].grad[[0, 2]].any()
    assert feats["audio"].grad[[1, 3]].any()


def test_an_auxiliary_loss_without_samples_is_zero_and_stays_in_the_graph():
    head = build(aux_weight=1.0)
    losses = head.loss(features(2), samples([0, 1], missing=[(0, "audio"), (1, "audio")]))
    assert losses["aux_audio.loss_cls"] == 0
    losses["aux_audio.loss_cls"].backward()
    assert not head.modality_fc["audio"].weight.grad.any()


def test_an_accuracy_is_not_weighted():
    head, feats = build(aux_weight=4.0), features(4)
    top = head(feats)["audio"].argmax(1)
    assert head.loss(feats, samples(top.tolist()))["aux_audio.top1_acc"] == 1


def test_a_probe_learns_and_its_encoder_does_not():
    head, feats = build(aux_weight=0.0), features(4)
    losses = head.loss(feats, samples([0, 1, 4, 1]))
    torch.testing.assert_close(losses["probe_audio.loss_cls"], F.cross_entropy(
        head.modality_fc["audio"](feats["audio"]), torch.tensor([0, 1, 4, 1])))
    sum(v for k, v in losses.items() if "loss" in k).backward()
    assert feats["audio"].grad is None
    assert head.modality_fc["audio"].weight.grad.any()


def test_label_smoothing_reaches_every_classifier():
    head, feats = build(aux_weight=1.0, label_smooth_eps=0.1), features(4)
    losses = head.loss(feats, samples([0, 1, 4, 1]))
    for key, name in (("loss_cls", "fused"), ("aux_audio.loss_cls", "audio")):
        expected = F.cross_entropy(head(feats)[name], torch.tensor([0, 1, 4, 1]), label_smoothing=0.1)
        torch.testing.assert_close(losses[key], expected)


def test_soft_labels_of_mixed_samples():
    head, feats, mixed = build(aux_weight=1.0), features(3), samples([0, 1, 2], missing=[(0, "audio"), (1, "audio")])
    soft = torch.eye(CLASSES)[:3] * 0.7 + 0.06
    for sample, label in zip(mixed, soft):
        sample.set_gt_label(label)
    losses = head.loss(feats, mixed)
    torch.testing.assert_close(losses["loss_cls"], F.cross_entropy(head(feats)["fused"], soft))
    torch.testing.assert_close(losses["aux_audio.loss_cls"], F.cross_entropy(head(feats)["audio"][2:], soft[2:]))


def test_in_training_every_view_carries_its_samples_label():
    head, feats = build(aux_weight=1.0), features(6)
    losses = head.loss(feats, samples([3, 1], missing=[(0, "audio")]))
    labels = torch.tensor([3, 3, 3, 1, 1, 1])
    torch.testing.assert_close(losses["loss_cls"], F.cross_entropy(head(feats)["fused"], labels))
    torch.testing.assert_close(losses["aux_audio.loss_cls"], F.cross_entropy(head(feats)["audio"][3:], labels[3:]))


@pytest.mark.parametrize("average", ["prob", "score"])
def test_views_are_averaged_like_a_loop_over_them(average):
    head, feats = build(average_clips=average), features(6)
    logits = head(feats)
    for b, sample in enumerate(head.predict(feats, samples([3, 1]))):
        for name in ("fused", "audio", "visual"):
            views = [logits[name][3 * b + v] for v in range(3)]
            if average == "prob":
                views = [view.exp() / view.exp().sum() for view in views]
            torch.testing.assert_close(sample.pred_score[name], sum(views) / 3)
        assert sample.pred_label.item() == sample.pred_score["fused"].argmax()


@pytest.mark.parametrize(("average", "value"), [("prob", 1 / CLASSES), ("score", 0.0)])
def test_a_missing_modality_scores_every_class_alike(average, value):
    head = build(average_clips=average)
    first, second = head.predict(features(2), samples([3, 1], missing=[(0, "audio")]))
    assert torch.equal(first.pred_score["audio"], torch.full((CLASSES,), value))
    assert len(second.pred_score["audio"].unique()) == CLASSES


def test_scores_do_not_upset_the_sample():
    sample, _ = build().predict(features(2), samples([3, 1]))
    assert sample.num_classes == CLASSES
    assert sample.to_dict()["pred_score"]["audio"].shape == (CLASSES,)


@torch.no_grad()
def test_mmaction2s_metric_reports_every_classifier():
    head, feats, labels = build(), features(20), [i % CLASSES for i in range(20)]
    metric = METRICS.build(dict(type="mmaction.AccMetric"))
    metric.process(None, [sample.to_dict() for sample in head.predict(feats, samples(labels))])
    found = metric.evaluate(20)
    for name, logits in head(feats).items():
        right = (logits.argmax(1).numpy() == np.array(labels)).mean()
        assert found[f"acc/{name}_top1"] == pytest.approx(right)
        assert found[f"acc/{name}_top5"] == 1
    assert len({found[f"acc/{name}_top1"] for name in ("fused", "audio", "visual")}) > 1


def test_half_precision_features_give_full_precision_scores():
    head = build().bfloat16()
    feats = {name: x.detach().bfloat16() for name, x in features(2).items()}
    assert head.predict(feats, samples([0, 1]))[0].pred_score["fused"].dtype == torch.float32
    head.loss(feats, samples([0, 1]))  # counts the accuracy in numpy


def test_the_order_of_a_configs_dict_means_nothing():
    """mmengine writes configs with sorted keys: the classifiers' order must not depend on the dict's."""
    one, other = (build(modality_in_channels={m: WIDTHS[m] for m in names}) for names in (AV, AV[::-1]))
    assert list(one.state_dict()) == list(other.state_dict())


def test_weights_are_initialised_with_init_std():
    head = build(init_std=0.3, in_channels=4096, modality_in_channels=dict(audio=4096))
    head.init_weights()
    for fc in (head.fc_cls, head.modality_fc["audio"]):
        assert fc.weight.std().item() == pytest.approx(0.3, rel=0.05)
        assert not fc.bias.any()


def test_what_no_sample_records_is_available():
    found = availability(AV, [dict(available=dict(audio=False)), {}])
    assert found["audio"].tolist() == [False, True]
    assert found["visual"].tolist() == [True, True]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(num_classes=0), "cls_head.num_classes must be a positive integer"),
        (dict(modality_in_channels=dict(audio=True)), "cls_head.modality_in_channels.audio must be"),
        (dict(modality_in_channels=dict(fused=3)), "names 'fused'"),
        (dict(average_clips=None), "cls_head.average_clips must be one of"),
        (dict(aux_weight=-1.0), "aux_weight must not be negative"),
        (dict(aux_weight=1.0, modality_in_channels=None), "names no modality"),
        (dict(multi_class=True), "multi_class"),
    ])
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        build(**options)


def test_wrong_widths_are_named():
    feats = features(2)
    with pytest.raises(ValueError, match=r"the neck gives features of shape \(2, 8\), cls_head.in_channels is 12"):
        build()(dict(feats, fused=feats["visual"]))
    with pytest.raises(ValueError, match=r"the 'audio' encoder gives .*modality_in_channels.audio is 6"):
        build()(dict(feats, audio=feats["visual"]))
    with pytest.raises(ValueError, match="names 'audio', the batch holds .'visual'."):
        build()({name: feats[name] for name in ("fused", "visual")})


def test_the_confusion_matrix_reads_one_of_the_scores():
    head, feats = build(), features(3)
    predicted = [sample.to_dict() for sample in head.predict(feats, samples([0, 1, 4]))]
    for name, logits in head(feats).items():
        metric = METRICS.build(dict(type="mmaction.FusionConfusionMatrix", score=name))
        metric.process(None, predicted)
        expected = torch.zeros(CLASSES, CLASSES, dtype=torch.long)
        expected[[0, 1, 4], logits.argmax(1)] = 1
        assert torch.equal(metric.compute_metrics(metric.results)["result"], expected)
    with pytest.raises(ValueError, match=r"score is 'depth', model.cls_head scores \['audio', 'fused', 'visual'\]"):
        METRICS.build(dict(type="mmaction.FusionConfusionMatrix", score="depth")).process(None, predicted)
