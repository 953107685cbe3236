"""Running means by noise level, made monotone."""
from __future__ import annotations

import pytest
import torch

from mmfusion_plugin.fusion.level_curve import LevelMeans, isotonic

AB = ("a", "b")


def pooled(values, weights):
    """Pool adjacent violators, the textbook's way."""
    blocks = []
    for value, weight in zip(values, weights):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            value, weight, number = blocks.pop()
            before = blocks[-1]
            total = before[1] + weight
            blocks[-1] = [(before[0] * before[1] + value * weight) / total, total, before[2] + number]
    return [value for value, _, number in blocks for _ in range(number)]


def test_isotonic_is_pool_adjacent_violators():
    value, weight = torch.randn(5, 12, dtype=torch.float64), torch.rand(5, 12, dtype=torch.float64) + 0.1
    expected = torch.tensor([pooled(v, w) for v, w in zip(value.tolist(), weight.tolist())], dtype=torch.float64)
    torch.testing.assert_close(isotonic(value, weight), expected)


def test_what_was_never_seen_follows_its_neighbours():
    value = torch.tensor([[9.0, 1.0, torch.nan, 3.0, 9.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    weight = torch.tensor([[0.0, 1.0, 0.0, 2.0, 0.0], [0.0] * 5])
    found = isotonic(value, weight)
    assert found[0, 0] == found[0, 1] == 1 and found[0, 3] == found[0, 4] == 3 and 1 <= found[0, 2] <= 3
    assert found[1].isnan().all()


def test_means_by_level_are_kept_read_and_saved():
    means = LevelMeans(AB, span=10.0, bins=11, falling=True)
    level = torch.arange(11.0).repeat(20)
    here = dict(a=torch.ones(220).bool(), b=torch.zeros(220).bool())
    noise = torch.randn(220) * 0.01
    for _ in range(3):
        means.update(dict(a=1 - level / 20 + noise, b=level), dict.fromkeys(AB, level), here)
    found = means(dict.fromkeys(AB, torch.tensor([0.0, 2.5, 10.0, 50.0])))
    torch.testing.assert_close(found["a"], torch.tensor([1.0, 0.875, 0.5, 0.5]), atol=0.01, rtol=0)
    assert found["b"].isnan().all()
    again = LevelMeans(AB, span=10.0, bins=11, falling=True)
    again.load_state_dict(means.state_dict())
    assert torch.equal(again.curve()[0], means.curve()[0])


def test_old_batches_are_forgotten_and_nan_does_not_count():
    means = LevelMeans(AB, span=4.0, bins=3, momentum=0.5)
    here = dict.fromkeys(AB, torch.tensor([True, True]))
    level = dict.fromkeys(AB, torch.tensor([0.0, 4.0]))
    means.update(dict.fromkeys(AB, torch.tensor([0.0, 9.0])), level, here)
    means.update(dict.fromkeys(AB, torch.tensor([3.0, torch.nan])), level, here)
    torch.testing.assert_close(means(level)["a"], torch.tensor([3 / 1.5, 9.0]))
    assert means.count_MN[0].tolist() == [1.5, 0.0, 1.0], "what nothing came for is kept"


@pytest.mark.parametrize("options", [dict(span=0.0), dict(span=1.0, bins=1), dict(span=1.0, momentum=0.0)])
def test_wrong_options_are_named(options):
    with pytest.raises(ValueError, match="span|bins|momentum"):
        LevelMeans(AB, **options)
