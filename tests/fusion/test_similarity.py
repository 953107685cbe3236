"""The cosine against torch's own: values, gradients, second derivatives, vectors without a direction."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmfusion_plugin.fusion.similarity import SILENT, cosine


def pair(shape=(3, 5, 4, 2)):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in "ab"]


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("known", [False, True])
def test_value_and_gradients_are_those_of_torch(axis, known):
    a, b = pair()
    size = a.norm(dim=axis, keepdim=True) if known else None
    found, expected = cosine(a, b, axis, size), F.cosine_similarity(a, b, axis, eps=SILENT)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    torch.testing.assert_close(torch.autograd.grad((found * weight).sum(), (a, b)),
                               torch.autograd.grad((expected * weight).sum(), (a, b)))


def test_first_and_second_derivatives_by_differences():
    inputs = [x.detach()[:, :, 0, 0].requires_grad_() for x in pair()]
    assert torch.autograd.gradcheck(lambda a, b: cosine(a, b, 1), inputs)
    assert torch.autograd.gradgradcheck(lambda a, b: cosine(a, b, 1), inputs)


def test_what_has_no_direction_is_0_and_its_gradient_bounded():
    a, b = torch.ones(2, 3), torch.zeros(2, 3, requires_grad=True)
    similarity = cosine(a, b, 1)
    assert similarity.tolist() == [0, 0]
    of_b, = torch.autograd.grad(similarity.sum(), b)
    torch.testing.assert_close(of_b, a / (3**0.5 * SILENT))
    a, b = pair((4, 3))
    faint = (b.detach() * SILENT / 10).requires_grad_()
    of_faint, = torch.autograd.grad(cosine(a, faint, 1).sum(), faint)
    torch.testing.assert_close(of_faint, F.normalize(a, dim=1) / SILENT, msg="a clamped norm is a constant")


def test_only_asked_for_gradients_are_made():
    a, b = pair()
    cosine(a.detach(), b, 1).sum().backward()
    assert a.grad is None and b.grad is not None


def test_counters_and_transforms_see_the_same():
    a, b = (x.detach() for x in pair((4, 6)))
    with FlopCounterMode(display=False):
        counted = cosine(a, b, 1)
    mapped = torch.func.vmap(lambda x, y: cosine(x[None], y[None], 1)[0])(a, b)
    gradient = torch.func.grad(lambda y: cosine(a, y, 1).sum())(b)
    b.requires_grad_()
    found = cosine(a, b, 1)
    torch.testing.assert_close(counted, found.detach())
    torch.testing.assert_close(mapped, found.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(found.sum(), b)[0])
