from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmfusion_plugin.models import count_costs, measure_costs
from mmfusion_plugin.models.measuring import PeakMemory


class Encoder(nn.Module):
    """A 3x3 convolution, C -> 4 channels, same size."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 3, padding=1)

    def forward(self, x):
        return (self.conv(x),)


class Model(nn.Module):
    """Two encoders, concatenation, one linear head that is called as EncoderDecoder calls its own."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = MODELS.build(
            dict(type="MultimodalBackbone", modalities=["rgb", "depth"], in_channels=dict(rgb=3, depth=1),
                 backbones={m: dict(type="CostTestEncoder") for m in ("rgb", "depth")}))
        self.neck = MODELS.build(
            dict(type="ConcatFusion", modalities=["rgb", "depth"], in_channels=dict(rgb=[4], depth=[4]),
                 out_channels=[6]))
        self.decode_head = nn.Linear(6, 5)
        self.auxiliary_head = nn.Linear(6, 7)

    def forward(self, inputs):
        return self.decode_head.forward(self.neck(self.backbone(inputs)).fused[0].mean((2, 3)))


@pytest.fixture
def model():
    MODELS.register_module(name="CostTestEncoder", module=Encoder, force=True)
    yield Model()
    MODELS.module_dict.pop("CostTestEncoder")


def test_a_convolution_and_a_linear_cost_what_their_formulas_say(model):
    costs = count_costs(model, torch.randn(1, 4, 8, 10))
    # a 3x3 convolution: H W x out x (in x 9); a linear: in x out
    assert costs["encoders.rgb"] == dict(parameters=4 * 27 + 4, multiply_adds=80 * 4 * 27)
    assert costs["encoders.depth"] == dict(parameters=4 * 9 + 4, multiply_adds=80 * 4 * 9)
    assert costs["head"] == dict(parameters=6 * 5 + 5, multiply_adds=6 * 5)
    assert costs["neck"]["multiply_adds"] == 80 * 8 * 6
    assert costs["auxiliary"] == dict(parameters=6 * 7 + 7, multiply_adds=0)


def test_the_total_is_the_sum_of_what_runs_in_inference(model):
    costs = count_costs(model, torch.randn(2, 4, 8, 10))
    for key in ("parameters", "multiply_adds"):
        assert costs["total"][key] == sum(costs[p][key] for p in ("encoders.rgb", "encoders.depth", "neck", "head"))


def test_a_dict_of_inputs_may_give_each_modality_its_own_size():
    pytest.importorskip("mmseg")
    backbone = MODELS.build(
        dict(type="MultimodalBackbone", modalities=["rgb", "depth"], in_channels=dict(rgb=3, depth=1),
             backbones={m: dict(type="mmseg.ResNet", depth=18, base_channels=4) for m in ("rgb", "depth")})
    )
    x = torch.randn(1, 3, 64, 64)
    equal = count_costs(backbone, dict(rgb=x, depth=x[:, :1]))
    smaller = count_costs(backbone, dict(rgb=x, depth=x[:, :1, :32, :32]))
    assert smaller["encoders.rgb"] == equal["encoders.rgb"]
    assert smaller["encoders.depth"]["multiply_adds"] == equal["encoders.depth"]["multiply_adds"] // 4


def test_counting_leaves_the_model_as_it_was(model):
    model.train()
    model.backbone.encoders["rgb"].eval()  # as a frozen encoder is
    hooks = [len(m._forward_hooks) for m in model.modules()]
    count_costs(model, torch.randn(1, 4, 8, 10))
    assert model.training
    assert not model.backbone.encoders["rgb"].training
    assert [len(m._forward_hooks) for m in model.modules()] == hooks


def test_a_model_without_encoders_by_modality_is_refused():
    with pytest.raises(ValueError, match="MultimodalBackbone"):
        count_costs(nn.Linear(2, 2), torch.zeros(1, 2))


def test_memory_is_what_tensors_hold_at_once():
    with PeakMemory() as memory:
        a = torch.ones(1000)  # 4 kB
        b = a + 1
        b.add_(1)
        view = b.view(10, 100)
        assert memory.held == 8000
        del a
        c = view * 2
        assert memory.held == 8000 and memory.peak == 8000
        del b, view
        assert memory.held == 4000
    assert c.numel() == 1000


def test_time_and_memory_come_beside_the_counts(model):
    x = torch.randn(1, 4, 8, 10)
    counted, measured = count_costs(model, x), measure_costs(model, x, repeats=3)
    assert set(measured) == set(counted) - {"auxiliary"}
    for name, cost in measured.items():
        assert {k: cost[k] for k in ("parameters", "multiply_adds")} == counted[name]
        assert 0 < cost["milliseconds"] <= measured["total"]["milliseconds"] * 1.5
    one = 4 * 8 * 10 * 4  # bytes of an encoder's output
    assert measured["encoders.rgb"]["peak_bytes"] == one and measured["encoders.depth"]["peak_bytes"] == 2 * one
    # both outputs, their concatenation and the neck's own six channels
    assert measured["neck"]["peak_bytes"] >= 4 * one + 6 * one // 4
    assert measured["total"]["peak_bytes"] == max(c["peak_bytes"] for c in measured.values())
    with pytest.raises(ValueError, match="repeats"):
        measure_costs(model, x, repeats=0)
