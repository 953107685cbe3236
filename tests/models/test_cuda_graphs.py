"""Necks that are replayed from CUDA graphs: what is recorded when, and that nobody can tell the difference.

Without a GPU: what a graph would do, the same operators do again, in the same memory. Real ones:
tests/test_cuda_necks.py.
"""
from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from mmengine.registry import MODELS
from models.graph_cases import (
    NECKS,
    WIDTHS,
    assert_same,
    assert_same_gradients,
    batch,
    gradients_of_parts,
    loss_of,
    neck_of,
    pair_of,
    present,
    step,
    values,
)
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from mmfusion_plugin.fusion import cuda_graphs, fused_only, recording
from mmfusion_plugin.fusion.layers import ChannelBatchNorm
from mmfusion_plugin.fusion.recording import Recording

if cuda_graphs.SAVED_TENSOR_HOOKS is None:
    pytest.skip("recordings need torch 2.8", allow_module_level=True)


class Noted(TorchDispatchMode):
    """Every operator that makes or writes to a tensor: with what, and what it made."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = {x.untyped_storage()._cdata for x in tensors_in((args, kwargs))}
        out = operator(*args, **kwargs)
        made = [(i, x.detach()) for i, x in enumerate(tensors_in(out)) if x.untyped_storage()._cdata not in given]
        if made or operator._schema.is_mutable:
            self.calls.append((operator, *tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs)), made))
        return out


class Tape:
    """CudaGraphs without a GPU: the operators that ran run again, on the same memory, and nothing of Python does."""

    made = 0

    def __init__(self, forward, backward, buffers):
        type(self).made += 1
        before = [buffer.clone() for buffer in buffers]
        backward(forward())
        self._forward, outputs = self._noted(forward)
        self.learns = [y.requires_grad for y in outputs]
        self._backward, self.gradients = self._noted(lambda: backward(outputs)) if any(self.learns) else ([], [])
        for buffer, was in zip(buffers, before):
            buffer.data.copy_(was)
        self.outputs = [y.detach() for y in outputs]

    def _noted(self, function):
        with Noted() as noted:
            found = function()
        return noted.calls, found

    def _replay(self, calls):
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            for operator, args, kwargs, made in calls:
                found = tensors_in(operator(*args, **kwargs))
                for i, own in made:
                    own.copy_(found[i])

    def forward(self):
        self._replay(self._forward)

    def backward(self):
        self._replay(self._backward)


def tensors_in(tree) -> list:
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


@pytest.fixture(autouse=True)
def recorded_here(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "DEVICE", "cpu")
    monkeypatch.setattr(recording, "GRAPHS", Tape)
    monkeypatch.setattr(Tape, "made", 0)


@pytest.fixture
def replays(monkeypatch) -> list:
    """One entry for each replayed call."""
    found = []
    plain = Recording.__call__
    monkeypatch.setattr(Recording, "__call__", lambda self, *given: found.append(self) or plain(self, *given))
    return found


@pytest.mark.parametrize("name", NECKS)
def test_steps_are_those_of_the_plain_neck(name, replays):
    plain, graphed = pair_of(name)
    for seed in range(4):
        for missing in (None, 1):
            feats, available = batch(seed), present(missing=missing)
            assert_same(step(graphed, feats, available), step(plain, feats, available))
    assert len(replays) == 6 and Tape.made == 2  # the first of each kind runs as it is


@pytest.mark.parametrize("name", ["SCFAE", "ConcatFusion"])
def test_weights_are_inputs(name, replays):
    plain, graphed = pair_of(name)
    for seed in range(3):
        feats = batch(seed)
        weights = {m: [torch.rand(3, 1, 1, 1, requires_grad=True) for _ in levels] for m, levels in feats.items()}
        found = step(graphed, feats, None, weights=weights)
        of_weights = [w.grad.clone() for levels in weights.values() for w in levels]
        for levels in weights.values():
            for w in levels:
                w.grad = None
        assert_same(found, step(plain, feats, None, weights=weights))
        torch.testing.assert_close(of_weights, [w.grad for levels in weights.values() for w in levels])
    assert len(replays) == 2


def test_predictions_are_those_of_the_plain_neck_and_belong_to_the_caller(replays):
    plain, graphed = (neck.eval() for neck in pair_of())
    kept, expected = [], []
    with torch.no_grad(), fused_only(plain, graphed):
        for seed in range(4):
            feats = batch(seed, gradients=seed % 2 == 0)
            kept.append(values(graphed(feats)))
            expected.append(values(plain(feats)))
    for found, value in zip(kept, expected):
        assert_same(found, value)
    assert len(replays) == 3 and not kept[0].keys() - {"fused 0", "fused 1"}
    with torch.no_grad():  # another question
        assert graphed(batch(0)).losses
    with torch.inference_mode():
        assert_same(values(graphed(batch(0))), values(plain(batch(0))))


def test_gradients_add_up_and_belong_to_the_caller():
    plain, graphed = pair_of()
    step(graphed, batch(0), None)
    held = {}
    for neck in (plain, graphed):
        neck.zero_grad()
        for seed in (1, 2, 3):
            loss_of(neck(batch(seed))).backward()
        held[neck] = [p.grad for p in neck.parameters()]
        neck.zero_grad()
        loss_of(neck(batch(4))).backward()
    for found, expected in zip(held[graphed], held[plain]):
        torch.testing.assert_close(found, expected)


def test_two_questions_to_one_pass():
    """As GradientAnalysisHook asks: the gradient of each loss by itself."""
    plain, graphed = pair_of()
    step(graphed, batch(0), None)
    assert_same_gradients(*(gradients_of_parts(neck, batch(1)) for neck in (graphed, plain)))


def test_a_pass_that_waits_for_its_backward_pass_is_left_alone(replays):
    plain, graphed = pair_of()
    step(graphed, batch(0), None)
    gradients = {}
    for neck in (plain, graphed):
        neck.zero_grad()
        outs = [neck(batch(seed)) for seed in (1, 2, 3)]
        sum(loss_of(out) for out in outs).backward()
        gradients[neck] = [p.grad for p in neck.parameters()]
    torch.testing.assert_close(gradients[graphed], gradients[plain])
    assert len(replays) == 1
    out = graphed(batch(4))  # free again, though the three are still at hand
    assert len(replays) == 2
    del out  # never went back
    graphed(batch(5))
    assert len(replays) == 3


def test_going_back_twice_says_what_torch_says():
    _, graphed = pair_of()
    step(graphed, batch(0), None)
    loss = loss_of(graphed(batch(1)))
    loss.backward()
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()


def test_second_derivatives_are_refused():
    _, graphed = pair_of()
    step(graphed, batch(0), None)
    feats = batch(1)
    slope, = torch.autograd.grad(loss_of(graphed(feats)), feats["a"][0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_what_changes_between_calls_is_seen(replays):
    """Weights written in place stay recorded; others, elsewhere or frozen, are recorded anew."""
    plain, graphed = pair_of()

    def both(change):
        for neck in (plain, graphed):
            change(neck)
        for seed in range(2):
            feats = batch(seed)
            assert_same(step(graphed, feats, None), step(plain, feats, None))
        made = Tape.made
        Tape.made = 0
        return made

    assert both(lambda neck: None) == 1
    state = {name: value + 0.1 for name, value in plain.state_dict().items()}
    assert both(lambda neck: neck.load_state_dict(state)) == 0
    assert both(lambda neck: neck.load_state_dict({k: v * 0.9 for k, v in state.items()}, assign=True)) == 1
    assert both(lambda neck: neck.levels[0].requires_grad_(False)) == 1
    assert both(lambda neck: neck.levels[0].requires_grad_(True)) == 0  # a kind that is known
    assert both(lambda neck: setattr(neck.levels[0].readout.weight, "data", neck.levels[0].readout.weight + 1)) == 1
    seen = []
    neck_of_hook = graphed.levels[1].readout
    hook = neck_of_hook.register_forward_hook(lambda *given: seen.append(given))
    assert both(lambda neck: neck.train()) == 1 and seen
    hook.remove()
    assert both(lambda neck: neck.train()) == 1
    graphed.double(), plain.double()
    feats = {m: [x.detach().double().requires_grad_() for x in levels] for m, levels in batch(0).items()}
    for _ in range(2):
        assert_same(step(graphed, feats, None), step(plain, feats, None))


class Normed(torch.nn.Module):
    def __init__(self, layer, channels):
        super().__init__()
        self.layer, self.norm, self.scale = layer, ChannelBatchNorm(channels), 1.0

    def forward(self, x):
        return self.norm(self.layer(x)) * self.scale


def normed_pair() -> tuple[torch.nn.Module, ...]:
    """In double precision: what goes through a norm of few samples differs by much of float32's rounding."""
    necks = pair_of()
    for neck in necks:
        for block in neck.levels:
            block.readout = Normed(block.readout, 5)
        neck.double()
    return necks


def double_batch(seed: int) -> dict[str, list[torch.Tensor]]:
    return {m: [x.detach().double().requires_grad_() for x in levels] for m, levels in batch(seed).items()}


def set_of(neck, part: str, name: str, value) -> None:
    for block in neck.levels:
        setattr(block.get_submodule(part), name, value)


@pytest.mark.parametrize("change", [
    lambda neck: set_of(neck, "", "branch", "shared"),
    lambda neck: set_of(neck, "", "recon_weight", 0.5),
    lambda neck: set_of(neck, "readout.norm", "training", False),
    lambda neck: set_of(neck, "readout.norm", "running_mean", torch.ones(5).double()),
    lambda neck: (set_of(neck, "readout", "scale", 2.0), neck.train(neck.training))],
    ids=["branch", "weight of a loss", "frozen norm", "buffer", "setting of a layer"])
def test_settings_modes_and_buffers_that_change_between_calls_are_seen(change):
    necks = normed_pair()
    for seed in range(6):
        if seed == 3:
            for neck in necks:
                change(neck)
        plain, graphed = ({**step(neck, double_batch(seed), None), **dict(neck.named_buffers())} for neck in necks)
        assert_same(graphed, plain)
    assert Tape.made == 2


def test_activations_computed_again_leave_running_statistics_alone(replays):
    necks = normed_pair()
    for seed in range(3):
        for neck in necks:
            loss = loss_of(neck(double_batch(seed)))
            loss.backward(retain_graph=True)
            loss.backward()
    plain, graphed = (neck.state_dict() | {f"{name}.grad": p.grad for name, p in neck.named_parameters()}
                      for neck in necks)
    assert_same(graphed, plain)
    assert len(replays) == 2


@pytest.mark.parametrize("passes_before", [0, 1])
def test_weights_written_to_before_the_backward_pass_are_refused_as_torch_does(passes_before):
    necks = pair_of()
    for neck in necks:
        step(neck, batch(0), None)
        loss = loss_of(neck(batch(1)))
        for _ in range(passes_before):
            loss.backward(retain_graph=True)
        torch.optim.SGD(neck.parameters(), lr=0.1).step()
        with torch.no_grad():
            for p in neck.parameters():
                p.mul_(0.9)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_weights_that_are_no_parameters_are_not_recorded(replays):
    """As FSDP's views of one flat parameter, made anew for every pass."""
    plain, graphed = pair_of("ConcatFusion")
    flat = torch.nn.Parameter(torch.cat([block.project.weight.detach().flatten() for block in plain.levels]))
    sizes = [block.project.weight.numel() for block in plain.levels]
    for neck in (plain, graphed):
        for block in neck.levels:
            del block.project.weight
    for seed in range(4):
        found = []
        for neck in (plain, graphed):
            flat.grad = None
            for block, part in zip(neck.levels, flat.split(sizes)):
                block.project.weight = part.view(5, -1)
            found.append({**step(neck, batch(seed), None), "flat": flat.grad})
        assert_same(found[1], found[0])
        with torch.no_grad():
            flat.sub_(0.1 * flat.grad)
    assert not replays


def test_a_neck_and_its_recordings_go_with_the_last_name_of_it(replays):
    seen = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):  # what torch imports with the first recording keeps frames
            neck = neck_of(cuda_graphs=True)
            for seed in range(3):
                step(neck, batch(seed), None)
            seen = [weakref.ref(neck), weakref.ref(replays[-1])]
            replays.clear()
            del neck
        assert [of() for of in seen] == [None, None]
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch 2.9")
def test_torchs_newer_switches_of_precision():
    switches = torch.backends.cuda.matmul
    before = switches.fp32_precision
    _, graphed = pair_of("ConcatFusion")
    try:
        for switches.fp32_precision in ("ieee", "tf32"):
            for seed in range(2):
                step(graphed, batch(seed), None)
    finally:
        switches.fp32_precision = before
    assert Tape.made == 2


def test_other_parameters_for_one_call():
    plain, graphed = pair_of()
    with torch.no_grad():
        for _ in range(3):
            graphed(batch(0))
        others = {name: p + 0.1 for name, p in plain.named_parameters()}
        found = torch.func.functional_call(graphed, others, (batch(0),))
        assert_same(values(found), values(torch.func.functional_call(plain, others, (batch(0),))))
        assert_same(values(graphed(batch(0))), values(plain(batch(0))))


def test_every_kind_of_batch_has_a_recording_of_its_own(monkeypatch, replays):
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 3)
    plain, graphed = pair_of()
    plain.eval(), graphed.eval()
    with torch.no_grad():
        for number in (1, 2, 3):
            for _ in range(2):
                assert_same(values(graphed(batch(0, number))), values(plain(batch(0, number))))
        graphed(batch(0, 4))
        with pytest.warns(UserWarning, match="3 kinds of batches have graphs"):
            graphed(batch(0, 4))
        assert Tape.made == len(replays) == 3
        graphed(batch(0, 2))
    assert len(replays) == 4


def test_autocast_is_recorded_with_what_it_casts(replays):
    plain, graphed = pair_of()
    for seed in range(3):
        feats = batch(seed)
        with torch.autocast("cpu", torch.bfloat16):
            mine, theirs = step(graphed, feats, None), step(plain, feats, None)
        assert mine["fused 0"].dtype == torch.bfloat16
        assert_same(mine, theirs)
        assert_same(step(graphed, feats, None), step(plain, feats, None))
    assert len(replays) == 4


@pytest.mark.parametrize("how", ["checkpoint", "compile", "anomaly", "transform", "forward derivatives"])
def test_what_no_graph_serves_runs_as_it_is(how, replays):
    plain, graphed = pair_of("SCFAE" if how != "forward derivatives" else "ConcatFusion")
    for seed in range(3):
        feats = batch(seed)
        if how == "checkpoint":
            loss_of(torch.utils.checkpoint.checkpoint(graphed, feats, use_reentrant=False)).backward()
        elif how == "compile":
            torch.testing.assert_close(
                torch.compile(graphed, backend="eager", fullgraph=True)(feats).fused[0], plain(feats).fused[0])
        elif how == "anomaly":
            with torch.autograd.detect_anomaly(check_nan=False):
                step(graphed, feats, None)
        elif how == "forward derivatives":
            with forward_ad.dual_level(), torch.no_grad():
                dual = {m: [forward_ad.make_dual(x.detach(), x.detach()) for x in feats[m]] for m in feats}
                slopes = [forward_ad.unpack_dual(neck(dual).fused[0]).tangent for neck in (graphed, plain)]
            torch.testing.assert_close(*slopes)
        else:
            torch.func.grad(lambda a, feats=feats: loss_of(graphed(dict(a=[a, feats["a"][1]], b=feats["b"]))))(
                feats["a"][0])
    assert not replays


def test_cached_parametrisations_are_not_recorded(replays):
    found = []
    for neck in pair_of():
        for block in neck.levels:
            torch.nn.utils.parametrizations.weight_norm(block.readout)
        with torch.nn.utils.parametrize.cached():
            sum(loss_of(neck(batch(seed))) for seed in range(3)).backward()
        found.append([p.grad for p in neck.parameters()])
    torch.testing.assert_close(*found)
    assert not replays


def test_modality_dropout_is_drawn_outside(replays):
    plain, graphed = pair_of(modality_dropout=0.7)
    for seed in range(8):
        feats = batch(seed)
        assert_same(step(graphed, feats, None), step(plain, feats, None))
    assert replays and plain.modality_dropout.step == graphed.modality_dropout.step == 8


def test_one_level_and_copies(replays):
    neck = MODELS.build(dict(type="SCFAE", modalities=["a", "b"], in_channels=dict(a=6, b=4), cuda_graphs=True))
    feats = dict(a=torch.randn(3, 6), b=torch.randn(3, 4))
    for _ in range(3):
        out = neck(feats)
        out.fused.sum().backward()
    assert isinstance(out.fused, torch.Tensor) and len(replays) == 2
    other = copy.deepcopy(neck)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    for _ in range(3):
        assert not torch.allclose(other(feats).fused, neck(feats).fused)
    assert neck.state_dict().keys() == other.state_dict().keys()


def test_udml_round_a_recorded_fusion(replays):
    torch.manual_seed(0)
    necks = [
        MODELS.build(dict(type="UDML", modalities=["a", "b"], in_channels=WIDTHS, novelty=None, reads=["variance"],
                          inner=dict(type="SCFAE", out_channels=5, cuda_graphs=graphs))) for graphs in (False, True)]
    necks[1].load_state_dict(necks[0].state_dict())
    for neck in necks:
        neck.udml.set_progress(1.0)
    for seed in range(4):
        found = []
        for neck in necks:
            feats = batch(seed)
            torch.manual_seed(seed)
            found.append(step(neck, feats, None, levels={m: torch.arange(3.0) for m in feats}))
        assert_same(found[1], found[0])
    assert replays


@pytest.mark.parametrize("options, says", [
    (dict(cuda_graphs="yes"), "neck.cuda_graphs must be True or False, got 'yes'"),
    (dict(cuda_graphs=True, missing_fill="mean"), "leave cuda_graphs out"),
    (dict(cuda_graphs=True, level_options=[{}, dict(missing_fill="mean")]), "leave cuda_graphs out"),
    (dict(level_options=[{}, dict(cuda_graphs=True)]), "set neck.cuda_graphs")])
def test_what_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        neck_of(**options)
