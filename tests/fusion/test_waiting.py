"""Nothing in a step asks an accelerator for a number: the answer would wait until all its work is done.

A meta tensor has no values, so whatever asks one for a number raises.
"""
from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch

from mmfusion_plugin.fusion import FUSIONS
from mmfusion_plugin.fusion.contract import expand_mask, on_device_of, where_there
from mmfusion_plugin.fusion.host_copy import HostCopy
from mmfusion_plugin.fusion.input_statistics import NUM_STATISTICS
from mmfusion_plugin.fusion.masking import MissingFill, ModalityDropout
from mmfusion_plugin.fusion.udml import UDML

WIDTHS = dict(a=8, b=8)
FORMS = {"SCFAE": {}, "SCFAE received": dict(recon_reads="received"), "SCFAE token": dict(missing_fill="token"),
         "SCFAE mean": dict(missing_fill="mean"), "SCFAE mse": dict(recon_metric="mse"), "ConcatFusion": {},
         "SumFusion": {}, "MLPFusion": {}, "GatedFusion": {}, "FiLMFusion": {}, "CrossAttentionFusion": {}}
UDMLS = {"default": {}, "novel features": dict(novelty=["input", "distance"]),
         "positions": dict(per_position=True), "equal": dict(quality="equal"), "with its KL term": dict(kl_weight=0.1)}


def present(number: int) -> dict[str, torch.Tensor]:
    return dict(a=torch.ones(number, dtype=torch.bool), b=torch.arange(number) > 0)


@pytest.mark.parametrize("shape", [(), (3, 5)])
@pytest.mark.parametrize("form", FORMS)
def test_a_training_step_of_a_block_waits_for_nothing(form, shape):
    with torch.device("meta"):
        block = FUSIONS[form.split()[0]](list(WIDTHS), WIDTHS, out_channels=8, modality_dropout=0.3, **FORMS[form])
        feats = {m: torch.empty(4, C, *shape, requires_grad=True) for m, C in WIDTHS.items()}
    out = block(feats, present(4))
    (out.fused.sum() + sum(out.losses.values())).backward()
    assert out.fused.is_meta and all(x.grad is not None for x in feats.values())


@pytest.mark.parametrize("form", UDMLS)
def test_a_training_step_of_udml_waits_for_nothing(form, monkeypatch):
    with torch.device("meta"):
        inner = FUSIONS["SCFAE"](list(WIDTHS), WIDTHS, out_channels=8)
        block = UDML(list(WIDTHS), WIDTHS, inner, **UDMLS[form])
        feats = {m: torch.empty(4, C, 3, 5, requires_grad=True) for m, C in WIDTHS.items()}
        levels = {m: torch.empty(4) for m in WIDTHS}
        grid = block.grid(feats) or ()
        statistics = {m: torch.empty(4, NUM_STATISTICS, *grid) for m in WIDTHS}
    monkeypatch.setattr(UDML, "dynamic", True)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no meta device
    out = block(feats, present(4), levels, statistics=statistics)
    (out.fused.sum() + sum(out.losses.values())).backward()
    assert out.fused.is_meta and all(x.grad is not None for x in feats.values())
    assert ("fusion.loss_noise" in out.losses) is (form != "equal")
    assert ("fusion.loss_kl" in out.losses) is (form == "with its KL term")


def test_a_sample_without_any_modality_is_still_refused():
    with torch.device("meta"):
        block = FUSIONS["SCFAE"](list(WIDTHS), WIDTHS)
        feats = {m: torch.empty(2, C) for m, C in WIDTHS.items()}
    with pytest.raises(ValueError, match=r"samples \[1\] of the batch have no modality at all"):
        block(feats, {m: torch.tensor([True, False]) for m in WIDTHS})


def test_a_mask_that_the_processor_knows_to_be_all_true_masks_nothing_elsewhere():
    feats = {m: torch.empty(4, C, 3, 5, device="meta") for m, C in WIDTHS.items()}
    masks = on_device_of(feats, present(4))
    wide = {m: expand_mask(masks[m], x) for m, x in feats.items()}
    assert all(mask.is_meta for mask in wide.values())
    assert where_there(wide["a"], feats["a"], 0.0) is feats["a"], "all four are there"
    assert where_there(wide["b"], feats["b"], 0.0) is not feats["b"], "the first is missing"
    assert where_there(wide["a"] & wide["b"], feats["a"], 0.0) is not feats["a"], "what is computed is not known"
    learned = torch.empty(8, 1, 1, device="meta", requires_grad=True)
    assert where_there(wide["a"], feats["a"], learned).requires_grad, "all ranks need its gradient"


class Counted(torch.Tensor):
    """A number that says it lies on an accelerator, and counts how often it is asked for its value."""

    asked = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function == torch.Tensor.device.__get__:
            return torch.device("cuda")
        if function in (torch.Tensor.__int__, torch.Tensor.item, torch.Tensor.__index__):
            cls.asked += 1
        return super().__torch_function__(function, types, args, kwargs)


def test_a_counter_is_asked_once_and_again_when_something_else_set_it():
    Counted.asked = 0
    step, copied = torch.zeros((), dtype=torch.int64).as_subclass(Counted), HostCopy()
    for expected in range(3):
        assert copied.read(step) == expected
        copied.add_one(step)
    assert Counted.asked == 1 and step.as_subclass(torch.Tensor).item() == 3
    step.fill_(7)
    assert copied.read(step) == 7 and Counted.asked == 2
    other = torch.tensor(9).as_subclass(Counted)
    assert copied.read(other) == 9, "another buffer in its place"
    assert copy.deepcopy(copied).read(torch.tensor(4)) == 4
    other.data.fill_(5)
    assert copied.read(other.as_subclass(torch.Tensor)) == 5, "on a processor what nothing counts is seen"
    with torch.inference_mode():
        assert HostCopy().read(torch.tensor(6)) == 6


def test_progress_that_is_told_every_step_is_never_asked_for():
    Counted.asked = 0
    share, copied = torch.zeros(()).as_subclass(Counted), HostCopy()
    for told, reached in ((0.1, False), (0.7, True), (0.6999, False)):
        copied.fill(share, told)
        assert copied.reached(share, 0.7) is reached and share.as_subclass(torch.Tensor).item() == torch.tensor(told)
    assert Counted.asked == 0
    share.fill_(0.8)
    assert copied.reached(share, 0.7) and Counted.asked == 1


def test_modality_dropout_draws_what_a_loaded_state_says():
    here = {m: torch.ones(64, dtype=torch.bool) for m in WIDTHS}
    first, second = (ModalityDropout(list(WIDTHS), 0.5, seed=3).train() for _ in range(2))
    drawn = [first(here) for _ in range(4)]
    second(here)
    second.load_state_dict(dict(first.state_dict(), step=torch.tensor(2)))
    for expected in drawn[2:]:
        assert all(torch.equal(x, expected[m]) for m, x in second(here).items())


def test_the_running_mean_counts_what_is_there_and_finite():
    fill = MissingFill(WIDTHS, "mean", momentum=0.5).train()
    feats = {m: torch.full((3, C, 2, 2), 4.0) for m, C in WIDTHS.items()}
    feats["a"][0] = torch.nan
    available = {m: torch.tensor([False, True, True]) for m in WIDTHS}
    assert fill(feats, available)["a"][0].eq(2.0).all()
    feats["a"][1] = torch.inf
    fill(feats, available)
    assert fill.mean_a.eq(2.0).all() and fill.mean_b.eq(3.0).all(), "a batch that is not finite says nothing"
    fill(feats, {m: torch.zeros(3, dtype=torch.bool) for m in WIDTHS})
    assert fill.mean_b.eq(3.0).all()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 1 / 3, 0.95])
def test_a_stage_begins_at_its_own_share_of_training(share):
    model, other = (UDML(list(WIDTHS), WIDTHS, FUSIONS["ConcatFusion"](list(WIDTHS), WIDTHS), weights_from=share)
                    for _ in range(2))
    model.set_progress(share - 1e-4)
    assert not model.dynamic
    model.set_progress(share)
    assert model.dynamic
    assert not other.dynamic
    other.load_state_dict(model.state_dict())
    assert other.dynamic
