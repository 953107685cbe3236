from __future__ import annotations

import pytest
import torch
from fusion.cases import features, present

from mmfusion_plugin.fusion import ConcatFusion, MissingFill, ModalityDropout

NAMES = ["a", "b", "c"]


def draws(dropout, steps, batch=64):
    kept = [dropout(present(NAMES, batch)) for _ in range(steps)]
    return [torch.stack([masks[m] for m in NAMES], 1) for masks in kept]


def test_share_of_samples_that_lose_something_is_p():
    kept = torch.cat(draws(ModalityDropout(NAMES, 0.3, seed=1), 100))
    lost = (~kept.all(1)).float().mean().item()
    assert abs(lost - 0.3) < 0.02


def test_every_proper_subset_survives_equally_often_and_never_none():
    kept = torch.cat(draws(ModalityDropout(NAMES, 0.99, seed=1), 100))
    codes = (kept * torch.tensor([1, 2, 4])).sum(1)
    counts = torch.bincount(codes, minlength=8).float() / len(codes)
    assert counts[0] == 0
    assert torch.allclose(counts[1:7], torch.full((6,), 0.99 / 6), atol=0.02)


def test_what_is_missing_stays_missing_and_a_lone_modality_is_kept():
    dropout = ModalityDropout(NAMES, 0.99, seed=1)
    available = present(NAMES, 64, missing=dict(a=list(range(64)), b=list(range(32))))
    kept = dropout(available)
    assert not kept["a"].any()
    assert kept["c"][:32].all()
    assert (kept["b"] | kept["c"]).all()


def test_evaluation_drops_nothing():
    dropout = ModalityDropout(NAMES, 0.9, seed=1).eval()
    assert all(mask.all() for mask in dropout(present(NAMES)).values())


def test_a_resumed_run_draws_what_the_unbroken_one_would():
    unbroken = ModalityDropout(NAMES, 0.5, seed=7)
    draws(unbroken, 3)
    resumed = ModalityDropout(NAMES, 0.5, seed=8)
    fresh = ModalityDropout(NAMES, 0.5, seed=7)
    resumed.load_state_dict(unbroken.state_dict())
    after = draws(unbroken, 2)
    assert all(torch.equal(x, y) for x, y in zip(after, draws(resumed, 2)))
    # the control: without the state the draws differ
    assert not all(torch.equal(x, y) for x, y in zip(after, draws(fresh, 2)))


def test_each_rank_draws_its_own(monkeypatch):
    first = draws(ModalityDropout(NAMES, 0.5, seed=7), 1)[0]
    monkeypatch.setattr("mmfusion_plugin.fusion.masking.rank", lambda: 1)
    assert not torch.equal(first, draws(ModalityDropout(NAMES, 0.5, seed=7), 1)[0])


def test_the_global_generator_is_left_alone():
    dropout = ModalityDropout(NAMES, 0.5, seed=7)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    dropout(present(NAMES))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("p", [-0.1, 1.0, 2])
def test_dropout_rate_out_of_range(p):
    with pytest.raises(ValueError, match="modality_dropout"):
        ModalityDropout(NAMES, p)


@pytest.mark.parametrize("rank", ["vector", "sequence", "map", "clip"])
@pytest.mark.parametrize("fill", ["zeros", "mean", "token"])
def test_fill_replaces_missing_samples_alone(fill, rank):
    widths = dict(a=3, b=2)
    feats, available = features(widths, rank=rank), present(widths, missing=dict(b=[1]))
    with torch.no_grad():
        feats["b"][1] = float("nan")
    module = MissingFill(widths, fill)
    filled = module(feats, available)
    assert torch.equal(filled["a"], feats["a"])
    assert torch.equal(filled["b"][[0, 2, 3]], feats["b"][[0, 2, 3]])
    axis = 1 if rank == "sequence" else 0
    stand_in = filled["b"][1].movedim(axis, -1)
    expected = {
        "zeros": torch.zeros(2),
        "token": torch.zeros(2),
        "mean": 0.1 * feats["b"][[0, 2, 3]].movedim(axis + 1, -1).reshape(-1, 2).mean(0),
    }[fill]
    assert torch.allclose(stand_in, expected.expand_as(stand_in), atol=1e-6)


def test_unknown_fill():
    with pytest.raises(ValueError, match="missing_fill must be one of"):
        ConcatFusion(["a", "b"], dict(a=1, b=1), missing_fill="nothing")
