"""What predictions keep of weights that stay as they are: the same results, and nothing that outlives a change."""
from __future__ import annotations

import copy
import io

import pytest
import torch
from fusion.cases import RANKS, features, present
from torch.nn.utils import parametrizations, prune

from mmfusion_plugin.fusion import FUSIONS, SCFAE, layers, merging
from mmfusion_plugin.fusion.kept import Kept
from mmfusion_plugin.fusion.layers import ChannelLinear
from mmfusion_plugin.fusion.modes import constant_weights, fused_only
from mmfusion_plugin.fusion.udml import UDML

WIDTHS = dict(a=24, b=16)
needs_onednn = pytest.mark.skipif(layers.LAY_OUT is None, reason="this torch lays no weights out for oneDNN")


@pytest.fixture(autouse=True)
def onednn_everywhere(monkeypatch):
    """The path of large products for the small ones here."""
    monkeypatch.setattr(layers, "MANY_PRODUCTS", 0)


@pytest.fixture
def laid_out(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the weights that were laid out, in order."""
    found: list[tuple[int, ...]] = []
    lay_out = layers.LAY_OUT
    monkeypatch.setattr(layers, "LAY_OUT", lambda weight: found.append(tuple(weight.shape)) or lay_out(weight))
    return found


@pytest.fixture
def merged(monkeypatch) -> list[int]:
    found: list[int] = []
    merge = merging.merge
    monkeypatch.setattr(merging, "merge", lambda *given: found.append(1) or merge(*given))
    return found


def equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def blocks() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    found = {name: kind(list(WIDTHS), WIDTHS, out_channels=8).eval() for name, kind in FUSIONS.items()
             if name not in ("SCFAEAuxiliary",)}
    found["SCFAE light"] = SCFAE(list(WIDTHS), WIDTHS, width=0.5, out_channels=8).eval()
    inner = SCFAE(list(WIDTHS), WIDTHS, out_channels=8)
    found["UDML"] = UDML(list(WIDTHS), WIDTHS, inner, reads=["variance"], novelty=None).eval()
    return found


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", blocks())
def test_results_are_the_same(name, rank):
    block = blocks()[name]
    feats, available = features(WIDTHS, rank=rank), present(list(WIDTHS), missing=dict(b=[1]))
    with torch.no_grad():
        before = block(feats, available)
        with constant_weights(block):
            for _ in range(2):
                within = block(feats, available)
                with fused_only(block):
                    alone = block(feats, available).fused
                equal(alone, before.fused)
                equal(within.fused, before.fused)
                torch.testing.assert_close(within.losses, before.losses)
                torch.testing.assert_close(within.diagnostics, before.diagnostics)


@needs_onednn
def test_a_weight_is_laid_out_once_and_not_for_one_row(laid_out):
    layer = ChannelLinear(6, 5)
    with torch.no_grad(), constant_weights(layer):
        layer(torch.randn(1, 6))
        assert not laid_out, "the product of one row reads weights as they are"
        for rows in (2, 3, 40):
            layer(torch.randn(rows, 6))
        layer(torch.randn(2, 6, 4, 4))
    assert laid_out == [(5, 6)]
    with torch.no_grad():
        layer(torch.randn(2, 6))
    layer(torch.randn(2, 6)).sum().backward()
    with constant_weights(layer):
        layer(torch.randn(2, 6)).sum().backward()
    assert laid_out == [(5, 6)] and layer.kept is None


def rewrite(layer: ChannelLinear, how: str) -> None:
    if how == "load_state_dict":
        layer.load_state_dict({name: torch.randn_like(p) for name, p in layer.named_parameters()})
    elif how == "optimiser":
        layer(torch.randn(2, 6)).square().sum().backward()
        torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True).step()
    elif how == "in place":
        with torch.no_grad():
            layer.weight.mul_(2)
    elif how == "another tensor":
        layer.weight.data = torch.randn_like(layer.weight)
    else:
        layer.weight = torch.nn.Parameter(torch.randn_like(layer.weight))


@needs_onednn
@pytest.mark.parametrize("how", ["load_state_dict", "optimiser", "in place", "another tensor", "another parameter"])
def test_a_weight_that_changed_is_laid_out_anew(how, laid_out):
    layer, x = ChannelLinear(6, 5), torch.randn(4, 6)
    with torch.no_grad(), constant_weights(layer):
        old = layer(x)
        with torch.enable_grad():
            rewrite(layer, how)
        new = layer(x)
    assert len(laid_out) == 2 and not torch.allclose(old, new)
    equal(new, x @ layer.weight.detach().T + layer.bias.detach())


def test_merged_linears_follow_their_weights(merged):
    block, feats = SCFAE(list(WIDTHS), WIDTHS, out_channels=8).eval(), features(WIDTHS)
    last = block.post["a"].swiglu.down, block.P_recon["b"], block.readout
    with torch.no_grad(), constant_weights(block):
        for linear in (None, *last):
            if linear is not None:
                linear.bias.add_(1)
            before = len(merged)
            within = [block(feats) for _ in range(2)]
            assert len(merged) == before + 2, "once for each modality"
            block.kept, kept = None, block.kept
            plain = block(feats)
            block.kept = kept
            for one in within:
                equal(one.fused, plain.fused)
                torch.testing.assert_close(one.losses, plain.losses)


def test_merged_linears_end_with_a_training_step():
    torch.manual_seed(0)
    block, feats = SCFAE(list(WIDTHS), WIDTHS, out_channels=8), features(WIDTHS)
    optimiser = torch.optim.AdamW(block.parameters(), lr=0.1, fused=True)
    with constant_weights(block):
        with torch.no_grad():
            old = block(feats).fused
        block(feats).fused.square().sum().backward()
        optimiser.step()
        with torch.no_grad():
            new = block(feats).fused
    assert not torch.allclose(old, new, atol=1e-2)
    with torch.no_grad():
        equal(new, block(feats).fused)


def test_few_rows_pass_merged_linears_where_merging_costs_nothing(merged):
    block, feats = SCFAE(list(WIDTHS), WIDTHS, out_channels=8).eval(), features(WIDTHS)
    with torch.no_grad():
        block(feats)
        assert not merged
        with constant_weights(block):
            block(feats)
            assert len(merged) == 2
            handle = block.readout.register_forward_hook(lambda *_: None)
            block(feats)
    handle.remove()
    with constant_weights(block):
        block(feats)
    assert len(merged) == 2, "neither beside a hook nor where gradients are asked for"


def test_a_wide_readout_keeps_the_linears_apart(merged):
    block = SCFAE(list(WIDTHS), WIDTHS, out_channels=400).eval()  # merged they would be the larger product
    with torch.no_grad(), constant_weights(block):
        block(features(WIDTHS))
    assert not merged


@needs_onednn
def test_what_makes_its_weight_at_every_call_is_left_alone(laid_out):
    pruned, normed, x = ChannelLinear(6, 5), ChannelLinear(6, 5), torch.randn(4, 6)
    prune.l1_unstructured(pruned, "weight", 0.5)
    parametrizations.weight_norm(normed)
    with torch.no_grad(), constant_weights(pruned, normed):
        for layer in (pruned, normed):
            equal(layer(x), x @ layer.weight.T + layer.bias)
    assert not laid_out


def test_copies_and_checkpoints_hold_no_layouts():
    block, feats = SCFAE(list(WIDTHS), WIDTHS, out_channels=8).eval(), features(WIDTHS)
    with torch.no_grad(), constant_weights(block):
        expected, file = block(feats).fused, io.BytesIO()
        torch.save(block, file)
        file.seek(0)
        with torch.serialization.safe_globals([Kept, *{type(part) for part in block.modules()}]):
            loaded = torch.load(file, weights_only=True)
        for other in (copy.deepcopy(block), loaded):
            equal(other(feats).fused, expected)
            other.readout.bias.zero_()
            assert not torch.allclose(other(feats).fused, expected)
        equal(block(feats).fused, expected)
        assert list(block.state_dict()) == list(SCFAE(list(WIDTHS), WIDTHS, out_channels=8).state_dict())


def test_it_ends_with_the_block_however_that_ends():
    block = SCFAE(list(WIDTHS), WIDTHS, out_channels=8).eval()
    with pytest.raises(KeyError), constant_weights(block):
        outer = block.kept
        with constant_weights(block):
            assert block.kept is not outer and isinstance(block.readout.kept, Kept)
        assert block.kept is outer
        raise KeyError
    assert block.kept is None and block.readout.kept is None


def test_inference_mode_before_and_after():
    block, feats = SCFAE(list(WIDTHS), WIDTHS, out_channels=8).eval(), features(WIDTHS)
    with torch.no_grad():
        expected = block(feats).fused
    with constant_weights(block):
        with torch.inference_mode():
            equal(block(feats).fused, expected)
        with torch.no_grad():
            equal(block(feats).fused, expected)
    with torch.inference_mode():
        born = SCFAE(list(WIDTHS), WIDTHS, out_channels=8).eval()
        born.load_state_dict(block.state_dict())
        with constant_weights(born):
            for _ in range(2):
                equal(born(feats).fused, expected)
            born.readout.bias.add_(1)  # uncounted: nothing may be kept of it
            equal(born(feats).fused, expected + 1)


def test_other_types_are_served_too():
    feats = {m: x.detach().double() for m, x in features(WIDTHS).items()}
    block = SCFAE(list(WIDTHS), WIDTHS, out_channels=8).double().eval()
    with torch.no_grad():
        expected = block(feats).fused
        with constant_weights(block):
            torch.testing.assert_close(block(feats).fused, expected)
    block.float()
    feats = {m: x.float() for m, x in feats.items()}
    with torch.no_grad(), constant_weights(block), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(block(feats).fused.double(), expected, rtol=0.1, atol=0.05)


def test_exporters_see_the_layers_as_they_are():
    block, feats = SCFAE(list(WIDTHS), WIDTHS, out_channels=8).eval(), features(WIDTHS)

    class Fused(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, a, b):
            return self.block(dict(a=a, b=b)).fused

    given = tuple(x.detach() for x in feats.values())
    with torch.no_grad(), constant_weights(block):
        expected = block(feats).fused  # kept by now
        program = torch.export.export(Fused(), given)
        equal(program.module()(*given), expected)
    assert not any("mkldnn" in str(node.target) for node in program.graph.nodes)


def test_compilers_do_not_start_anew_with_each_validation():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    block, feats = SCFAE(list(WIDTHS), WIDTHS, out_channels=8), features(WIDTHS)
    compiled, numbers = torch.compile(block, backend=backend, fullgraph=True), []
    for _ in range(4):
        compiled(feats).fused.sum().backward()
        with torch.no_grad(), constant_weights(block):
            equal(compiled(feats).fused, block(feats).fused)
        numbers.append(len(graphs))
    assert numbers[1] == numbers[3]
