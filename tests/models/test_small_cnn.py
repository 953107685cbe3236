from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS

from mmfusion_plugin.models.small_cnn import SmallCNN


def build(**options):
    torch.manual_seed(0)
    return MODELS.build(dict(type="SmallCNN", **options))


def test_a_stage_convolves_normalises_rectifies_and_pools():
    cnn = build(in_channels=2, channels=[4], pools=[2])
    x = torch.randn(3, 2, 8, 8)
    y = F.conv2d(x, cnn.stages[0][0].weight, padding=1)
    y = ((y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), False, keepdim=True) + 1e-5).sqrt()).clamp(min=0)
    torch.testing.assert_close(cnn(x)[0], y.unflatten(3, (4, 2)).unflatten(2, (4, 2)).amax((3, 5)))


@pytest.mark.parametrize(("channels", "size"), [(3, (32, 32)), (1, (129, 62))])
def test_frames_and_spectrograms(channels, size):
    maps = build(in_channels=channels)(torch.randn(2, channels, *size))
    assert [x.shape for x in maps] == [(2, 64, size[0] // 16, size[1] // 16)]


def test_pooling_apart_for_frequency_and_time():
    cnn = build(in_channels=1, channels=[4, 6], pools=[[2, 1], [2, 2]], out_indices=[0, 1])
    assert [tuple(x.shape[1:]) for x in cnn(torch.randn(1, 1, 16, 16))] == [(4, 8, 16), (6, 4, 8)]


def test_the_stated_number_of_parameters():
    counted = sum(p.numel() for p in SmallCNN().parameters())
    widths = [(3, 16), (16, 32), (32, 64), (64, 64)]
    assert counted == sum(9 * C_in * C + 2 * C for C_in, C in widths)
    assert round(counted / 1e3) == 61


def test_convolutions_are_initialised_for_relu():
    cnn = build(channels=[16, 32, 128], pools=[2, 2, 2])
    cnn.init_weights()
    weight = cnn.stages[2][0].weight
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)


def test_an_input_that_is_pooled_away_is_named():
    with pytest.raises(ValueError, match=r"leave nothing of an input of \(8, 16\)"):
        build()(torch.randn(1, 3, 8, 16))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(channels=[]), "one value per stage"),
        (dict(channels=[8, 8], pools=[2]), "one value per stage"),
        (dict(out_indices=[4]), r"out_indices is \[4\]"),
        (dict(out_indices=[]), "out_indices"),
    ])
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        build(**options)
