from __future__ import annotations

import re

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmfusion_plugin.models.backbone import adapt_first_convolution, load_pretrained

pytest.importorskip("mmseg")
SMALL = dict(type="mmseg.ResNet", depth=18, base_channels=4, num_stages=4, out_indices=(0, 1, 2, 3))


def build(**cfg):
    base = dict(type="MultimodalBackbone", modalities=["rgb", "depth"], in_channels=dict(rgb=3, depth=1),
                backbones=dict(rgb=dict(SMALL), depth=dict(SMALL)))
    return MODELS.build({**base, **cfg})


def test_stacked_channels_reach_their_own_encoder():
    backbone = build().eval()
    x = torch.randn(2, 4, 32, 32)
    feats = backbone(x)
    alone = backbone.encoders["depth"](x[:, 3:])
    assert list(feats) == ["rgb", "depth"]
    for got, expected in zip(feats["depth"], alone):
        assert torch.equal(got, expected)


def test_a_dict_of_inputs_is_taken_as_it_is():
    backbone = build().eval()
    x = torch.randn(2, 4, 32, 32)
    got = backbone(dict(depth=x[:, 3:], rgb=x[:, :3]))
    assert all(torch.equal(a, b) for m in got for a, b in zip(got[m], backbone(x)[m]))


def test_a_transformer_and_a_cnn_side_by_side():
    mit = dict(type="mmseg.MixVisionTransformer", embed_dims=8, num_heads=[1, 1, 1, 1], num_layers=[1, 1, 1, 1])
    feats = build(backbones=dict(rgb=mit, depth=dict(SMALL)))(torch.randn(2, 4, 64, 64))
    assert [x.shape[1] for x in feats["rgb"]] == [8, 8, 8, 8]
    assert [x.shape[1] for x in feats["depth"]] == [4, 8, 16, 32]


@pytest.mark.parametrize("wrapped", [False, True])
def test_pretrained_rgb_weights_are_averaged_for_one_channel(tmp_path, wrapped):
    torch.manual_seed(1)
    source = MODELS.build({**SMALL, "in_channels": 3})
    state = source.state_dict()
    prefix = "backbone." if wrapped else ""
    path = tmp_path / "rgb.pth"
    torch.save({"state_dict": {f"{prefix}{k}": v for k, v in state.items()}}, path)
    init = dict(type="Pretrained", checkpoint=str(path))
    backbone = build(backbones=dict(rgb={**SMALL, "init_cfg": init}, depth={**SMALL, "init_cfg": init}))
    backbone.init_weights()
    assert torch.equal(backbone.encoders["rgb"].conv1.weight, state["conv1.weight"])
    expected = state["conv1.weight"].mean(1, keepdim=True)
    torch.testing.assert_close(backbone.encoders["depth"].conv1.weight, expected)
    assert torch.equal(backbone.encoders["depth"].layer1[0].conv1.weight, state["layer1.0.conv1.weight"])


def test_a_checkpoint_of_distributed_training_loads_too(tmp_path):
    state = MODELS.build({**SMALL, "in_channels": 3}).state_dict()
    init = save(tmp_path / "model.pth", {f"module.backbone.{k}": v for k, v in state.items()})
    backbone = build(backbones=dict(rgb={**SMALL, "init_cfg": init}, depth=dict(SMALL)))
    backbone.init_weights()
    assert torch.equal(backbone.encoders["rgb"].conv1.weight, state["conv1.weight"])


def test_a_checkpoint_that_fits_nothing_is_an_error(tmp_path):
    torch.save({"state_dict": {"head.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "other.pth"))
    backbone = build(backbones=dict(rgb={**SMALL, "init_cfg": init}, depth=dict(SMALL)))
    with pytest.raises(ValueError, match="no weight of .*fits the 'rgb' encoder"):
        backbone.init_weights()


def test_only_the_input_channels_of_a_kernel_are_adapted():
    kernel = torch.randn(8, 3, 7, 7)
    adapted = adapt_first_convolution(kernel, torch.zeros(8, 2, 7, 7))
    torch.testing.assert_close(adapted[:, 1], kernel.mean(1))
    assert adapt_first_convolution(kernel, torch.zeros(9, 2, 7, 7)) is kernel


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        (dict(in_channels=dict(rgb=3)), "backbone.in_channels names"),
        (dict(backbones=dict(rgb=dict(SMALL))), "backbone.backbones names"),
        (dict(init_cfg=dict(type="Pretrained", checkpoint="a.pth")), r"set backbone\.backbones\.<modality>\.init_cfg"),
        (dict(backbones=dict(rgb=dict(SMALL), depth={**SMALL, "in_channels": 3})), "depth.in_channels is 3"),
    ],
)
def test_wrong_configs_name_the_key(cfg, words):
    with pytest.raises(ValueError, match=words):
        build(**cfg)


def test_a_wrong_number_of_channels_is_named():
    with pytest.raises(ValueError, match="the stacked input has 3 channels"):
        build()(torch.randn(2, 3, 32, 32))


def save(path, state):
    torch.save({"state_dict": state}, path)
    return dict(type="Pretrained", checkpoint=str(path))


@pytest.mark.parametrize("how", ["list", "pretrained"])
def test_every_way_to_name_a_checkpoint_adapts_it(tmp_path, how):
    state = MODELS.build({**SMALL, "in_channels": 3}).state_dict()
    init = save(tmp_path / "rgb.pth", state)
    extra = dict(init_cfg=[init]) if how == "list" else dict(pretrained=init["checkpoint"])
    backbone = build(backbones=dict(rgb=dict(SMALL), depth={**SMALL, **extra}))
    backbone.init_weights()
    torch.testing.assert_close(backbone.encoders["depth"].conv1.weight, state["conv1.weight"].mean(1, keepdim=True))


def test_the_log_names_what_was_not_loaded(tmp_path, monkeypatch):
    state = MODELS.build({**SMALL, "in_channels": 3}).state_dict()
    del state["bn1.weight"]
    state["fc.weight"] = torch.zeros(2)
    state["layer1.0.conv1.weight"] = torch.zeros(9, 9, 3, 3)
    said = []
    monkeypatch.setattr("mmfusion_plugin.models.backbone.print_log", lambda text, **_: said.append(text))
    build(backbones=dict(rgb=dict(SMALL), depth={**SMALL, "init_cfg": save(tmp_path / "a.pth", state)})).init_weights()
    assert "conv1.weight averaged over its input channels" in said[0]
    assert "of another shape: layer1.0.conv1.weight" in said[0]
    assert "missing in the file: bn1.weight" in said[0]
    assert "unexpected in the file: fc.weight" in said[0]


def test_only_the_first_convolution_is_averaged(tmp_path):
    encoder = MODELS.build({**SMALL, "in_channels": 3})
    state = encoder.state_dict()
    inner = "layer2.0.conv1.weight"
    state[inner] = state[inner].repeat(1, 2, 1, 1)  # another network's: twice the input channels
    backbone = build(backbones=dict(rgb={**SMALL, "init_cfg": save(tmp_path / "a.pth", state)}, depth=dict(SMALL)))
    before = backbone.encoders["rgb"].state_dict()[inner].clone()
    load_pretrained(backbone.encoders["rgb"], str(tmp_path / "a.pth"), "", "rgb")
    assert torch.equal(backbone.encoders["rgb"].state_dict()[inner], before)


def test_a_prefix_picks_one_encoder_of_a_whole_model(tmp_path):
    state = MODELS.build({**SMALL, "in_channels": 1}).state_dict()
    init = save(tmp_path / "model.pth", {f"backbone.encoders.depth.{k}": v for k, v in state.items()})
    cfg = dict(rgb=dict(SMALL), depth={**SMALL, "init_cfg": {**init, "prefix": "backbone.encoders.depth"}})
    backbone = build(backbones=cfg)
    backbone.init_weights()
    assert torch.equal(backbone.encoders["depth"].conv1.weight, state["conv1.weight"])
    cfg["depth"]["init_cfg"]["prefix"] = "elsewhere"
    with pytest.raises(ValueError, match="init_cfg.prefix is 'elsewhere'"):
        build(backbones=cfg).init_weights()


def test_freezing_stays_the_encoders_own():
    backbone = build(backbones=dict(rgb={**SMALL, "frozen_stages": 1}, depth=dict(SMALL))).train()
    assert not backbone.encoders["rgb"].conv1.weight.requires_grad
    assert backbone.encoders["depth"].conv1.weight.requires_grad


def test_a_resnet_v1c_and_a_single_modality_run():
    v1c = {**SMALL, "type": "mmseg.ResNetV1c"}
    assert build(backbones=dict(rgb=v1c, depth=v1c))(torch.randn(2, 4, 32, 32))["depth"][3].shape == (2, 32, 1, 1)
    one = build(modalities=["rgb"], in_channels=dict(rgb=3), backbones=dict(rgb=dict(SMALL)))
    assert list(one(torch.randn(2, 3, 32, 32))) == ["rgb"]


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        (dict(modalities="rgb"), "modalities must be a list"),
        (dict(modalities=["rgb", "rgb", "depth"]), "a name twice"),
        (dict(in_channels=dict(rgb=3, depth=0)), "backbone.in_channels.depth must be a positive integer"),
        (dict(backbones=[dict(SMALL)] * 2), "backbone.backbones must be a dict"),
        (dict(backbones=dict(rgb={**SMALL, "pretrained": "a.pth", "init_cfg": dict(type="Pretrained",
                                  checkpoint="b.pth")}, depth=dict(SMALL))), "names 2 checkpoints"),
    ],
)
def test_more_wrong_configs_name_the_key(cfg, words):
    with pytest.raises(ValueError, match=words):
        build(**cfg)


def test_the_encoders_own_initialisation_runs():
    backbone = build()
    backbone.init_weights()
    weight = backbone.encoders["depth"].layer4[1].conv2.weight
    # ResNet's own is He's normal over the outgoing connections; torch's default has a sixth of its variance
    assert abs(weight.std() - (2 / (weight.shape[0] * 9)) ** 0.5) < 0.1 * weight.std()


def mmaction_backbone(**encoders):
    pytest.importorskip("mmaction")
    return MODELS.build(dict(type="MultimodalBackbone", modalities=["visual", "audio"],
                             in_channels=dict(visual=3, audio=1), backbones=encoders))


STAGE = dict(depth=18, num_stages=1, dilations=(1,), out_indices=(0,))


def save_as_torchvision(path):
    """torchvision calls mmaction2's conv1.conv.weight conv1.weight, and conv1.bn.weight bn1.weight."""
    encoder = dict(type="mmaction.ResNet", strides=(1,), **STAGE)
    source = mmaction_backbone(visual=encoder, audio=encoder).encoders["visual"].state_dict()
    torch.save({re.sub(r"conv(\d)\.bn", r"bn\1", name.replace(".conv.", ".")): v for name, v in source.items()}, path)
    return source


@pytest.mark.parametrize("kind", ["mmaction.ResNet", "ResNet"])
def test_mmaction_resnets_load_torchvision_weights_themselves_and_the_first_kernel_is_averaged(tmp_path, kind):
    source = save_as_torchvision(tmp_path / "r.pth")
    encoder = dict(type=kind, strides=(1,), pretrained=str(tmp_path / "r.pth"), **STAGE)
    with DefaultScope.overwrite_default_scope("mmaction"):
        backbone = mmaction_backbone(visual=dict(encoder), audio=dict(encoder))
    backbone.init_weights()
    assert all(torch.equal(v, source[name]) for name, v in backbone.encoders["visual"].state_dict().items())
    audio = backbone.encoders["audio"].state_dict()
    torch.testing.assert_close(audio.pop("conv1.conv.weight"), source["conv1.conv.weight"].mean(1, keepdim=True))
    assert all(torch.equal(v, source[name]) for name, v in audio.items())


@pytest.mark.parametrize(("kind", "times"), [("mmaction.ResNet3dSlowOnly", 1), ("ResNet3dSlowOnly", 3)])
def test_an_encoder_is_known_by_its_base_classes_too(tmp_path, kind, times):
    """Its own constructor names neither in_channels nor pretrained2d."""
    source = save_as_torchvision(tmp_path / "r.pth")
    encoder = dict(type=kind, spatial_strides=(1,), temporal_strides=(1,), inflate=(0,), lateral=False,
                   conv1_kernel=(times, 7, 7), pretrained=str(tmp_path / "r.pth"), **STAGE)
    with DefaultScope.overwrite_default_scope("mmaction"):
        backbone = mmaction_backbone(visual=dict(encoder), audio=dict(encoder))
    backbone.init_weights()
    kernel = {m: backbone.encoders[m].conv1.conv.weight.sum(2) for m in ("visual", "audio")}  # a still picture's
    torch.testing.assert_close(kernel["visual"], source["conv1.conv.weight"])
    torch.testing.assert_close(kernel["audio"], source["conv1.conv.weight"].mean(1, keepdim=True))


@pytest.mark.parametrize("scope", ["mmseg", "mmaction"])
def test_an_encoder_without_in_channels_is_built_under_either_scope(scope):
    pytest.importorskip("mmaction")
    small = dict(type="MobileNetV2", widen_factor=0.25)
    with DefaultScope.overwrite_default_scope(scope):
        build(in_channels=dict(rgb=3, depth=3), backbones=dict(rgb=small, depth=small))


@pytest.mark.parametrize(
    ("cfg", "change", "table"),
    [
        (dict(type="mmseg.SwinTransformer", embed_dims=12, depths=(1,) * 4, num_heads=(1, 2, 3, 6)),
         [dict(window_size=7), dict(window_size=12)], "stages.0.blocks.0.attn.w_msa.relative_position_bias_table"),
        (dict(type="mmseg.VisionTransformer", patch_size=16, embed_dims=12, num_layers=1, num_heads=1),
         [dict(img_size=(32, 32)), dict(img_size=(64, 64))], "pos_embed"),
    ],
)
def test_tables_of_positions_are_resized_as_by_the_encoder_alone(tmp_path, cfg, change, table):
    source = MODELS.build({**cfg, **change[0]})
    source.init_weights()
    state = {name: torch.randn_like(v) for name, v in source.state_dict().items() if v.is_floating_point()}
    other = {**cfg, **change[1], "init_cfg": save(tmp_path / "a.pth", state)}
    alone = MODELS.build(other)
    alone.init_weights()
    backbone = build(backbones=dict(rgb=other, depth=other))
    backbone.init_weights()
    expected = alone.state_dict()
    assert expected[table].shape != state[table].shape
    for name, v in backbone.encoders["rgb"].state_dict().items():
        assert torch.equal(v, expected[name]), name
    assert torch.equal(backbone.encoders["depth"].state_dict()[table], expected[table])


def test_an_encoder_that_ignores_in_channels_is_named():
    mscan = dict(type="mmseg.MSCAN", embed_dims=[8] * 4, depths=[1] * 4, mlp_ratios=[2] * 4, norm_cfg=dict(type="BN"))
    with pytest.raises(ValueError, match="in_channels.depth is 1, the first convolution of MSCAN reads 3"):
        build(backbones=dict(rgb=mscan, depth=mscan))


def test_an_encoder_without_in_channels_is_built_and_its_own_number_is_checked():
    sound = dict(type="mmaction.ResNet", depth=18, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    small = dict(type="mmaction.MobileNetV2", widen_factor=0.25)
    feats = mmaction_backbone(visual=small, audio=sound).eval()(
        dict(visual=torch.randn(2, 3, 32, 32), audio=torch.randn(2, 1, 32, 32)))
    assert feats["visual"][-1].shape[:2] == (2, 1280)
    with pytest.raises(ValueError, match="in_channels.visual is 4, the first convolution of MobileNetV2 reads 3"):
        MODELS.build(dict(type="MultimodalBackbone", modalities=["visual", "audio"],
                          in_channels=dict(visual=4, audio=1), backbones=dict(visual=small, audio=sound)))
