"""What necks ask about one modality at a time."""
from __future__ import annotations

import copy
import os

import pytest
import torch
from mmengine.registry import MODELS
from running import leave_group
from torch import multiprocessing, nn

import mmfusion_plugin.models  # noqa: F401
from mmfusion_plugin.fusion.dependency import response
from mmfusion_plugin.models.unimodal import (
    Heads,
    check_own_heads,
    disagreements,
    energies,
    predictions_alone,
    update_dependency,
    update_gain,
)

AB, K = ["a", "b"], 5
WIDTHS = dict(a=4, b=6)


def parts(**options):
    """A neck with BatchNorm, dropout of modalities and a draw, and a head with BatchNorm and dropout."""
    torch.manual_seed(0)
    neck = MODELS.build(dict(
        type="UDML", modalities=AB, in_channels=WIDTHS, preset="released", dependency_every=2,
        inner=dict(type="ConcatFusion", out_channels=8, modality_dropout=0.5)) | options)
    head = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, K))
    own = {m: nn.Sequential(nn.Dropout(0.5), nn.Linear(C, K)) for m, C in WIDTHS.items()}
    return neck, Heads(head, own, (head, *own.values()))


def features(batch=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {m: torch.randn(batch, C, generator=generator) for m, C in WIDTHS.items()}


def everything(batch=6, **known):
    return {m: torch.tensor(known.get(m, [True] * batch)) for m in AB}


def test_an_update_changes_the_dependency_and_nothing_else():
    neck, heads = parts()
    modules = nn.ModuleList([neck, heads.fused])
    modules.train()
    heads.fused[0].eval()  # kept in evaluation mode by whoever built it
    feats = {m: x.requires_grad_() for m, x in features().items()}
    before = {name: value.clone() for name, value in modules.state_dict().items()}
    modes = [part.training for part in modules.modules()]
    state = torch.get_rng_state()
    update_dependency(neck, feats, everything(), heads)
    changed = {name for name, value in modules.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.udml.dependency.alpha_M", "0.udml.dependency.updates_M", "0.udml.step"}
    assert [part.training for part in modules.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state), "no random number is drawn"
    assert all(x.grad is None for x in [*modules.parameters(), *feats.values()])


def test_alone_means_that_the_others_are_unavailable():
    neck, heads = parts()
    feats = features()
    logits = predictions_alone(neck, feats, heads)
    neck.eval(), heads.fused.eval()
    for m, other in (AB, AB[::-1]):
        expected = heads.fused(neck(feats, {m: torch.ones(6).bool(), other: torch.zeros(6).bool()}).fused)
        torch.testing.assert_close(logits[m], expected)
        junk = predictions_alone(neck, {**feats, other: torch.full((6, WIDTHS[other]), torch.nan)}, heads)
        torch.testing.assert_close(junk[m], expected)


def test_it_is_due_every_kth_training_step():
    neck, heads = parts()
    seen = []
    for i in range(5):
        update_dependency(neck, features(seed=i), everything(), heads)
        seen.append(float(neck.dependency.alpha_M[0]))
    assert [a != b for a, b in zip([1.0, *seen], seen)] == [True, False, True, False, True]
    neck.eval()
    update_dependency(neck, features(), everything(), heads)
    assert float(neck.dependency.alpha_M[0]) == seen[-1]


def test_samples_without_the_modality_do_not_count():
    neck, heads = parts()
    feats = features()
    logits = predictions_alone(neck, feats, heads)
    available = everything(a=[True, False, True, False, False, False], b=[True] * 6)
    feats["a"][3] = torch.nan
    update_dependency(neck, feats, available, heads)
    torch.testing.assert_close(neck.dependency()["a"], response(logits["a"][[0, 2]]).mean())
    torch.testing.assert_close(neck.dependency()["b"], response(logits["b"]).mean())
    known, neck.udml.step = neck.dependency.alpha_M.clone(), torch.zeros((), dtype=torch.int64)
    update_dependency(neck, features(seed=2), everything(a=[False] * 6), heads)
    assert neck.dependency.alpha_M[0] == known[0] and neck.dependency.alpha_M[1] != known[1]


def _worker(rank, folder, feats, available):
    os.environ.update(MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    neck, heads = parts()
    for half in ([slice(0, 4), slice(4, 6)][rank], [slice(0, 1), slice(1, 6)][rank]):  # halves of unequal size
        neck.udml.step.zero_()
        update_dependency(neck, {m: x[half] for m, x in feats.items()}, {m: x[half] for m, x in available.items()},
                          heads)
    torch.save(neck.dependency.state_dict(), f"{folder}/{rank}.pth")
    leave_group()


def test_two_processes_give_the_dependency_of_one(tmp_path):
    feats, available = features(), everything(a=[False, True, True, True, False, False])  # the second half has no a
    multiprocessing.spawn(_worker, (str(tmp_path), feats, available), nprocs=2)
    neck, heads = parts()
    for _ in range(2):
        neck.udml.step.zero_()
        update_dependency(neck, feats, available, heads)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        torch.testing.assert_close(found, dict(neck.dependency.state_dict()))
    assert (neck.dependency.alpha_M != 1).all()


def test_the_energy_is_that_of_each_modalitys_own_head():
    neck, heads = parts(quality="energy", law="exponential")
    feats = features()
    found = energies(neck, feats, heads)
    for m in AB:
        logits = heads.own[m][1](feats[m])
        torch.testing.assert_close(found[m], -logits.exp().sum(1).log())
        assert not found[m].requires_grad and heads.own[m].training
    maps = Heads(heads.fused, {m: lambda x: x for m in AB})
    x = {m: torch.randn(2, K, 3, 4) for m in AB}
    torch.testing.assert_close(energies(neck, x, maps)["a"], -x["a"].exp().sum(1).log().mean((1, 2)))
    with pytest.raises(ValueError, match=r"every modality's own head; here names \['a'\]"):
        check_own_heads(neck, ["a"], "here")
    check_own_heads(parts()[0], [], "here")


def test_gains_are_the_right_class_s_probability_at_the_level_that_the_weights_read():
    neck, heads = parts(law="expected_gain")
    feats, labels = features(), torch.arange(6) % K
    levels = dict(a=torch.tensor([0.0, 0.0, 5.0, 5.0, 11.0, 11.0]), b=torch.zeros(6))
    available = everything(a=[True] * 5 + [False])
    output = neck(feats, available, levels)
    update_gain(neck, feats, available, None, output, heads, labels)
    assert not neck.udml.weigh.gain.count_MN.any(), "no level is known before the noise begins"
    update_gain(neck, feats, available, levels, output, heads, labels)
    right = {m: heads.own[m][1](feats[m]).softmax(1)[torch.arange(6), labels] for m in AB}
    gain = neck.udml.weigh.gain
    torch.testing.assert_close(gain.sum_MN.sum(1), torch.stack([right["a"][:5].sum(), right["b"].sum()]))
    assert gain.count_MN.sum(1).tolist() == [5, 6] and heads.own["a"].training
    bins = output.per_sample["fusion.level.a"][:5].round().long().clamp(0, 11)
    assert torch.equal(gain.count_MN[0], torch.bincount(bins, minlength=12).float())
    with pytest.raises(ValueError, match=r"law='expected_gain' reads the scores of every modality's own head"):
        check_own_heads(neck, ["a"], "here")


def test_one_logit_of_an_own_head_is_the_second_of_two_classes():
    feats = features()
    single = {m: nn.Linear(C, 1) for m, C in WIDTHS.items()}
    heads = Heads(None, single)
    double = Heads(None, {m: lambda x, m=m: torch.cat([0 * single[m](x), single[m](x)], 1) for m in AB})
    neck, _ = parts(law="expected_gain")
    for ask in (energies, lambda neck, feats, heads: disagreements(neck, feats, None, heads)):
        found, expected = (ask(neck, feats, given) for given in (heads, double))
        torch.testing.assert_close(found, expected)
        assert all(found[m].any() for m in AB)
    levels = dict.fromkeys(AB, torch.zeros(6))
    update_gain(neck, feats, everything(), levels, neck(feats, everything(), levels), heads, torch.arange(6) % 2)
    sign = torch.tensor([-1.0, 1, -1, 1, -1, 1])
    right = {m: (sign * single[m](feats[m])[:, 0]).sigmoid() for m in AB}
    gain = neck.udml.weigh.gain
    torch.testing.assert_close(gain.sum_MN.sum(1), torch.stack([right[m].sum() for m in AB]))
    assert neck.udml.weigh.chance == 0.5


def test_disagreement_is_the_jensen_shannon_divergence():
    neck, heads = parts()
    feats = features()
    found = disagreements(neck, feats, everything(b=[True] * 5 + [False]), heads)
    p, q = (heads.own[m][1](feats[m]).softmax(1) for m in AB)
    middle = (p + q) / 2
    js = ((p * (p / middle).log()).sum(1) + (q * (q / middle).log()).sum(1)) / 2
    torch.testing.assert_close(found["a"][:5], js[:5].detach())
    assert found["a"][5] == found["b"][5] == 0


def test_the_copy_of_a_neck_forgets_nothing():
    neck, heads = parts()
    update_dependency(neck, features(), everything(), heads)
    again, _ = parts()
    again.load_state_dict(copy.deepcopy(neck.state_dict()))
    assert again.dependency() == neck.dependency()
