"""Groups of equal options stepped as one: the same weights to the bit, and nobody else sees it."""
from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper, PolyLR, build_optim_wrapper
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mmfusion_plugin.engine import GuardedAmpOptimWrapper, GuardedOptimWrapper
from mmfusion_plugin.engine.one_group import OneGroup

OPTIMIZERS = {
    "AdamW": dict(type="AdamW"), "fused": dict(type="AdamW", fused=True), "foreach": dict(type="Adam", foreach=True),
    "list of betas": dict(type="AdamW", betas=[0.8, 0.9]), "SGD": dict(type="SGD", momentum=0.9)}
KINDS = ["OptimWrapper", "GuardedOptimWrapper", "GuardedAmpOptimWrapper"]


def case(kind: str, optimizer: dict, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    cfg = dict(type=kind, optimizer=dict(optimizer, lr=1e-2, weight_decay=0.1), paramwise_cfg=dict(
        norm_decay_mult=0.0, custom_keys={"4": dict(lr_mult=5.0)}), **options)
    return model, build_optim_wrapper(model, cfg)


def train(model, wrapper, steps: int = 4, scheduler=None) -> None:
    for i in range(steps):
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(i))
        with torch.autocast("cpu", enabled=False):
            wrapper.update_params(model(x).square().mean())
        if scheduler is not None:
            scheduler.step()


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_are_those_of_the_stock_wrapper(name, kind):
    found = []
    for one in (KINDS[0], kind):
        model, wrapper = case(one, OPTIMIZERS[name])
        scheduler = PolyLR(wrapper, power=0.9, by_epoch=False, begin=0, end=5)
        train(model, wrapper, scheduler=scheduler)
        found.append((model.state_dict(), wrapper.optimizer.state_dict(), scheduler.state_dict(), wrapper.get_lr()))
    weights, states, schedules, rates = zip(*found)
    assert all(torch.equal(x, weights[1][key]) for key, x in weights[0].items())
    assert states[0]["param_groups"] == states[1]["param_groups"] and len(states[0]["param_groups"]) == 10
    assert rates[0] == rates[1] and schedules[0]["base_values"] == schedules[1]["base_values"]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_clipping_adds_up_norms_in_the_stock_order(kind):
    found = []
    for one in (KINDS[0], kind):
        model, wrapper = case(one, OPTIMIZERS["AdamW"], clip_grad=dict(max_norm=0.05))
        train(model, wrapper, 20)
        found.append(model.state_dict())
    assert all(torch.equal(x, found[1][key]) for key, x in found[0].items())


@pytest.mark.parametrize("hook", ["register_step_pre_hook", "register_step_post_hook", "everywhere"])
def test_hooks_round_a_step_see_the_groups_and_may_write_into_them(hook):
    def halve(optimizer, args, kwargs):
        assert len(optimizer.param_groups) == 10
        for group in optimizer.param_groups:
            group["lr"] /= 2

    model, wrapper = case(KINDS[1], OPTIMIZERS["AdamW"])
    register = getattr(wrapper.optimizer, hook, register_optimizer_step_pre_hook)
    handle = register(halve)
    try:
        train(model, wrapper, 2)
    finally:
        handle.remove()
    assert wrapper.optimizer.param_groups[0]["lr"] == 0.0025


class Round(torch.optim.Optimizer):
    """An optimiser round another one, whose groups it shares."""

    def __init__(self, params, **options):
        self.inner = torch.optim.SGD(params, **options)
        super().__init__(self.inner.param_groups, self.inner.defaults)

    def step(self, closure=None):
        return self.inner.step(closure)


def test_an_optimiser_within_hears_of_the_schedule():
    model = nn.Linear(3, 1)
    optimizer = Round([ConfigDict(params=[p]) for p in model.parameters()], lr=0.1)
    wrapper = GuardedOptimWrapper(optimizer)
    train(model, wrapper, 2, PolyLR(wrapper, power=1.0, by_epoch=False, begin=0, end=4))
    assert [group["lr"] for group in optimizer.inner.param_groups] == pytest.approx([0.1 / 3] * 2)


def test_groups_are_as_many_as_differ(monkeypatch):
    model, wrapper = case(KINDS[1], OPTIMIZERS["AdamW"])
    numbers = []
    plain = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *given: (
        numbers.append([len(group["params"]) for group in self.param_groups]), plain(self, *given)))
    train(model, wrapper, 1)
    assert numbers == [[4, 4, 2]]  # weights and biases, norms, the last layer
    assert len(wrapper.optimizer.param_groups) == 10
    wrapper.optimizer.param_groups[0]["lr"] = 0.5
    train(model, wrapper, 1)
    assert numbers[1:] == [[1, 3, 4, 2]]


def test_a_stock_checkpoint_goes_on_and_back():
    expected, stock = case(KINDS[0], OPTIMIZERS["fused"])
    train(expected, stock)
    model, wrapper = case(KINDS[1], OPTIMIZERS["fused"])
    model.load_state_dict(copy.deepcopy(expected.state_dict()))
    wrapper.load_state_dict(copy.deepcopy(stock.state_dict()))
    train(model, wrapper)
    back, again = case(KINDS[0], OPTIMIZERS["fused"])
    back.load_state_dict(copy.deepcopy(model.state_dict()))
    again.load_state_dict(copy.deepcopy(wrapper.state_dict()))
    train(back, again)
    train(expected, stock, 4), train(expected, stock, 4)
    assert all(torch.equal(x, back.state_dict()[key]) for key, x in expected.state_dict().items())


def test_what_is_unknown_keeps_its_groups():
    class Own(torch.optim.AdamW):
        """May write into its groups."""

    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    groups = [dict(params=[p]) for p in parameters]
    for optimizer in (Own(groups), torch.optim.RMSprop(groups)):
        before = optimizer.param_groups
        with OneGroup(optimizer)():
            assert optimizer.param_groups is before


def test_rates_that_are_tensors_are_told_apart_by_identity():
    rate = torch.tensor(0.1)
    groups = [dict(params=[nn.Parameter(torch.zeros(2))], lr=lr) for lr in (rate, rate, torch.tensor(0.1))]
    optimizer = torch.optim.AdamW(groups, fused=True)
    with OneGroup(optimizer)():
        assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1]
    assert len(optimizer.param_groups) == 3


def test_an_error_leaves_the_groups_as_they_were():
    optimizer = torch.optim.SGD([dict(params=[nn.Parameter(torch.zeros(2))]) for _ in range(3)], lr=0.1)
    with pytest.raises(KeyError), OneGroup(optimizer)():
        assert len(optimizer.param_groups) == 1
        raise KeyError
    assert len(optimizer.param_groups) == 3 and isinstance(OptimWrapper(optimizer), OptimWrapper)


def test_the_wrappers_are_the_registered_ones():
    assert [type(case(kind, OPTIMIZERS["SGD"])[1]) for kind in KINDS] == [
        OptimWrapper, GuardedOptimWrapper, GuardedAmpOptimWrapper]
