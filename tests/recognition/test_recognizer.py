from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("mmaction")
from mmaction.registry import METRICS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from recognition.model import (
    AV,
    CLASSES,
    FRAMES,
    NECKS,
    R2PLUS1D,
    RESNET,
    SLOWONLY,
    WIDTHS,
    batch,
    build,
    feature_cfg,
    losses_of,
    model_cfg,
    scores_of,
    small_cnn,
)
from torch.utils.data import Dataset

LAYOUTS = {  # of one sample: shapes of the inputs, options of the model, widths of the features
    "frames and a spectrogram": (dict(visual=(FRAMES, 3, 32, 32), audio=(1, 1, 32, 48)),
                                 dict(backbones=dict(visual=RESNET, audio=RESNET)), dict(visual=64, audio=64)),
    "a clip and a spectrogram": (dict(visual=(1, 3, 4, 32, 32), audio=(1, 1, 32, 48)),
                                 dict(backbones=dict(visual=SLOWONLY, audio=RESNET), frames_per_clip=None),
                                 dict(visual=8, audio=64)),
    "two clips": (dict(visual=(1, 3, 4, 32, 32), audio=(1, 1, 4, 24, 24)),
                  dict(backbones=dict(visual=SLOWONLY, audio=R2PLUS1D), frames_per_clip=None),
                  dict(visual=8, audio=8)),
}
# the maps of a clip and of a spectrogram have no axes in common
POOLINGS = [(layout, pool) for layout in LAYOUTS for pool in (True, "time", False)
            if (layout, pool) != ("a clip and a spectrogram", False)]


def layout_cfg(layout, neck, pool, **options):
    shapes, more, widths = LAYOUTS[layout]
    return shapes, model_cfg(neck=dict(type=neck, in_channels=dict(widths)), widths=widths, pool=pool,
                             **more, **options)


def gradients(model, data):
    model.zero_grad()
    total, _ = model.parse_losses(losses_of(model, data))
    total.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_all_reached(model, data):
    found = gradients(model, data)
    assert [name for name, grad in found.items() if grad is None] == []
    assert all(torch.isfinite(grad).all() for grad in found.values())


@pytest.mark.parametrize(("layout", "pool"), POOLINGS)
@pytest.mark.parametrize("neck", NECKS)
def test_every_neck_on_vectors_sequences_and_maps(neck, layout, pool):
    shapes, cfg = layout_cfg(layout, neck, pool)
    model = build(cfg)
    assert_all_reached(model, batch(shapes, missing=[(1, "visual"), (2, "audio")]))
    scores = scores_of(model, batch(shapes))
    assert set(scores) == {"fused", *AV}
    for score in scores.values():
        assert score.shape == (4, CLASSES)
        torch.testing.assert_close(score.sum(1), torch.ones(4))


@pytest.mark.parametrize("neck", NECKS)
def test_what_a_missing_modality_holds_changes_nothing(neck):
    model = build(model_cfg(neck=dict(type=neck)))
    data = batch(missing=[(0, "audio"), (3, "visual")])
    expected = scores_of(model, data)
    data["inputs"]["audio"][0][:] = torch.nan
    data["inputs"]["visual"][3][:] = 255
    found = scores_of(model, data)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(scores_of(model, batch())["fused"], expected["fused"])


def test_a_broken_encoder_of_a_missing_modality_changes_nothing():
    """The mask is the neck's and the head's own: it does not lean on zeros at the input."""
    model = build()
    data = batch(missing=[(i, "audio") for i in range(4)])
    expected = scores_of(model, data)["fused"]
    model.backbone.encoders["audio"].register_forward_hook(lambda *_: (torch.full((4, 6, 4, 6), torch.nan),))
    found = scores_of(model, data)
    assert torch.equal(found["fused"], expected)
    assert torch.isfinite(found["audio"]).all()
    assert torch.isfinite(sum(v for k, v in losses_of(model, data).items() if "loss" in k))


def test_withholding_at_test_equals_data_without_it():
    model = build()
    without, complete = scores_of(model, batch(missing=[(i, "audio") for i in range(4)])), scores_of(model, batch())
    model.data_preprocessor.test_missing = ("audio",)
    found = scores_of(model, batch())
    assert all(torch.equal(found[name], without[name]) for name in found)
    assert not torch.equal(complete["fused"], without["fused"])


def test_missing_in_one_sample_is_that_samples_alone():
    model = build()
    complete, partial = scores_of(model, batch()), scores_of(model, batch(missing=[(1, "visual")]))
    others = [0, 2, 3]
    torch.testing.assert_close(partial["fused"][others], complete["fused"][others])
    assert not torch.allclose(partial["fused"][1], complete["fused"][1])


def test_a_sample_with_nothing_left_is_an_error():
    with pytest.raises(ValueError, match="sample 1.mp4 has no modality left"):
        losses_of(build(), batch(missing=[(1, "audio"), (1, "visual")]))


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("lost", AV)
def test_every_parameter_has_a_gradient_when_a_modality_is_missing_everywhere(neck, lost):
    assert_all_reached(build(model_cfg(neck=dict(type=neck))), batch(missing=[(i, lost) for i in range(4)]))


@pytest.mark.parametrize("neck", NECKS)
def test_every_parameter_has_a_gradient_under_modality_dropout(neck):
    model = build(model_cfg(neck=dict(type=neck, modality_dropout=0.9), head=dict(aux_weight=0.0)))
    for _ in range(3):
        assert_all_reached(model, batch(number=2))


def test_the_reconstruction_is_optimised_and_no_diagnostic_is():
    model = build()
    losses = losses_of(model, batch())
    total, logged = model.parse_losses(losses)
    torch.testing.assert_close(total, losses["loss_cls"] + losses["aux_audio.loss_cls"]
                               + losses["aux_visual.loss_cls"] + losses["fusion.loss_recon"])
    assert losses["fusion.loss_recon"] > 0
    assert {"fusion.recon_similarity.audio", "fusion.recon_distance.visual", "top1_acc"} <= set(logged)
    total.backward()
    assert any(grad.any() for name, grad in ((n, p.grad) for n, p in model.neck.named_parameters()) if "recon" in name)


def encoder_gradients(**head):
    model = build(model_cfg(head=head))
    model.load_state_dict(build().state_dict(), strict=False)  # more classifiers, other random numbers
    found = gradients(model, batch(missing=[(1, "audio")]))
    return {name: grad for name, grad in found.items() if name.startswith(("backbone", "neck", "cls_head.fc_cls"))}


def test_probes_change_no_other_gradient():
    probed = encoder_gradients(aux_weight=0.0)
    alone = encoder_gradients(aux_weight=0.0, modality_in_channels=None)
    trained = encoder_gradients(aux_weight=0.5)
    assert set(probed) == set(alone)
    assert all(torch.equal(probed[name], alone[name]) for name in alone)
    assert any(not torch.equal(trained[name], alone[name]) for name in alone if name.startswith("backbone"))


@pytest.mark.parametrize("average", ["prob", "score"])
def test_clips_and_crops_are_averaged_like_a_loop_over_views(average):
    """Crops outside, clips inside, as mmaction2 packs them; one sound per clip serves all of its crops."""
    clips, crops = 2, 3
    # SCFAE's modalities hardly meet before training: views that are paired wrongly would not show
    model = build(model_cfg(neck=dict(type="MLPFusion"), head=dict(average_clips=average)))
    data = batch(dict(visual=(crops * clips * FRAMES, 3, 16, 16), audio=(clips, 1, 16, 24)),
                 missing=[(0, "visual"), (2, "audio")])
    found, total = scores_of(model, data), {}
    for crop in range(crops):
        for clip in range(clips):
            first = (crop * clips + clip) * FRAMES
            view = dict(data, inputs=dict(visual=[x[first : first + FRAMES] for x in data["inputs"]["visual"]],
                                          audio=[x[clip : clip + 1] for x in data["inputs"]["audio"]]))
            for name, score in scores_of(model, view).items():
                total[name] = total.get(name, 0) + score
    for name in ("fused", *AV):
        torch.testing.assert_close(found[name], total[name] / (clips * crops))


@pytest.mark.parametrize("pool", [True, "time"])
def test_views_of_3d_clips_are_averaged_like_a_loop(pool):
    shapes, cfg = layout_cfg("a clip and a spectrogram", "SCFAE", pool)
    model = build(cfg)
    data = batch(dict(visual=(3, *shapes["visual"][1:]), audio=shapes["audio"]), number=2)
    views = [scores_of(model, dict(data, inputs=dict(data["inputs"], visual=[x[v : v + 1] for x in
                                                                             data["inputs"]["visual"]])))
             for v in range(3)]
    found = scores_of(model, data)
    for name, score in found.items():
        torch.testing.assert_close(score, sum(view[name] for view in views) / 3)


def test_frames_of_a_clip_meet_before_fusion():
    model = build().eval()
    inputs = model.data_preprocessor(batch())["inputs"]
    feats, _ = model.extract_feat(inputs)
    encoder = model.backbone.encoders["visual"]
    expected = torch.stack([torch.stack([encoder(frame[None])[0].mean((2, 3))[0] for frame in clip]).mean(0)
                            for clip in inputs["visual"]])
    torch.testing.assert_close(feats["visual"], expected)


def test_sequences_are_frames_and_the_time_axis_of_the_spectrogram():
    model = build(model_cfg(pool="time")).eval()
    inputs, seen = model.data_preprocessor(batch())["inputs"], {}
    model.neck.register_forward_pre_hook(lambda _, given: seen.update(given[0]))
    model(inputs)
    frames = inputs["visual"]
    expected = torch.stack([model.backbone.encoders["visual"](frames[:, t])[0].mean((2, 3)) for t in range(FRAMES)], 1)
    torch.testing.assert_close(seen["visual"][0], expected)
    sound = model.backbone.encoders["audio"](inputs["audio"][:, 0])[0]  # (B, C, F, T)
    assert seen["audio"][0].shape == (4, 6, WIDTHS["audio"])
    torch.testing.assert_close(seen["audio"][0][:, 5], sound[..., 5].mean(2))


def test_maps_are_fused_position_by_position():
    """A concatenation of maps, averaged, is the concatenation of the averaged maps."""
    pools = {}
    for pool in (True, False):
        neck = dict(type="ConcatFusion", out_channels=None, align="audio")
        model = build(model_cfg(neck=neck, head=dict(in_channels=14), pool=pool)).eval()
        pools[pool] = model.extract_feat(model.data_preprocessor(batch(dict(
            visual=(FRAMES, 3, 16, 24), audio=(1, 1, 16, 24))))["inputs"])[0]["fused"]
    torch.testing.assert_close(pools[True], pools[False])


def test_a_pyramid_is_fused_level_by_level():
    deep = dict(type="SmallCNN", channels=[8, 6], pools=[2, 2], out_indices=[0, 1])
    widths = dict(visual=[8, 6], audio=[8, 6])
    model = build(model_cfg(backbones=dict(visual=deep, audio=deep), pool=False,
                            neck=dict(in_channels=widths, out_channels=[12, 4]),
                            head=dict(in_channels=16, modality_in_channels=dict(visual=6, audio=6))))
    assert_all_reached(model, batch())
    feats, _ = model.extract_feat(model.data_preprocessor(batch())["inputs"])
    assert feats["fused"].shape == (4, 16)


def test_slowfasts_pathways_make_one_vector():
    both = dict(type="SmallCNN", channels=[4, 3], pools=[4, 1], out_indices=[0, 1])
    widths = dict(visual=7, audio=6)
    model = build(model_cfg(backbones=dict(visual=both), widths=widths, concat_levels=["visual"])).eval()
    inputs = model.data_preprocessor(batch())["inputs"]
    feats, _ = model.extract_feat(inputs)
    slow, fast = model.backbone.encoders["visual"](inputs["visual"].flatten(0, 1))
    expected = torch.cat([slow.mean((2, 3)), fast.mean((2, 3))], 1).unflatten(0, (4, FRAMES)).mean(1)
    torch.testing.assert_close(feats["visual"], expected)


def test_a_level_more_than_the_neck_fuses_is_an_error():
    deep = dict(type="SmallCNN", channels=[4, 8], pools=[2, 2], out_indices=[0, 1])
    with pytest.raises(ValueError, match="the 'visual' encoder gives 2 levels"):
        losses_of(build(model_cfg(backbones=dict(visual=deep))), batch())


@pytest.mark.parametrize("widths", [dict(text=7, audio=4, video=6), dict(c=24, a=7, f=21, b=5, e=6, d=1)])
@pytest.mark.parametrize("neck", NECKS)
def test_any_number_of_modalities_and_unequal_widths(widths, neck):
    options = dict(type=neck) | (dict(embed_channels=8) if neck == "CrossAttentionFusion" else {})
    model = build(feature_cfg(widths, neck=options))
    names = list(widths)
    shapes = {m: (C,) for m, C in widths.items()}
    assert_all_reached(model, batch(shapes, missing=[(1, names[0]), (1, names[-1]), (2, names[1])]))
    assert set(scores_of(model, batch(shapes))) == {"fused", *names}
    sequences = {m: (5, C) for m, C in widths.items()}
    assert_all_reached(build(feature_cfg(widths, neck=options, pool=False)), batch(sequences))


def test_features_pass_through_as_they_are():
    model = build(feature_cfg(dict(a=4, b=3))).eval()
    data = batch(dict(a=(4,), b=(5, 3)))
    feats, _ = model.extract_feat(model.data_preprocessor(data)["inputs"])
    torch.testing.assert_close(feats["a"], torch.stack(data["inputs"]["a"]))
    torch.testing.assert_close(feats["b"], torch.stack([x.mean(0) for x in data["inputs"]["b"]]))


def test_one_modality_alone_is_a_unimodal_reference():
    cfg = feature_cfg(dict(a=4))
    cfg["neck"] = dict(type="SingleModality", modality="a", in_channels=4, out_channels=12)
    assert_all_reached(build(cfg), batch(dict(a=(4,))))


def test_a_dumped_config_with_sorted_keys_predicts_the_same(tmp_path):
    model = build()
    Config(dict(model=model_cfg())).dump(tmp_path / "config.py")
    copied = Config.fromfile(tmp_path / "config.py").model
    assert list(copied.backbone.backbones) == ["audio", "visual"]  # mmengine sorted the keys
    again = build(copied.to_dict())
    again.load_state_dict(model.state_dict())
    expected, found = scores_of(model, batch()), scores_of(again, batch())
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_state_dict_round_trip(tmp_path):
    data = batch()
    model = build(model_cfg(neck=dict(modality_dropout=0.3, missing_fill="mean")))
    losses_of(model, data)  # moves running statistics and the dropout's step
    torch.save(model.state_dict(), tmp_path / "model.pth")
    again = build(model_cfg(neck=dict(modality_dropout=0.3, missing_fill="mean")))
    for p in again.parameters():
        torch.nn.init.normal_(p)
    again.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True), strict=True)
    partial = batch(missing=[(0, "audio")])
    expected, found = scores_of(model, partial), scores_of(again, partial)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(losses_of(model, data)["loss_cls"], losses_of(again, data)["loss_cls"])


def test_init_weights_reaches_encoders_and_head():
    model = build(model_cfg(head=dict(init_std=0.01)))
    kernel = model.backbone.encoders["visual"].stages[0][0].weight  # torch's own default: 0.11
    assert kernel.std().item() == pytest.approx((2 / (8 * 9)) ** 0.5, rel=0.15)
    assert model.cls_head.modality_fc["audio"].weight.std() < 0.02


def test_a_train_step_of_mmengine_updates_everything():
    model = build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.5), clip_grad=dict(max_norm=40, norm_type=2))
    logged = model.train().train_step(batch(), wrapper)
    assert {"loss", "loss_cls", "fusion.loss_recon", "aux_audio.loss_cls"} <= set(logged)
    # a bias straight before a batch normalisation could stay; SmallCNN has none
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_tensor_mode_gives_the_logits_that_prediction_averages():
    model = build(model_cfg(head=dict(average_clips="score"))).eval()
    data = model.data_preprocessor(batch(missing=[(0, "audio")]))
    logits = model(**data)
    torch.testing.assert_close(logits["fused"], scores_of(model, batch(missing=[(0, "audio")]))["fused"])
    assert set(model(**data, stage="backbone")) == set(AV)
    assert model(**data, stage="neck")["fused"].shape == (4, 12)


class Clips(Dataset):
    """Eight clips, made up; a map-style dataset as mmengine's loops ask for."""

    metainfo = dict(classes=[str(i) for i in range(CLASSES)])

    def __getitem__(self, index):
        data = batch(number=8)
        return dict(inputs={m: x[index] for m, x in data["inputs"].items()}, data_samples=data["data_samples"][index])

    def __len__(self):
        return 8


def loader(shuffle):
    return dict(batch_size=4, num_workers=0, dataset=Clips(), collate_fn=pseudo_collate,
                sampler=dict(type="DefaultSampler", shuffle=shuffle))


def test_mmengines_runner_trains_and_evaluates(tmp_path):
    runner = Runner(
        model=model_cfg(neck=dict(modality_dropout=0.3)), work_dir=str(tmp_path), default_scope="mmaction",
        train_dataloader=loader(True), val_dataloader=loader(False),
        train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=1, val_interval=1), val_cfg=dict(type="ValLoop"),
        val_evaluator=dict(type="AccMetric"), randomness=dict(seed=0),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.01), clip_grad=dict(max_norm=40, norm_type=2)),
        default_hooks=dict(logger=dict(type="LoggerHook", interval=1)), experiment_name="recognizer")
    runner.train()
    assert runner.iter == 2
    scalars = runner.message_hub.log_scalars
    assert {f"val/acc/{name}_top1" for name in ("fused", *AV)} <= set(scalars)
    logged = {name: scalars[f"train/{name}"].current() for name in
              ("loss", "loss_cls", "aux_audio.loss_cls", "aux_visual.loss_cls", "fusion.loss_recon")}
    total = logged.pop("loss")
    assert total == pytest.approx(sum(logged.values()), rel=1e-5)
    assert (tmp_path / "epoch_1.pth").is_file()


def test_the_metric_follows_the_availability():
    model, metric = build(), METRICS.build(dict(type="mmaction.AccMetric"))
    data = batch(number=10, missing=[(i, "audio") for i in range(10)])
    with torch.no_grad():
        metric.process(None, [sample.to_dict() for sample in model.eval().test_step(copy.deepcopy(data))])
    found = metric.evaluate(10)
    assert found["acc/audio_mean1"] == pytest.approx(1 / CLASSES)  # chance: every class alike
    assert found["acc/audio_top1"] == pytest.approx(1 / CLASSES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(test_cfg=dict(average_clips="prob")), "model.test_cfg is"),
        (dict(pool="mean"), "model.pool must be one of"),
        (dict(frames_per_clip=dict(video=3)), "model.frames_per_clip names .'video'."),
        (dict(frames_per_clip=dict(visual=0)), "model.frames_per_clip.visual must be"),
        (dict(input_ndim=dict(depth=4)), "model.input_ndim names .'depth'."),
        (dict(concat_levels="visual"), "model.concat_levels must be a list"),
        (dict(concat_levels=["visual"], pool="time"), "needs model.pool=True"),
        (dict(data_preprocessor=None), "names the modalities None.* use a MultimodalActionDataPreProcessor"),
        (dict(data_preprocessor=dict(type="MultimodalActionDataPreProcessor", modalities=["a", "visual"])),
         "names the modalities"),
        (dict(head=dict(in_channels=13)), "model.neck gives 12 channels, model.cls_head.in_channels is 13"),
        (dict(head=dict(modality_in_channels=dict(visual=8, depth=6))), "names .'depth'."),
    ])
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        build(model_cfg(**options))


def test_parts_of_other_kinds_are_named():
    with pytest.raises(ValueError, match="use MultimodalBackbone"):
        build({**model_cfg(), "backbone": dict(RESNET)})
    with pytest.raises(ValueError, match="model.neck is None"):
        build({**model_cfg(), "neck": None})
    with pytest.raises(ValueError, match="SmallCNN, which takes no features by modality"):
        build({**model_cfg(), "neck": small_cnn(8)})
    with pytest.raises(ValueError, match="model.cls_head TSNHead reads one feature map; use FusionHead"):
        build({**model_cfg(), "cls_head": dict(type="TSNHead", num_classes=CLASSES, in_channels=12)})
    features = feature_cfg(dict(a=3, b=3), frames_per_clip=dict(a=2))
    with pytest.raises(ValueError, match="set model.input_ndim.a"):
        build(features)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (dict(visual=(3, 3, 16, 16), audio=(1, 1, 16, 24)), "no multiple of model.frames_per_clip.visual=2"),
        (dict(visual=(1, 3, 4, 16, 16), audio=(1, 1, 16, 24)), "'visual' has shape .*SmallCNN takes 4 axes"),
        (dict(visual=(8, 3, 16, 16), audio=(3, 1, 16, 24)), "numbers that divide the largest"),
    ])
def test_wrong_shapes_are_named(shapes, words):
    with pytest.raises(ValueError, match=words):
        scores_of(build(), batch(shapes))


def test_features_of_another_width_name_their_modality():
    with pytest.raises(ValueError, match=r"'b' has shape \(4, 5\), model.backbone.in_channels.b is 3"):
        losses_of(build(feature_cfg(dict(a=3, b=3))), batch(dict(a=(3,), b=(5,))))


def test_training_on_unequal_numbers_of_views_is_an_error():
    shapes = dict(visual=(2 * FRAMES, 3, 16, 16), audio=(1, 1, 16, 24))
    with pytest.raises(ValueError, match="the same number in training"):
        losses_of(build(), batch(shapes))


def test_maps_of_a_clip_and_of_a_spectrogram_have_no_common_axes():
    shapes, cfg = layout_cfg("a clip and a spectrogram", "SCFAE", False)
    with pytest.raises(ValueError, match="no axes in common; set model.pool"):
        losses_of(build(cfg), batch(shapes))


def test_an_encoder_that_merges_frames_is_named():
    model = build(model_cfg(backbones=dict(visual=small_cnn(8))))
    model.backbone.encoders["visual"].register_forward_hook(lambda *args: (args[-1][0][::2],))
    with pytest.raises(ValueError, match="expected one feature for each of 8 inputs"):
        losses_of(model, batch())


def test_an_encoder_that_mixes_frames_mixes_those_of_one_clip():
    def model(segments):
        tsm = dict(type="MobileNetV2TSM", num_segments=segments, pretrained2d=False)
        return build(model_cfg(backbones=dict(visual=tsm), widths=dict(WIDTHS, visual=1280)))

    with pytest.raises(ValueError, match=r"backbones.visual.num_segments is 8, model.frames_per_clip.visual is 2"):
        model(8)
    fitting, data = model(FRAMES), batch(dict(visual=(FRAMES, 3, 32, 32), audio=(1, 1, 16, 24)))
    alone = dict(inputs={m: x[:1] for m, x in data["inputs"].items()}, data_samples=data["data_samples"][:1])
    torch.testing.assert_close(scores_of(fitting, data)["fused"][:1], scores_of(fitting, alone)["fused"])


@pytest.mark.parametrize(
    ("options", "words"),
    [(dict(norm="batch"), "FeatureEncoder.norm"), (dict(hidden_channels=4), "FeatureEncoder.out_channels is None")])
def test_wrong_options_of_the_feature_encoder_are_named(options, words):
    cfg = feature_cfg(dict(a=3, b=3))
    cfg["backbone"]["backbones"]["a"].update(options)
    with pytest.raises(ValueError, match=words):
        build(cfg)


@pytest.mark.parametrize(
    ("options", "layers", "width"),
    [({}, 0, 7), (dict(norm="layer"), 1, 7), (dict(out_channels=4), 2, 4),
     (dict(out_channels=4, hidden_channels=9, norm="layer", dropout=0.5), 5, 4)])
def test_feature_encoders(options, layers, width):
    from mmfusion_plugin.recognition.recognizer import FeatureEncoder

    encoder = FeatureEncoder(7, **options).eval()
    x = torch.randn(3, 5, 7)
    assert len(encoder.layers) == layers
    assert encoder(x).shape == (3, 5, width)
    torch.testing.assert_close(encoder(x)[:, 2], encoder(x[:, 2]))
    with pytest.raises(ValueError, match="FeatureEncoder.in_channels is 7"):
        encoder(torch.randn(3, 6))


def test_injected_noise_reaches_the_neck_and_its_estimate_the_log():
    cfg = model_cfg()
    cfg["neck"] = dict(type="UDML", modalities=AV, in_channels=dict(WIDTHS), inner=dict(type="SCFAE", out_channels=12))
    model = build(cfg)
    model.neck.udml.set_progress(0.0)
    data = batch()
    assert losses_of(model, data)["fusion.loss_noise"] == 0, "nothing known, nothing taught"
    for i, sample in enumerate(data["data_samples"]):
        sample.set_metainfo(dict(noise_level=dict(visual=float(i))))
    losses = losses_of(model, data)
    assert losses["fusion.loss_noise"] > 0 and "fusion.loss_recon" in losses
    assert all(f"fusion.noise.{m}" in losses for m in AV)


def test_predictions_reconstruct_nothing():
    model, made, data = build(), [], batch()
    model.neck.levels[0].P_recon["visual"].register_forward_hook(lambda *_: made.append(1))
    with torch.no_grad():
        model.eval().test_step(data)
        model(**model.data_preprocessor(data, False), mode="tensor")
    assert not made
    assert losses_of(model.train(), data)["fusion.loss_recon"] > 0 and made
