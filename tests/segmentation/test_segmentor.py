from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import OptimWrapper
from mmseg.registry import DATASETS, MODELS
from segmentation.scene import LOAD, PACK, SIZE, dataset_cfg, model_cfg

from mmfusion_plugin.segmentation.segmentor import _nothing_of

HEAD = model_cfg()["decode_head"]
FCN = dict(type="FCNHead", in_channels=64, in_index=3, channels=8, num_convs=1, num_classes=3, concat_input=False,
           norm_cfg=dict(type="BN"), align_corners=False)
BINARY = {**FCN, "num_classes": 2, "out_channels": 1, "threshold": 0.5,
          "loss_decode": dict(type="CrossEntropyLoss", use_sigmoid=True)}


def build(**options):
    torch.manual_seed(0)
    return MODELS.build(Config(dict(model=model_cfg(**options))).model)


def batch(frames, missing=()):
    data = pseudo_collate([DATASETS.build(dataset_cfg(frames, [*LOAD, PACK]))[i] for i in range(3)])
    for i, m in missing:
        data["data_samples"][i].set_metainfo(
            dict(available={**data["data_samples"][i].metainfo["available"], m: False}))
    return data


def losses_of(model, data):
    data = model.data_preprocessor(data, training=True)
    return model(**data, mode="loss")


def logits_of(model, data):
    with torch.no_grad():
        return torch.stack([s.seg_logits.data for s in model.eval().test_step(data)])


def test_fusion_losses_join_the_task_loss(frames):
    model = build()
    losses = losses_of(model, batch(frames))
    total, logged = model.parse_losses(losses)
    assert {"decode.loss_ce", "fusion.loss_recon"} <= set(losses)
    torch.testing.assert_close(total, losses["decode.loss_ce"] + losses["fusion.loss_recon"])
    assert "fusion.recon_distance.depth.0" in logged


def test_modality_heads_train_each_encoder(frames):
    model = build(modality_heads=dict(rgb=FCN, depth=FCN))
    losses = losses_of(model, batch(frames, [(0, "depth")]))
    losses["aux_depth.loss_ce"].backward()
    encoders = model.backbone.encoders
    assert encoders["depth"].conv1.weight.grad.any()
    assert encoders["rgb"].conv1.weight.grad is None
    everywhere = losses_of(model, batch(frames, [(i, "depth") for i in range(3)]))
    assert everywhere["aux_depth.loss_ce"] == 0
    with pytest.raises(ValueError, match="modality_heads names"):
        build(modality_heads=dict(nir=FCN))


def test_modality_heads_are_initialised():
    model = build(modality_heads=dict(depth=FCN))
    model.init_weights()
    assert model.modality_heads["depth"].conv_seg.weight.std() < 0.02  # mmsegmentation: normal, std 0.01


def test_every_parameter_has_a_gradient_when_a_sensor_is_missing_everywhere(frames):
    model = build()
    total, _ = model.parse_losses(losses_of(model, batch(frames, [(i, "depth") for i in range(3)])))
    total.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("neck", ["SCFAE", "GatedFusion"])
def test_levels_that_no_head_reads_have_gradients(frames, neck):
    """Distributed training waits for them."""
    cfg = {key: value for key, value in model_cfg()["neck"].items() if key != "width"}
    auxiliary = {**FCN, "in_channels": 16, "in_index": -3}
    model = build(decode_head=FCN, auxiliary_head=auxiliary, neck={**cfg, "type": neck})
    total, _ = model.parse_losses(losses_of(model, batch(frames)))
    total.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert model._unread(("first", "second", "third", "fourth")) == ["first", "third"]
    assert _nothing_of([torch.full((1, 1), torch.inf)]) == 0


def test_a_sensor_that_a_whole_batch_lacks_leaves_its_heads_statistics(frames):
    model = build(modality_heads=dict(rgb=FCN, depth=FCN))
    before = {name: x.clone() for name, x in model.modality_heads.named_buffers()}
    total, _ = model.parse_losses(losses_of(model, batch(frames, [(i, "depth") for i in range(3)])))
    total.backward()
    changed = {name for name, x in model.modality_heads.named_buffers() if not torch.equal(x, before[name])}
    assert changed and not any(name.startswith("depth") for name in changed)
    assert model.modality_heads["depth"].training
    assert all(p.grad is not None and not p.grad.any() for p in model.modality_heads["depth"].parameters())


def test_a_head_that_cannot_learn_from_one_sample_is_named(frames):
    psp = dict(type="PSPHead", in_channels=64, in_index=3, channels=8, num_classes=3, norm_cfg=dict(type="BN"))
    model = build(modality_heads=dict(depth=psp))
    with pytest.raises(ValueError, match=r"one of the batch's 3 samples has 'depth'.*modality_heads\.depth\.norm_cfg"):
        losses_of(model, batch(frames, [(0, "depth"), (2, "depth")]))
    assert losses_of(model, batch(frames, [(0, "depth")]))["aux_depth.loss_ce"].isfinite()


def test_a_missing_sensors_content_does_not_matter(frames):
    model = build()
    data = batch(frames, [(0, "depth")])
    expected = logits_of(model, copy.deepcopy(data))
    data["inputs"]["depth"][0] += 1
    assert torch.equal(logits_of(model, data), expected)


def test_withholding_at_test_equals_data_without_it(frames):
    model = build()
    without = logits_of(model, batch(frames, [(i, "depth") for i in range(3)]))
    complete = logits_of(model, batch(frames))
    model.data_preprocessor.test_missing = ("depth",)
    assert torch.equal(logits_of(model, batch(frames)), without)
    assert not torch.equal(complete, without)


def test_slide_inference_is_stock_and_carries_availability(frames):
    data = batch(frames, [(1, "rgb")])
    whole = build()
    slide = build(test_cfg=dict(mode="slide", crop_size=SIZE, stride=SIZE))
    slide.load_state_dict(whole.state_dict())
    torch.testing.assert_close(logits_of(slide, copy.deepcopy(data)), logits_of(whole, data))
    tiles = build(test_cfg=dict(mode="slide", crop_size=(32, 32), stride=(16, 16)))
    assert logits_of(tiles, batch(frames)).shape == (3, 3, *SIZE)


def test_test_time_augmentation_averages_flips(frames):
    flips = [dict(type="RandomFlip", prob=p, direction="horizontal") for p in (0.0, 1.0)]
    pipeline = [LOAD[0], dict(type="TestTimeAug", transforms=[flips, [LOAD[1]], [PACK]])]
    item = DATASETS.build(dataset_cfg(frames, pipeline))[0]
    tta = MODELS.build(dict(type="SegTTAModel", module=Config(dict(model=model_cfg())).model)).eval()
    sample = tta.test_step(pseudo_collate([item]))[0]
    alone = [
        tta.module.test_step(dict(inputs={m: [x] for m, x in inputs.items()}, data_samples=[data_sample]))[0]
        for inputs, data_sample in zip(item["inputs"], copy.deepcopy(item["data_samples"]))
    ]
    mean = torch.stack([s.seg_logits.data.softmax(0) for s in alone]).mean(0)
    assert not torch.equal(alone[0].seg_logits.data, alone[1].seg_logits.data)
    assert torch.equal(sample.pred_sem_seg.data.squeeze(0), mean.argmax(0))


def test_a_config_that_mmengine_wrote_predicts_the_same(frames, tmp_path):
    cfg = Config(dict(model=model_cfg()))
    model = MODELS.build(cfg.model)
    cfg.dump(tmp_path / "dumped.py")
    reloaded = Config.fromfile(tmp_path / "dumped.py")
    assert list(reloaded.model.backbone.backbones) == ["depth", "rgb"]  # mmengine sorts: the trap is real
    again = MODELS.build(reloaded.model)
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits_of(model, batch(frames)), logits_of(again, batch(frames)))


def test_a_step_changes_both_encoders(frames):
    model = build()
    before = {m: e.conv1.weight.clone() for m, e in model.backbone.encoders.items()}
    wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-2))
    logged = model.train_step(batch(frames), wrapper)
    assert torch.isfinite(logged["loss"])
    assert all(not torch.equal(before[m], e.conv1.weight) for m, e in model.backbone.encoders.items())


def test_a_stack_in_another_order_is_refused():
    preprocessor = model_cfg()["data_preprocessor"]
    with pytest.raises(ValueError, match="the same list in the same order"):
        build(data_preprocessor={**preprocessor, "modalities": ["depth", "rgb"]})
    swapped = dict(mean=dict(rgb=[0.0], depth=[0.0] * 3), std=dict(rgb=[1.0], depth=[1.0] * 3), bgr_to_rgb=[])
    with pytest.raises(ValueError, match="mean.rgb lists 1 channels"):  # the sum is right: 1 + 3
        build(data_preprocessor={**preprocessor, **swapped})


def test_parts_that_do_not_fuse_are_refused_when_built():
    with pytest.raises(ValueError, match="model.neck is FPN"):
        build(neck=dict(type="FPN", in_channels=[8, 16, 32, 64], out_channels=8, num_outs=4))
    with pytest.raises(ValueError, match="model.neck is None"):
        build(neck=None)
    with pytest.raises(ValueError, match="use MultimodalBackbone"):
        build(backbone=dict(type="ResNet", depth=18, in_channels=4, base_channels=8))


def test_a_stock_neck_is_refused_with_advice(frames):
    class Stock(torch.nn.Module):
        def forward(self, feats, available=None):
            return tuple(feats["rgb"])

    model = build()
    model.neck = Stock()
    with pytest.raises(ValueError, match="fusion necks"):
        losses_of(model, batch(frames))


@pytest.mark.parametrize("neck", ["SumFusion", "ConcatFusion", "MLPFusion", "GatedFusion", "FiLMFusion",
                                  "CrossAttentionFusion"])
def test_every_baseline_trains(frames, neck):
    cfg = model_cfg()["neck"]
    cfg.pop("width")
    model = build(neck={**cfg, "type": neck, "norm": "layer"})
    total, _ = model.parse_losses(losses_of(model, batch(frames)))
    total.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_predictions_reconstruct_nothing(frames):
    model, made, data = build(), [], batch(frames)
    for level in model.neck.levels:
        level.P_recon["rgb"].register_forward_hook(lambda *_: made.append(1))
    logits_of(model, data)
    model(**model.data_preprocessor(data, False), mode="tensor")
    assert not made
    assert losses_of(model.train(), data)["fusion.loss_recon"] > 0 and made
    model.eval()
    fed = model.data_preprocessor(data, False)
    assert "fusion.loss_recon" in model.fusion_output(fed["inputs"], fed["data_samples"]).losses, "asked for by name"


STOCK = dict(type="SegDataPreProcessor", mean=[120.0] * 3, std=[60.0] * 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(pretrained="a.pth"), r"model\.pretrained is 'a\.pth'.*backbone\.backbones\.<modality>\.init_cfg"),
        (dict(data_preprocessor=STOCK), "lists 3 channels.*use MultimodalSegDataPreProcessor"),
        (dict(decode_head=[FCN, FCN], num_stages=2), r"model\.decode_head is a cascade of 2 heads"),
        (dict(decode_head=dict(type="OCRHead", in_channels=64, in_index=3, channels=8, ocr_channels=8, num_classes=3)),
         r"model\.decode_head is a OCRHead, a stage of a cascade"),
        (dict(test_cfg=None), r"model\.test_cfg is missing"),
        (dict(test_cfg=dict(mode="slide", crop_size=SIZE)), "mode='slide' and no stride"),
        (dict(decode_head={**HEAD, "in_channels": [8, 16, 32, 128]}), r"decode_head\.in_channels is .*128"),
        (dict(decode_head={**FCN, "in_index": 4}), r"decode_head\.in_index is 4, model\.neck gives 4 levels"),
        (dict(decode_head={**FCN, "in_channels": [8, 16], "in_index": [0, 2], "input_transform": "resize_concat"}),
         r"decode_head\.in_channels is 24, model\.neck gives \[8, 32\]"),
        (dict(auxiliary_head=[FCN, {**FCN, "in_channels": 8}]), r"auxiliary_head\[1\]\.in_channels is 8"),
        (dict(modality_heads=dict(rgb={**FCN, "in_index": 2})), r"modality_heads\.rgb\.in_channels is 64, the 'rgb'"),
        (dict(decode_head={**HEAD, "loss_decode": dict(type="CrossEntropyLoss", loss_name="ce")}),
         r"decode_head\.loss_decode\.loss_name is 'ce'.*call it 'loss_ce'"),
        (dict(neck=dict(type="SumFusion", modalities=["rgb", "depth"], in_channels=dict(rgb=64, depth=64))),
         "a width per level"),
    ],
)
def test_half_converted_configs_name_the_key(options, words):
    with pytest.raises(ValueError, match=words):
        build(**options)


def test_heads_that_fit_are_taken():
    concat = {**FCN, "in_channels": [8, 16], "in_index": [0, 1], "input_transform": "resize_concat"}
    build(decode_head=concat, auxiliary_head=[{**FCN, "in_index": -1}], modality_heads=dict(rgb=FCN), pretrained=None)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_head_of_another_number_of_classes_is_named(frames, classes):
    """Too few end in an index error, too many in classes that nothing trains."""
    model = build(decode_head={**HEAD, "num_classes": classes})
    with pytest.raises(ValueError, match=rf"model\.decode_head\.num_classes is {classes}.*names \[3\]"):
        losses_of(model, batch(frames))
