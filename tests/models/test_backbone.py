from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS

from mmfusion_plugin.models.backbone import adapt_first_convolution

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
        (dict(backbones=dict(rgb=dict(SMALL), depth={**SMALL, "in_channels": 3})), "depth.in_channels is 3"),
    ],
)
def test_wrong_configs_name_the_key(cfg, words):
    with pytest.raises(ValueError, match=words):
        build(**cfg)


def test_a_wrong_number_of_channels_is_named():
    with pytest.raises(ValueError, match="the stacked input has 3 channels"):
        build()(torch.randn(2, 3, 32, 32))
