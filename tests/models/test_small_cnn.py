from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS

from mmfusion_plugin.models.small_cnn import SmallCNN


def build(**options):
    torch.manual_seed(0)
    return MODELS.build(dict(type="SmallCNN", **options))


def test_a_stage_is_two_convolutions_each_normalised_and_rectified():
    cnn = build(in_channels=2, channels=[4], strides=[2])
    x = y = torch.randn(3, 2, 8, 8)
    for layer, stride in ((0, 2), (3, 1)):
        y = F.conv2d(y, cnn.stages[0][layer].weight, stride=stride, padding=1)
        y = ((y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), False, keepdim=True) + 1e-5).sqrt()).clamp(min=0)
    torch.testing.assert_close(cnn(x)[0], y)


@pytest.mark.parametrize(("channels", "size"), [(3, (48, 48)), (1, (129, 62))])
def test_frames_and_spectrograms(channels, size):
    maps = build(in_channels=channels)(torch.randn(2, channels, *size))
    assert [x.shape for x in maps] == [(2, 128, -(-size[0] // 8), -(-size[1] // 8))]


def test_a_stride_for_frequency_and_one_for_time():
    cnn = build(in_channels=1, channels=[4, 6], strides=[[2, 1], [2, 2]], out_indices=[0, 1])
    assert [tuple(x.shape[1:]) for x in cnn(torch.randn(1, 1, 16, 16))] == [(4, 8, 16), (6, 4, 8)]


def test_the_stated_number_of_parameters():
    counted = sum(p.numel() for p in SmallCNN().parameters())
    widths = [(3, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
    assert counted == sum(9 * C_in * C + 2 * C for C_in, C in widths)
    assert round(counted / 1e6, 2) == 0.29


def test_convolutions_are_initialised_for_relu():
    cnn = build()
    cnn.init_weights()
    weight = cnn.stages[2][3].weight
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(channels=[]), "one value per stage"),
        (dict(channels=[8, 8], strides=[2]), "one value per stage"),
        (dict(out_indices=[3]), r"out_indices is \[3\]"),
        (dict(out_indices=[]), "out_indices"),
    ])
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        build(**options)
