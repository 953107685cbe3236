"""Steps that are not finite: nothing changes, all is counted, and training stops in time."""
from __future__ import annotations

import copy
import os

import pytest
import torch
from mmengine.optim import OptimWrapper
from running import leave_group
from torch import nn

from mmfusion_plugin.engine import GuardedAmpOptimWrapper, GuardedOptimWrapper, NonFiniteError, launch

KINDS = [GuardedOptimWrapper, GuardedAmpOptimWrapper]


def case(kind=GuardedOptimWrapper, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    return model, kind(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), **options)


def train_step(model, wrapper, x, factor=1.0):
    with wrapper.optim_context(model):
        loss = model(x).float().square().mean() * factor
    wrapper.update_params(loss)


def state(model, wrapper):
    return copy.deepcopy((model.state_dict(), wrapper.optimizer.state_dict()["state"]))


def same(one, other):
    return all(torch.equal(x, other[0][name]) for name, x in one[0].items()) and all(
        torch.equal(values["momentum_buffer"], other[1][i]["momentum_buffer"]) for i, values in one[1].items())


def batch():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def test_good_steps_are_those_of_the_stock_wrapper():
    found = []
    for kind in (OptimWrapper, GuardedOptimWrapper):
        model, wrapper = case(kind, clip_grad=dict(max_norm=0.1))
        for _ in range(3):
            train_step(model, wrapper, batch())
        found.append(state(model, wrapper))
    assert same(*found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_loss_changes_no_weight_no_momentum_and_leaves_finite_statistics(kind, bad):
    model, wrapper = case(kind, clip_grad=dict(max_norm=1.0))
    train_step(model, wrapper, batch())
    before = state(model, wrapper)
    train_step(model, wrapper, batch() * bad)
    count = "1.num_batches_tracked"
    before[0][count] += 1  # a whole number counts on
    assert same(before, state(model, wrapper))
    assert (wrapper.skipped, wrapper.in_a_row) == (1, 1)
    train_step(model, wrapper, batch())
    assert not same(before, state(model, wrapper)) and (wrapper.skipped, wrapper.in_a_row) == (1, 0)


def test_a_bad_gradient_of_a_finite_loss_is_seen_and_its_parameter_named(monkeypatch):
    said = []
    monkeypatch.setattr("mmfusion_plugin.engine.guarded_optim.print_log", lambda text, **_: said.append(text))
    model, wrapper = case()
    with wrapper.optim_context(model):
        loss = (model[2].bias - model[2].bias.detach()).sqrt().sum() + 1  # 1, with an infinite slope
    before = state(model, wrapper)
    wrapper.update_params(loss)
    assert same(before, state(model, wrapper))
    assert said == ["optimiser step skipped (1 in all, 1 in a row): the gradient of 1 parameters is not finite, "
                    "first 2.bias"]


class Odd(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.linear, self.change = nn.Linear(3, 1), change
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("codes", torch.ones(2).to(torch.float8_e4m3fn))

    def forward(self, x):
        self.change(self)
        return self.linear(x) * float("nan")


@pytest.mark.parametrize("change", [
    lambda part: delattr(part, "mean"),
    lambda part: setattr(part, "mean", None),
    lambda part: setattr(part, "mean", torch.zeros(3)),
    lambda part: setattr(part, "mean", torch.full((2,), torch.nan))],
    ids=["taken away", "none", "of another shape", "another"])
def test_buffers_that_a_pass_exchanges_do_not_stop_a_skipped_step(change):
    model = nn.Sequential(torch.jit.script(nn.BatchNorm1d(3)), Odd(change))
    wrapper = GuardedOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    train_step(model, wrapper, batch() * torch.nan)
    assert wrapper.skipped == 1
    assert all(torch.isfinite(x).all() for x in model.buffers() if x.itemsize > 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_loss_of_finite_gradients_is_seen_and_large_gradients_are_none(kind):
    model, wrapper = case(kind)
    before = state(model, wrapper)
    wrapper.update_params(model[2].bias.sum() + float("inf"))
    assert same(before, state(model, wrapper)) and wrapper.skipped == 1
    wrapper.update_params(model[2].weight.sum() * 1e25)  # whose square overflows
    assert wrapper.skipped == 1 and model[2].weight.abs().min() > 1e23


def test_a_step_of_several_batches_is_skipped_for_one_of_them():
    model, wrapper = case(accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 10)
    before = state(model, wrapper)
    train_step(model, wrapper, batch() * float("nan"))
    train_step(model, wrapper, batch())
    before[0]["1.num_batches_tracked"] += 2
    after = state(model, wrapper)
    assert wrapper.skipped == 1 and all(x.isfinite().all() for x in after[0].values())
    assert all(torch.equal(x, after[0][name]) for name, x in before[0].items() if "running" not in name)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_it_stops_after_as_many_in_a_row_as_configured_and_counts_survive_a_checkpoint():
    model, wrapper = case(patience=3)
    for x in (batch() * float("nan"), batch(), batch() * float("nan")):
        train_step(model, wrapper, x)
    again, fresh = case(patience=3)
    fresh.load_state_dict(wrapper.state_dict())
    again.load_state_dict(model.state_dict())
    assert (fresh.skipped, fresh.in_a_row) == (2, 1)
    train_step(again, fresh, batch() * float("nan"))
    with pytest.raises(NonFiniteError, match=r"3 steps in a row .* the loss is nan.*optim_wrapper\.patience \(now 3\)"):
        train_step(again, fresh, batch() * float("nan"))
    assert all(x.isfinite().all() for x in again.state_dict().values())
    OptimWrapper(torch.optim.SGD(again.parameters(), lr=0.1)).load_state_dict(wrapper.state_dict())


def test_bfloat16_on_the_cpu_trains_as_float32_does():
    losses = {}
    for kind in KINDS:
        model, wrapper = case(kind)
        with wrapper.optim_context(model):
            y = model(batch())
        losses[kind] = y.dtype
        wrapper.update_params(y.float().square().mean())
        assert model[0].weight.dtype == torch.float32
    assert losses == {GuardedOptimWrapper: torch.float32, GuardedAmpOptimWrapper: torch.bfloat16}


def test_an_overflow_of_scaled_gradients_is_a_skipped_step_and_shrinks_the_scale():
    """float16's scaler, which works on a CPU as well, around float32 arithmetic."""
    model, wrapper = case(GuardedAmpOptimWrapper, clip_grad=dict(max_norm=1.0))
    wrapper.loss_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    before = state(model, wrapper)
    train_step(model, wrapper, batch(), factor=1e6)
    assert all(torch.equal(p, before[0][name]) for name, p in model.named_parameters())
    assert (wrapper.skipped, wrapper.loss_scaler.get_scale()) == (1, 2.0**119)
    wrapper.loss_scaler.update(8.0)
    train_step(model, wrapper, batch())
    assert (wrapper.skipped, wrapper.in_a_row) == (1, 0)
    assert not torch.equal(model[0].weight, before[0]["0.weight"])

    again, fresh = case(GuardedAmpOptimWrapper)
    fresh.loss_scaler = torch.amp.GradScaler("cpu")
    fresh.load_state_dict(wrapper.state_dict())
    assert (fresh.loss_scaler.get_scale(), fresh.skipped) == (8.0, 1)

    plain, stock = case(OptimWrapper, clip_grad=dict(max_norm=1.0))
    with wrapper.optim_context(plain):  # the same precision
        loss = plain(batch()).float().square().mean()
    stock.update_params(loss)
    torch.testing.assert_close(model[0].weight, plain[0].weight)


def test_a_fixed_scale_stays():
    model, wrapper = case(GuardedAmpOptimWrapper, loss_scale=8.0)
    wrapper.loss_scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    for factor in (1.0, float("inf")):
        train_step(model, wrapper, batch(), factor)
        assert wrapper.loss_scaler.get_scale() == 8
    assert wrapper.skipped == 1


def test_options_that_make_no_sense_are_refused():
    for options, message in ((dict(patience=0), "patience must be"), ):
        with pytest.raises(ValueError, match=message):
            case(**options)
    for options, message in ((dict(dtype="int8"), "dtype must be one of"), (dict(loss_scale="big"), "loss_scale must")):
        with pytest.raises(ValueError, match=message):
            case(GuardedAmpOptimWrapper, **options)
    with pytest.raises(ValueError, match="float16' needs a GPU"):
        case(GuardedAmpOptimWrapper, dtype="float16")


def test_the_tools_amp_option_switches_to_the_guarded_form():
    from mmengine.config import Config

    cfg = Config(dict(optim_wrapper=dict(type="GuardedOptimWrapper", patience=5)))
    launch.use_amp(cfg)
    assert cfg.optim_wrapper == dict(type="GuardedAmpOptimWrapper", dtype="bfloat16", patience=5)


def _rank(rank, store, out):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model, wrapper = case()  # without DDP: nothing but the guard makes them agree
    train_step(model, wrapper, batch() * (float("nan") if rank == 1 else 1))
    torch.save((wrapper.skipped, state(model, wrapper)[0]["0.weight"]), f"{out}.{rank}")
    leave_group()


def test_all_ranks_skip_together(tmp_path):
    torch.multiprocessing.start_processes(
        _rank, (tmp_path / "store", tmp_path / "out"), nprocs=2, start_method="fork")
    model, _ = case()
    for rank in range(2):
        skipped, weight = torch.load(tmp_path / f"out.{rank}", weights_only=True)
        assert skipped == 1 and torch.equal(weight, model[0].weight)
