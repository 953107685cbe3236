from __future__ import annotations

import numpy as np
import pytest
import torch
from fusion.cases import features
from without import python

from mmfusion_plugin.fusion import layers
from mmfusion_plugin.fusion.contract import channel_axis
from mmfusion_plugin.fusion.layers import (
    ChannelLinear,
    ChannelNorm,
    InputNorm,
    SwiGLU,
    channels_last,
    make_norm,
)

RANKS = ["vector", "sequence", "map", "clip"]


def one(rank):
    return features(dict(x=6), rank=rank, dtype=torch.float64)["x"]


@pytest.mark.parametrize("rank", RANKS)
def test_linear_acts_on_channels_at_each_position(rank):
    x, layer = one(rank), ChannelLinear(6, 4).double()
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    rows = np.moveaxis(x.detach().numpy(), channel_axis(x), -1)
    expected = np.moveaxis(np.einsum("...i,oi->...o", rows, weight) + bias, -1, channel_axis(x))
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("rank", RANKS)
def test_norm_centres_and_scales_the_channels_of_each_position(rank):
    x, layer = one(rank), ChannelNorm(6).double()
    rows = np.moveaxis(x.detach().numpy(), channel_axis(x), -1)
    expected = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + layer.eps)
    np.testing.assert_allclose(layer(x).movedim(channel_axis(x), -1).detach().numpy(), expected, rtol=1e-8)


def test_swiglu_by_hand():
    layer = SwiGLU(6).double()
    x = one("vector")
    W = {k: (m.weight.detach().numpy(), m.bias.detach().numpy()) for k, m in layer.named_children()}
    rows = x.detach().numpy()
    gate = rows @ W["gate"][0].T + W["gate"][1]
    up = rows @ W["up"][0].T + W["up"][1]
    expected = (gate / (1 + np.exp(-gate)) * up) @ W["down"][0].T + W["down"][1]
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-10)
    assert W["gate"][0].shape == (16, 6)  # floor(8 * 6 / 3)


def test_one_state_dict_serves_every_rank():
    layer = ChannelLinear(6, 4).double()
    x = one("map")
    flat = x.flatten(2).mT
    torch.testing.assert_close(layer(x).flatten(2).mT, layer(flat))


def test_maps_stay_channels_last():
    x = channels_last(torch.randn(2, 6, 3, 4))
    for layer in (ChannelLinear(6, 4), ChannelNorm(6), SwiGLU(6)):
        assert layer(x).is_contiguous(memory_format=torch.channels_last), layer


def test_input_norm_leaves_what_stands_in_for_a_missing_sample():
    norm = InputNorm(dict(a=3, b=2), "layer")
    torch.nn.init.constant_(norm.norm["a"].bias, 5.0)
    feats = dict(a=torch.zeros(2, 3), b=torch.randn(2, 2))
    out = norm(feats, dict(a=torch.tensor([True, False]), b=torch.tensor([True, True])))
    assert torch.equal(out["a"], torch.tensor([[5.0, 5, 5], [0, 0, 0]]))


def test_unknown_norm():
    with pytest.raises(ValueError, match="norm must be 'layer' or None"):
        make_norm("batch", 3)


@pytest.mark.parametrize("shape", [(2, 6, 3, 4), (2, 6, 2, 3, 4)])
def test_a_map_as_a_linear_is_the_convolution(shape, monkeypatch):
    """What a GPU does where it pays."""
    monkeypatch.setattr(layers, "ONEDNN", None)
    layer, found = ChannelLinear(6, 5), {}
    for serves in (False, True):
        monkeypatch.setattr(layers, "_linear_serves", lambda x, serves=serves: serves)
        x = layers.channels_last(torch.arange(torch.Size(shape).numel()).view(shape).sin()).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        found[serves] = y.detach(), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()
        layer.zero_grad()
    torch.testing.assert_close(found[True], found[False])
    assert layers.channels_last(y).data_ptr() == y.data_ptr(), "the next layer needs no copy"


SWITCHES = """
import types, torch
from mmfusion_plugin.fusion import layers

layers.plain_eager = lambda x: True
x, found = types.SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32), []
def look(): found.append(layers._linear_serves(x))
look()                                              # torch's own: convolutions alone use TF32
torch.backends.cudnn.allow_tf32 = False; look()     # neither
torch.backends.cuda.matmul.allow_tf32 = True; look()
torch.backends.cudnn.allow_tf32 = True; look()      # both
torch.backends.cuda.matmul.allow_tf32 = False; look()
x.dtype = torch.float64; look()
x.dtype = torch.float32
torch.set_autocast_enabled("cuda", True); look()
torch.set_autocast_enabled("cuda", False)
if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    torch.backends.cuda.matmul.fp32_precision = "tf32"; look()
    torch.backends.cudnn.conv.fp32_precision = "ieee"; look()
x.device = torch.device("cpu"); look()
print(*map(int, found))
"""


def test_a_gpu_gets_a_linear_unless_that_loses_tf32(tmp_path):
    run = python(tmp_path, "-W", "ignore", "-c", SWITCHES, without=["mmseg", "mmaction", "mmengine"])
    newer = hasattr(torch.backends.cuda.matmul, "fp32_precision")
    assert run.stdout.split() == list("0111011" + "11" * newer + "0"), run.stderr[-2000:]
