"""Every faster path of SCFAE against the slow one written out, and what compilers and exporters make of it."""
from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from fusion.cases import RANKS, features, present
from torch.nn.grad import conv2d_weight
from torch.nn.utils import prune

from mmfusion_plugin.fusion import SCFAE, layers, merging
from mmfusion_plugin.fusion.contract import channel_axis, where_there
from mmfusion_plugin.fusion.layers import ChannelLinear
from mmfusion_plugin.fusion.merging import merge_ends
from mmfusion_plugin.fusion.modes import fused_only

WIDTHS = dict(a=24, b=16)


@pytest.fixture
def onednn_everywhere(monkeypatch):
    """The path of large products for the small ones here."""
    monkeypatch.setattr(layers, "MANY_PRODUCTS", 0)
    monkeypatch.setattr(layers, "WIDE", 0)


needs_onednn = pytest.mark.skipif(layers.ONEDNN is None, reason="this torch has no oneDNN")


def product(x, layer):
    """Channels last, one matrix product, channels back."""
    axis = channel_axis(x)
    return (x.movedim(axis, -1) @ layer.weight.T + layer.bias).movedim(-1, axis)


def gated(x, stage):
    axis = channel_axis(x)
    rows = F.layer_norm(x.movedim(axis, -1), (x.shape[axis],), stage.norm.weight, stage.norm.bias).movedim(-1, axis)
    layer = stage.swiglu
    return product(F.silu(product(rows, layer.gate)) * product(rows, layer.up), layer.down)


def reference(block, V, available):
    """(fused, loss) of two modalities, the default form, written out without any shortcut."""
    axis = channel_axis(V["a"])
    shape = [-1] + [1] * (V["a"].ndim - 1)
    mask = {m: available[m].reshape(shape) for m in V}
    V = {m: torch.where(mask[m], V[m], 0.0) for m in V}
    hat = {m: F.gelu(product(gated(V[m], block.pre[m]), block.P_expand[m])).chunk(2, axis) for m in V}
    fused, loss = [], 0.0
    for m, k in (("a", "b"), ("b", "a")):
        shared = F.gelu(product(torch.where(mask[k], hat[k][0], 0.0), block.P_shared[m]))
        Z = torch.cat([F.gelu(product(hat[m][1], block.P_specific[m])), shared], axis)
        fused.append(gated(Z, block.post[m]))
        cosine = F.cosine_similarity(V[m].detach(), product(fused[-1], block.P_recon[m]), axis, eps=1e-6)
        loss = loss + (1 - cosine).reshape(len(cosine), -1).mean(1)[available[m]].mean()
    return product(torch.cat(fused, axis), block.readout), loss


@pytest.mark.parametrize("missing", [{}, dict(b=[1, 30])])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("with_cp", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_results_and_gradients_equal_the_equations_written_out(rank, missing, with_cp, large, request):
    if large:
        request.getfixturevalue("onednn_everywhere")
    block = SCFAE(list(WIDTHS), WIDTHS, out_channels=20, with_cp=with_cp)
    feats, available = features(WIDTHS, 33, rank), present(WIDTHS, 33, missing)
    found = block(feats, available)
    (found.fused.square().mean() + found.losses["fusion.loss_recon"]).backward()
    ours = {name: p.grad.clone() for name, p in block.named_parameters()}
    ours |= {m: x.grad.clone() for m, x in feats.items()}
    block.zero_grad()
    for x in feats.values():
        x.grad = None
    fused, loss = reference(block, feats, available)
    (fused.square().mean() + loss).backward()
    theirs = {name: p.grad for name, p in block.named_parameters()} | {m: x.grad for m, x in feats.items()}
    torch.testing.assert_close(found.fused, fused, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.losses["fusion.loss_recon"], loss, rtol=1e-4, atol=1e-5)
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    with torch.no_grad():
        torch.testing.assert_close(block(feats, available).fused, fused, rtol=1e-4, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("rank", RANKS)
def test_rows_by_onednn_equal_torchs_own_product(rank, monkeypatch, onednn_everywhere):
    layer, x = ChannelLinear(24, 20), features(dict(x=48), 33, rank)["x"]
    part = x.narrow(channel_axis(x), 24, 24)  # as SCFAE's specific part: a slice of wider rows
    times = torch.randn_like(product(part, layer))

    def all_forms():
        layer.zero_grad()
        x.grad = None
        (layer(part, "silu", times) * times).sum().backward()
        found = [x.grad.clone(), layer.weight.grad.clone(), layer.bias.grad.clone()]
        with torch.no_grad():
            return found + [layer(part), layer(part, "gelu"), layer(part, "silu"), layer(part, times=times),
                            layer(part, "silu", times)]

    fast = all_forms()
    monkeypatch.setattr(layers, "ONEDNN", None)
    for ours, theirs in zip(fast, all_forms()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@needs_onednn
def test_onednns_product_has_a_second_derivative(monkeypatch, onednn_everywhere):
    used = []
    apply = layers.RowsProduct.apply
    monkeypatch.setattr(layers.RowsProduct, "apply", lambda *args: used.append(1) or apply(*args))
    layer, x = ChannelLinear(8, 8), torch.randn(32, 8, requires_grad=True)
    gradient, = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    M = layer.weight.detach()
    expected = 8 * (x.detach() @ M.T + layer.bias.detach()) @ M @ M.T @ M
    assert used
    torch.testing.assert_close(x.grad, expected, rtol=1e-3, atol=1e-4)


@needs_onednn
@pytest.mark.parametrize("rows, weights, pays", [
    (1, 512 * 1365, True), (16, 10**5, False), (300, 64 * 170, False), (300, 512 * 64, True), (4800, 64, True)])
def test_onednn_takes_what_is_worth_its_call(rows, weights, pays):
    assert layers._onednn_pays(rows, weights) is pays


GRADIENTS = {
    "of a sum": lambda N, D: torch.ones(()).expand(N, D), "one row": lambda N, D: torch.randn(1, D).expand(N, D),
    "one column": lambda N, D: torch.randn(N, 1).expand(N, D), "a part": lambda N, D: torch.randn(N, 2 * D)[:, D:],
    "across": lambda N, D: torch.randn(D, N).t()}


@needs_onednn
@pytest.mark.parametrize("wide", [0, 10**9])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_gradient_may_lie_in_memory_as_it_likes(kind, wide, monkeypatch, onednn_everywhere):
    monkeypatch.setattr(layers, "WIDE", wide)
    layer, x = ChannelLinear(24, 20), torch.randn(33, 24, requires_grad=True)
    gradient = GRADIENTS[kind](33, 20)
    layer(x).backward(gradient)
    plain = gradient.contiguous()
    torch.testing.assert_close(x.grad, plain @ layer.weight.detach())
    torch.testing.assert_close(layer.weight.grad, plain.t() @ x.detach())
    torch.testing.assert_close(layer.bias.grad, plain.sum(0))


@needs_onednn
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("D", [20, 28])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_the_gradient_of_a_weight_on_many_rows(kind, D, threads, monkeypatch):
    before, used = torch.get_num_threads(), []
    monkeypatch.setattr(layers, "conv2d_weight", lambda *given: used.append(1) or conv2d_weight(*given))
    N = layers.MANY_ROWS
    layer, x = ChannelLinear(24, D), torch.randn(N, 48, requires_grad=True)
    gradient = GRADIENTS[kind](N, D)
    torch.set_num_threads(threads)
    try:
        layer(x[:, 24:]).backward(gradient)
    finally:
        torch.set_num_threads(before)
    assert bool(used) is (threads > 1)
    torch.testing.assert_close(layer.weight.grad, gradient.t() @ x.detach()[:, 24:], rtol=1e-3, atol=1e-3)
    assert layer.weight.grad.is_contiguous()
    torch.testing.assert_close(x.grad[:, 24:], gradient @ layer.weight.detach(), rtol=1e-4, atol=1e-4)
    assert not x.grad[:, :24].any()


@pytest.mark.parametrize("C", [5, 32, 341])
@pytest.mark.parametrize("N", [8, 9, 16, 480])
def test_sums_over_rows_of_any_number(N, C, monkeypatch):
    monkeypatch.setattr(layers, "MANY_VALUES", 0)
    x = torch.randn(N, C)
    torch.testing.assert_close(layers._sum_of_rows(x), x.sum(0), rtol=1e-4, atol=1e-5)


MERGED = dict(a=8, b=8)


def merges(monkeypatch, block, size=20) -> int:
    """How many modalities' ends one training step on a map merges."""
    used = []
    with monkeypatch.context() as patched:
        patched.setattr(merging, "merge", lambda *given, merge=merging.merge: used.append(1) or merge(*given))
        out = block({m: torch.randn(1, C, size, size) for m, C in MERGED.items()})
    assert out.fused.shape == (1, block.out_channels, size, size)
    return len(used)


def test_merged_linears_count_the_readouts_bias_once():
    lasts, readout = {m: torch.nn.Linear(4, C) for m, C in dict(a=2, b=3).items()}, torch.nn.Linear(5, 6)
    x = {m: torch.randn(3, 4) for m in lasts}
    merged = sum(torch.nn.functional.linear(x[m], *end[:2]) for m, end in merge_ends(lasts, readout, {}).items())
    torch.testing.assert_close(merged, readout(torch.cat([last(x[m]) for m, last in lasts.items()], 1)))


def test_many_positions_pass_the_last_linears_at_once(monkeypatch):
    block = SCFAE(list(MERGED), MERGED, out_channels=8)
    assert merges(monkeypatch, block) == 2
    assert merges(monkeypatch, block, size=2) == 0, "the merged weight would take longer than it saves"
    with fused_only(block):
        assert merges(monkeypatch, block) == 2
    block.recon_weight = 0
    assert merges(monkeypatch, block) == 2


@pytest.mark.parametrize("options", [
    dict(residual=True), dict(recon_reads="received"), dict(head_reads="pre"), dict(head_reads="post_and_input"),
    dict(out_channels=None), dict(width=0.125)])
def test_what_reads_between_the_last_linears_keeps_them_apart(options, monkeypatch):
    assert merges(monkeypatch, SCFAE(list(MERGED), MERGED, **(dict(out_channels=8) | options))) == 0


@pytest.mark.parametrize("which", ["readout", "post.b.swiglu.down", "P_recon.a", "post.a", "post.a.swiglu"])
def test_a_hook_on_a_last_linear_is_called(which, monkeypatch):
    block, seen = SCFAE(list(MERGED), MERGED, out_channels=8), []
    handle = block.get_submodule(which).register_forward_hook(lambda *_: seen.append(1))
    assert merges(monkeypatch, block) == 0 and seen
    handle.remove()
    assert merges(monkeypatch, block) == 2
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert merges(monkeypatch, block) == 0
    finally:
        handle.remove()


def test_pruning_and_adapters_are_not_passed_by(monkeypatch):
    block = SCFAE(list(MERGED), MERGED, out_channels=8)
    prune.l1_unstructured(block.readout, "weight", 0.5)
    assert merges(monkeypatch, block) == 0
    prune.remove(block.readout, "weight")
    assert merges(monkeypatch, block) == 2
    block.readout.bias = type("Adapted", (torch.nn.Parameter,), {})(block.readout.bias.detach())
    assert merges(monkeypatch, block) == 0
    block.readout.bias = torch.nn.Parameter(block.readout.bias.detach())
    torch.nn.utils.parametrizations.weight_norm(block.post["a"].swiglu.down)
    assert merges(monkeypatch, block) == 0


def test_transforms_of_torch_func_go_through(onednn_everywhere):
    block = SCFAE(list(WIDTHS), WIDTHS, out_channels=4)
    feats = {m: x.detach() for m, x in features(WIDTHS, 16, "vector").items()}

    def loss(parameters):
        out = torch.func.functional_call(block, parameters, (feats,))
        return out.fused.square().mean() + out.losses["fusion.loss_recon"]

    found = torch.func.grad(loss)({name: p.detach() for name, p in block.named_parameters()})
    loss(dict(block.named_parameters())).backward()
    for name, p in block.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-5)


def test_checkpointing_keeps_fewer_activations():
    def kept(with_cp):
        block = SCFAE(list(WIDTHS), WIDTHS, with_cp=with_cp)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            block(features(WIDTHS, 33, "map"))
        return sum(sizes)

    assert kept(True) < kept(False) / 2


def test_what_learns_stays_in_the_graph_where_everything_is_there():
    token, x = torch.zeros(1, 3, requires_grad=True), torch.randn(4, 3)
    assert where_there(torch.ones(4, 1, dtype=torch.bool), x, 0.0) is x
    assert where_there(torch.ones(4, 1, dtype=torch.bool), x, token).requires_grad


def _inputs(batch, rank="map"):
    return {m: x.detach() for m, x in features(WIDTHS, batch, rank).items()}, present(WIDTHS, batch, dict(b=[1]))


def test_one_graph_without_breaks_for_any_batch():
    """A fixed batch is compiled in test_scfae.py."""
    block = SCFAE(list(WIDTHS), WIDTHS, out_channels=8)
    torch._dynamo.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(copy.deepcopy(block), fullgraph=True, backend=count, dynamic=True)
    for batch in (20, 33, 21):
        feats, available = _inputs(batch)
        expected, found = block(feats, available), compiled(feats, available)
        torch.testing.assert_close(found.fused, expected.fused, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.losses, expected.losses, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


class Fused(torch.nn.Module):
    """torch.export wants plain containers of tensors."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, feats, available):
        return self.block(feats, available).fused


def exported(rank):
    block = SCFAE(list(WIDTHS), WIDTHS, out_channels=8).eval()
    batch = torch.export.Dim("batch", min=2, max=512)
    along = {m: {0: batch} for m in WIDTHS}
    return block, torch.export.export(Fused(block).eval(), _inputs(20, rank), dynamic_shapes=(along, along))


def test_exported_for_any_batch():
    block, program = exported("map")
    for size in (20, 5):
        feats, available = _inputs(size)
        torch.testing.assert_close(
            program.module()(feats, available), block(feats, available).fused, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", ["vector", "map"])
def test_onnx_gives_the_same_at_any_batch(tmp_path, rank):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    block, program = exported(rank)
    torch.onnx.export(program, dynamo=True).save(tmp_path / "block.onnx")
    session = runtime.InferenceSession(tmp_path / "block.onnx", providers=["CPUExecutionProvider"])
    for size in (20, 5):
        feats, available = _inputs(size, rank)
        inputs = [*feats.values(), *available.values()]
        (found,) = session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs)})
        torch.testing.assert_close(torch.from_numpy(found), block(feats, available).fused, rtol=1e-4, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("grad", [True, False])
def test_a_compiler_that_takes_up_a_single_product_sees_a_linear(grad):
    """torch.compile gives up on a model here and there, and then compiles the parts that it meets in eager code."""
    found = []

    def count(graph, _):
        found.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    layer, x = ChannelLinear(16, 8), torch.randn(4, 16)
    with torch.set_grad_enabled(grad):
        y = torch.compile(layers._by_onednn, backend=count)(x, layer.weight, layer.bias, None)
        if grad:
            y.sum().backward()
    torch.testing.assert_close(y, layer(x))
    assert found and not any("mkldnn" in target for target in found), found
