"""UDML as a whole: round every fusion, at every rank, in each stage."""
from __future__ import annotations

import copy
import math

import pytest
import torch
from cases import RANKS, features, present

from mmfusion_plugin.fusion import FUSIONS, FusionOutput
from mmfusion_plugin.fusion.input_statistics import NUM_STATISTICS
from mmfusion_plugin.fusion.probabilistic import kl_to_noise
from mmfusion_plugin.fusion.udml import UDML
from mmfusion_plugin.fusion.udml_options import PRESETS

WIDTHS = dict(a=8, b=12)
AB = tuple(WIDTHS)


class Catch(torch.nn.Module):
    """An inner fusion that keeps what it gets."""

    def forward(self, feats, available):
        self.feats, self.available = feats, available
        return FusionOutput(torch.cat([feats[m] for m in AB], 1))


FEATURES_ALONE = dict(reads=["variance"], novelty=None)  # nothing of the inputs is handed on


def udml(inner=None, widths=WIDTHS, **options):
    torch.manual_seed(0)
    names = list(widths)
    if inner is None:
        inner = FUSIONS["SumFusion"](names, widths, out_channels=4)
    return UDML(names, widths, inner, **{**FEATURES_ALONE, **options})


def of_inputs(batch=4):
    return {m: torch.randn(batch, NUM_STATISTICS) for m in AB}


def levels(batch=4, **given):
    return {m: torch.tensor(given.get(m, [0.0] * batch)) for m in AB}


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("preset", PRESETS)
def test_any_fusion_at_any_rank_trains_every_parameter_in_both_stages(name, rank, preset):
    preset_s = {key: PRESETS[preset][key] for key in FEATURES_ALONE}
    model = udml(FUSIONS[name](AB, WIDTHS, out_channels=8), preset=preset, kl_weight=0.01, **preset_s)
    for progress in (0.0, 0.8):
        model.zero_grad()
        model.set_progress(progress)
        out = model(features(WIDTHS, rank=rank), present(AB), levels(a=[0.0, 3.0, 0.0, 9.0]), statistics=of_inputs())
        (out.fused.square().mean() + sum(out.losses.values())).backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None]
        assert {"fusion.loss_noise", "fusion.loss_kl"} <= set(out.losses)


def test_a_pyramid_has_one_estimate_of_noise_and_one_weight_for_all_levels():
    widths = dict(a=[4, 8], b=[6, 10])

    class Pyramid(torch.nn.Module):
        def forward(self, feats, available):
            self.feats = feats
            return FusionOutput(tuple(torch.cat([feats[m][i] for m in AB], 1) for i in range(2)))

    inner = Pyramid()
    model = udml(inner, widths, form="residual").eval()
    feats = {m: tuple(torch.randn(3, C, 4, 4) for C in widths[m]) for m in AB}
    model.set_progress(0.0)
    model(feats)
    still = inner.feats
    model.set_progress(1.0)
    out = model(feats)
    for m in AB:
        ratios = [(inner.feats[m][i] / still[m][i]).flatten(1) for i in range(2)]
        weight = ratios[0][:, :1] * 2 - 1  # (x + w x) / (x + 1 x)
        torch.testing.assert_close(weight.mean(), out.diagnostics[f"fusion.weight.{m}"], atol=1e-4, rtol=1e-4)
        for ratio in ratios:
            torch.testing.assert_close(ratio, ratios[0][:, :1].expand_as(ratio), atol=1e-3, rtol=1e-3)


def test_the_noisier_modality_weighs_less_and_the_dependency_corrects_it():
    inner = Catch()
    model = udml(inner, quality="given", law="inverse_square", temperature=1.0, embedding=False).eval()
    model.set_progress(1.0)
    x = {m: torch.ones(2, C) for m, C in WIDTHS.items()}
    noise = dict(a=torch.tensor([2.0, 1.0]), b=torch.tensor([1.0, 1.0]))
    model(x, None, noise)
    torch.testing.assert_close(inner.feats["a"][:, 0], torch.tensor([2 * (1 / 4) / (1 / 4 + 1), 1.0]))
    everyone = present(AB, 2)
    model.dependency.update(dict(a=torch.full((2, 1), 1.0), b=torch.full((2, 1), 4.0)), everyone)
    model(x, None, noise)
    torch.testing.assert_close(inner.feats["a"][1, 0], torch.tensor(2 * 1 / (1 + 1 / 4)))


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(("name", "options"), [
    *((name, dict(norm="layer")) for name in FUSIONS), ("SCFAE", dict(width=0.5)),
    ("SCFAE", dict(residual=True, head_reads="post_and_input")), ("SCFAE", dict(norm=None))])
def test_no_norm_takes_the_weights_away(name, options, rank):
    torch.manual_seed(0)
    block = FUSIONS[name](AB, WIDTHS, out_channels=8, **options).eval()
    feats = features(WIDTHS, rank=rank)
    available = present(AB, missing=dict(b=[0]))

    def read(a, b):
        weights = {m: torch.full((4, *[1] * (feats[m].ndim - 1)), w) for m, w in dict(a=a, b=b).items()}
        return block(feats, available, weights).fused

    even = block(feats, available).fused
    torch.testing.assert_close(read(1.0, 1.0), even)
    one, other = read(0.2, 1.8)[1:], read(1.8, 0.2)[1:]
    change = (one - other).norm() / (even[1:] - even[1:].mean(0)).norm()
    assert change > (0.005 if options.get("norm", "layer") is None else 0.1)
    torch.testing.assert_close(read(1.0, 0.3)[0], even[0], msg="what stands in for a missing modality stays")


def test_a_method_that_takes_no_weights_reads_weighted_features():
    class Plain(FUSIONS["ConcatFusion"]):
        def fuse(self, feats, available):
            return FusionOutput(torch.cat([feats[m] for m in AB], 1))

    feats, weights = features(WIDTHS), dict(a=torch.full((4, 1), 0.5), b=torch.full((4, 1), 1.5))
    fused = Plain(AB, WIDTHS)(feats, present(AB, missing=dict(a=[2])), weights).fused
    expected = torch.cat([feats["a"] * 0.5, feats["b"] * 1.5], 1)
    expected[2, :8] = 0
    torch.testing.assert_close(fused, expected)


def test_weights_are_shares_of_what_modality_dropout_leaves():
    options = dict(quality="given", embedding=False, dependency=False, law="inverse", temperature=1.0)
    inner = Catch()
    model = udml(inner, **options, modality_dropout=0.5)
    model.set_progress(1.0)
    out = model(features(WIDTHS, batch=64), None, levels(64, a=[9.0] * 64))
    left = {m: inner.available[m] for m in AB}
    both = left["a"] & left["b"]
    assert both.any() and not left["a"].all() and not left["b"].all()
    weight = {m: out.per_sample[f"fusion.weight.{m}"] for m in AB}
    torch.testing.assert_close(weight["a"][both], torch.full((int(both.sum()),), 0.2))
    for m in AB:
        assert weight[m][left[m] & ~both].eq(1).all() and weight[m][~left[m]].eq(0).all()
    torch.testing.assert_close(out.diagnostics["fusion.weight.a"], weight["a"].sum() / left["a"].sum())
    model.eval()
    lone = model(features(WIDTHS), present(AB, missing=dict(b=[0, 1, 2, 3])), levels(a=[9.0] * 4))
    assert lone.per_sample["fusion.weight.a"].eq(1).all(), "as in a test"
    with pytest.raises(ValueError, match="give modality_dropout to UDML"):
        udml(FUSIONS["SumFusion"](AB, WIDTHS, modality_dropout=0.3))


def test_what_dropout_had_drawn_is_read_from_older_checkpoints():
    model = udml(Catch(), modality_dropout=0.5)
    model.modality_dropout.step.fill_(7)
    older = {name.replace("modality_dropout", "inner.modality_dropout"): x for name, x in model.state_dict().items()}
    again = udml(Catch(), modality_dropout=0.5)
    again.load_state_dict(older)
    assert again.modality_dropout.step == 7


@pytest.mark.parametrize("rank", RANKS)
def test_batch_statistics_are_those_of_what_is_there(rank):
    some, alone = (udml(preset="released", kl_weight=0.1) for _ in range(2))
    feats = features(WIDTHS, rank=rank, batch=6)
    out = some(feats, present(AB, 6, missing=dict(a=[1, 4])), levels(6))
    (out.fused.square().mean() + sum(out.losses.values())).backward()
    assert not [n for n, p in some.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    there = [0, 2, 3, 5]
    alone({m: x[there] for m, x in feats.items()}, None, levels(4))
    for name, x in some.state_dict().items():
        if name.startswith("embed.a") and ("running" in name or "tracked" in name):
            torch.testing.assert_close(x, alone.state_dict()[name], msg=name)
    before = copy.deepcopy(some.embed["a"].state_dict())
    some(feats, present(AB, 6, missing=dict(a=range(6))), levels(6))
    assert all(torch.equal(x, before[name]) for name, x in some.embed["a"].state_dict().items())


def test_a_batch_of_one_vector_is_normalised_by_running_statistics():
    model = udml(preset="released")
    model(features(WIDTHS), None, levels())
    before = copy.deepcopy(model.embed.state_dict())
    out = model({m: x[:1] for m, x in features(WIDTHS).items()}, None, levels(1))
    assert out.fused.isfinite().all()
    assert all(torch.equal(x, before[name]) for name, x in model.embed.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_cast_to_half_precision_trains_and_predicts(dtype):
    model = UDML(AB, WIDTHS, FUSIONS["SCFAE"](AB, WIDTHS)).to(dtype)
    model.set_progress(1.0)
    for training in (True, True, True, False):
        model.train(training)
        feats = {m: x.to(dtype) for m, x in features(WIDTHS).items()}
        out = model(feats, None, levels() if training else None, statistics=of_inputs())
        assert out.fused.dtype == dtype and out.fused.isfinite().all()


def test_synchronised_norms_put_in_place_take_the_same_channels():
    model = udml(preset="released").eval()
    feats = features(WIDTHS, rank="sequence")
    expected = model(feats).fused
    torch.testing.assert_close(torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)(feats).fused, expected)


@pytest.mark.parametrize("missing", [[1], [0, 1, 3], [0, 1, 2, 3]])
@pytest.mark.parametrize("rank", ["vector", "sequence", "map"])
def test_synchronised_norms_read_the_samples_that_are_there(rank, missing):
    feats, available = features(WIDTHS, rank=rank), present(AB, missing=dict(b=missing))
    own = udml(embedding=True, preset="released")
    put = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(own))
    outs = []
    for model in (own, put):
        torch.manual_seed(1)
        outs.append(model({m: x + 5 for m, x in feats.items()}, available))
        outs[-1].fused.square().mean().backward()
    torch.testing.assert_close(outs[1].fused, outs[0].fused, rtol=1e-4, atol=1e-5)
    for name, parameter in own.named_parameters():
        torch.testing.assert_close(put.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-4)
    for name, buffer in own.named_buffers():
        torch.testing.assert_close(put.get_buffer(name), buffer, rtol=1e-4, atol=1e-5)


def test_a_compiled_inner_fusion_keeps_its_weights():
    def spread(wrap):
        torch.manual_seed(0)
        inner = wrap(FUSIONS["SCFAE"](AB, WIDTHS, out_channels=4))
        model = UDML(AB, WIDTHS, inner, quality="given", dependency=False, weights_from=0.0, **FEATURES_ALONE).eval()
        model.set_progress(1.0)
        torch.manual_seed(1)
        feats = features(WIDTHS)
        return [model(feats, None, levels(a=[s] * 4)).fused for s in (1.0, 11.0)]

    plain, compiled = spread(lambda inner: inner), spread(lambda inner: torch.compile(inner, backend="eager"))
    assert (plain[0] - plain[1]).abs().max() > 1e-3
    torch.testing.assert_close(compiled, plain)


def test_an_inner_fusion_has_to_say_what_it_takes():
    class Anything(torch.nn.Module):
        def forward(self, *args, **kwargs):
            raise AssertionError("never called")

    with pytest.raises(TypeError, match=r"Anything.forward takes .*name its parameters"):
        UDML(AB, WIDTHS, Anything())


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("rank", ["vector", "map"])
def test_an_empty_batch_gives_an_empty_one(name, rank):
    out = FUSIONS[name](AB, WIDTHS, out_channels=4).eval()(features(WIDTHS, batch=0, rank=rank)).fused
    assert out.shape[0] == 0 and out.shape[1] == 4


def test_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"weights of 'a' have shape \(4,\), expected that of its features, \(4, 4\)"):
        FUSIONS["SumFusion"](AB, dict(a=4, b=4))(
            features(dict(a=4, b=4)), None, {m: torch.ones(4) for m in AB})


EXPORTED = {
    "stage before the weights": ("vector", {}, 0.0),
    "default": ("vector", {}, 1.0),
    "released": ("map", dict(preset="released"), 1.0),
    "distance": ("map", dict(novelty=["input", "distance"]), 1.0),
    "per position": ("map", dict(per_position=True), 1.0),
}
NO_ONNX = ("stage before the weights", "distance")  # the latter's running minima have no operator there
# before it an exporter cannot be told from a compiler, and ONNX gets the statistics' eigenvalues to find
TELLS_EXPORTERS = pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch 2.7 tells an exporter")


class Fused(torch.nn.Module):
    """Exporters want tensors out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, feats, available, statistics):
        return self.model(feats, available, statistics=statistics).fused


@TELLS_EXPORTERS
@pytest.mark.parametrize("case", EXPORTED)
def test_a_trained_model_is_exported_for_any_batch(case, tmp_path):
    rank, options, share = EXPORTED[case]
    torch.manual_seed(0)
    model = UDML(AB, WIDTHS, FUSIONS["SCFAE"](AB, WIDTHS, out_channels=4), **options)

    def batch(size):
        feats = {m: x.detach() for m, x in features(WIDTHS, size, rank).items()}
        grid = model.grid(feats) or ()
        return feats, present(AB, size, missing=dict(b=[1])), {m: torch.randn(size, NUM_STATISTICS, *grid) for m in AB}

    for _ in range(20):
        feats, available, statistics = batch(16)
        model(feats, available, levels(16, a=torch.randint(0, 3, (16,)).float().tolist()), statistics=statistics)
    fused = Fused(model.eval())
    model.set_progress(share)
    fused(*batch(4))
    along = {m: {0: torch.export.Dim("batch", min=2, max=512)} for m in AB}
    program = torch.export.export(fused, batch(4), dynamic_shapes=(along, along, along))
    if model.known is not None:  # what was whitened by before the statistics moved on is not taken
        model.train()(*batch(4)[:2], levels(), statistics=batch(4)[2])
        with pytest.raises(Exception, match="call the model once before exporting"):
            torch.export.export(fused.eval(), batch(4))
        fused(*batch(4))
        program = torch.export.export(fused, batch(4), dynamic_shapes=(along, along, along))
    inputs = batch(7)
    torch.testing.assert_close(program.module()(*inputs), fused(*inputs))
    if case in NO_ONNX:
        return
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.onnx.export(program, dynamo=True).save(tmp_path / "udml.onnx")
    session = runtime.InferenceSession(tmp_path / "udml.onnx", providers=["CPUExecutionProvider"])
    # what the model does not read is no input of the graph
    given = {f"{what}_{m}": x[m].numpy() for what, x in zip(("feats", "available", "statistics"), inputs) for m in AB}
    (found,) = session.run(None, {i.name: given[i.name] for i in session.get_inputs()})
    torch.testing.assert_close(torch.from_numpy(found), fused(*inputs), rtol=1e-4, atol=1e-5)


@TELLS_EXPORTERS
def test_what_an_exporter_cannot_read_is_asked_for():
    model = UDML(AB, WIDTHS, FUSIONS["SCFAE"](AB, WIDTHS, out_channels=4)).eval()
    inputs = features(WIDTHS), present(AB), of_inputs()
    model(*inputs[:2], statistics=inputs[2])
    torch.export.export(Fused(model), inputs)
    model.load_state_dict(model.state_dict())
    with pytest.raises(Exception, match="call the model once before exporting"):
        torch.export.export(Fused(model), inputs)
    assert not model.dynamic  # knows the stage again, and not yet its statistics
    with pytest.raises(Exception, match="takes the statistics as they are: call the model once before exporting"):
        torch.export.export(Fused(model), inputs)


def test_a_repeated_forward_pass_is_refused():
    from torch.utils.checkpoint import checkpoint

    dropping = FUSIONS["ConcatFusion"](AB, WIDTHS, out_channels=4, modality_dropout=0.5)
    learning = FUSIONS["ConcatFusion"](AB, WIDTHS, out_channels=4, missing_fill="mean")
    for module, words in ((dropping, "modality_dropout is run again"), (learning, "missing_fill='mean' is run again"),
                          (udml(), "UDML is run again")):
        feats = {m: x.requires_grad_() for m, x in features(WIDTHS).items()}
        fused = checkpoint(lambda module=module, feats=feats: module(feats).fused, use_reentrant=False)
        with pytest.raises(RuntimeError, match=words):
            fused.sum().backward()


def test_names_that_differ_are_named():
    model = udml().eval()
    feats = features(WIDTHS)
    with pytest.raises(ValueError, match=r"neck.modalities is \['a', 'b'\], the batch holds \['a', 'c'\]"):
        model(dict(a=feats["a"], c=feats["b"]))
    with pytest.raises(ValueError, match="levels holds"):
        model(feats, None, dict(a=torch.zeros(4)))
    with pytest.raises(ValueError, match="contain 'loss'"):
        udml(widths=dict(gloss=4, b=4))


def test_before_its_stage_and_without_a_quality_all_weights_are_one():
    for options in (dict(quality=None), dict(weights_from=0.6)):
        inner = Catch()
        model = udml(inner, embedding=False, form="multiplicative", **options).eval()
        x = features(WIDTHS)
        model(x)
        assert all(torch.equal(inner.feats[m], x[m]) for m in AB)
    model.set_progress(0.6)
    assert model.dynamic


def test_learned_curves_have_a_gradient_before_their_stage_too():
    model = udml(law="learned_monotone")
    model(features(WIDTHS), None, levels()).fused.mean().backward()
    assert all(p.grad is not None for p in model.weigh.parameters())


def test_of_several_novelties_the_largest_counts():
    def everyone(value):
        return dict.fromkeys(AB, torch.full((4,), value))

    model = udml(novelty=["input", "distance"]).eval()
    model.known.forward = lambda *_: (everyone(1.0), everyone(50.0))
    model.novelty.forward, model.novelty.level = lambda *_: everyone(3.0), lambda _: everyone(2.0)
    found = model(features(WIDTHS), statistics=of_inputs()).per_sample
    assert found["fusion.novelty.a"].eq(3).all() and found["fusion.level.a"].eq(50).all()


def test_a_missing_modality_leaves_no_trace_even_as_nan():
    model = udml().eval()
    model.set_progress(1.0)
    x = {m: v.detach() for m, v in features(WIDTHS).items()}
    here = present(AB, missing=dict(b=[1, 3]))
    expected = model(x, here).fused
    y = dict(x, b=x["b"].clone())
    y["b"][[1, 3]] = torch.nan
    assert torch.equal(model(y, here).fused, expected) and expected.isfinite().all()


def test_a_batch_in_which_a_modality_is_missing_everywhere_is_finite():
    model = udml(preset="default", kl_weight=0.1)
    model.set_progress(1.0)
    out = model(features(WIDTHS), present(AB, missing=dict(b=[0, 1, 2, 3])), levels())
    total = out.fused.mean() + sum(out.losses.values())
    total.backward()
    assert total.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_task_s_loss_does_not_teach_the_estimator():
    model = udml(detach=False)
    model.set_progress(1.0)
    model(features(WIDTHS), None, levels()).fused.mean().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.estimate.parameters())


def test_the_kl_is_a_mean_over_modalities_and_the_samples_that_have_them():
    model = udml(kl_weight=0.5, norm="layer")
    x, level = features(WIDTHS), levels(a=[0.0, 3.0, 0.0, 9.0], b=[2.0, 0.0, 5.0, 0.0])
    here = present(AB, missing=dict(b=[0, 2]))
    terms = [kl_to_noise(*model.embed[m][0](x[m]), level[m].clamp(min=1))[here[m]].mean() for m in AB]
    torch.testing.assert_close(model(x, here, level).losses["fusion.loss_kl"], 0.5 * torch.stack(terms).mean())


def test_a_quality_of_variance_is_the_mean_sigma_of_all_levels():
    widths = dict(a=[4, 8], b=[4, 8])
    model = udml(FUSIONS["SumFusion"](AB, dict(a=4, b=4)), widths, quality="variance")
    log_variances = [torch.randn(2, C, 3, 3) for C in widths["a"]]
    expected = torch.stack([(0.5 * x).exp().mean((1, 2, 3)) for x in log_variances]).mean(0)
    found = model._quality(dict.fromkeys(AB, log_variances), None, None, None, None)
    torch.testing.assert_close(found["a"], expected)


@pytest.mark.parametrize("rank", RANKS)
def test_without_an_embedding_the_estimator_reads_the_features_own_spread(rank):
    model = udml(embedding=False).eval()
    x = {m: v.detach() for m, v in features(WIDTHS, rank=rank).items()}
    rows = (x["a"] if rank in ("vector", "sequence") else x["a"].movedim(1, -1)).reshape(4, -1, 8)
    over = rows - rows.mean(2 if rank == "vector" else 1, keepdim=True)
    expected = model.estimate["a"]([over.square().mean(1).log()])
    torch.testing.assert_close(model(x).per_sample["fusion.noise.a"], expected)


def test_a_test_whose_noise_is_known_teaches_nothing():
    model = udml(reads=["variance", "input"], novelty=["input", "distance"])
    known = levels(a=[0.0, 3.0, 0.0, 9.0])
    for _ in range(3):
        model(features(WIDTHS), None, known, statistics=of_inputs())
    before = copy.deepcopy(model.eval().state_dict())
    model(features(WIDTHS), None, known, statistics=of_inputs())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_stage_dependency_and_steps_are_saved():
    model = udml()
    model.set_progress(0.7)
    due = [model.dependency_due() for _ in range(12)]
    assert [i for i, d in enumerate(due) if d] == [0, 10]
    model.dependency.update(dict(a=torch.ones(4, 2), b=torch.ones(4, 2) * 3), present(AB))
    again = udml()
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    assert again.dynamic and int(again.step) == 12 and again.dependency()["b"] == 6
    assert not again.eval().dependency_due()


def test_the_estimator_starts_within_the_span_and_learns_before_the_dynamic_weights():
    model = udml(span=20.0)
    assert not model.dynamic
    out = model(features(WIDTHS, batch=64), None, {m: torch.full((64,), 3.0) for m in AB})
    assert all(5 < out.diagnostics[f"fusion.noise.{m}"] < 15 for m in AB)
    out.losses["fusion.loss_noise"].backward()
    assert all(p.grad.any() for p in model.estimate.parameters())
    released = udml(preset="released", span=20.0)(features(WIDTHS, batch=64))
    assert all(released.diagnostics[f"fusion.noise.{m}"] < 2 for m in AB), "softplus in levels, as published"


@pytest.mark.parametrize(("preset", "target"), [("default", 0.0), ("released", 1.0)])
def test_a_linear_estimate_learns_0_of_a_clean_sample_and_a_softplus_the_clean_level(preset, target):
    out = udml(preset=preset)(features(WIDTHS), None, levels())
    errors = [(out.per_sample[f"fusion.noise.{m}"] - target).square().mean() for m in AB]
    torch.testing.assert_close(out.losses["fusion.loss_noise"], 0.1 * torch.stack(errors).mean())


def test_the_weights_read_no_less_than_a_clean_sample_s_level():
    model = udml(clean_level=2.0).eval()
    for part in model.estimate.values():
        torch.nn.init.constant_(part.mlp[-1].bias, -30.0)
    found = model(features(WIDTHS)).per_sample
    assert found["fusion.noise.a"].max() < 0 and found["fusion.level.a"].eq(2).all()


def test_without_levels_the_estimator_gets_a_gradient_of_zero():
    model = udml()
    out = model(features(WIDTHS))
    assert out.losses["fusion.loss_noise"].item() == 0
    out.losses["fusion.loss_noise"].backward()
    assert all(p.grad is not None for p in model.estimate.parameters())


@pytest.mark.parametrize(("options", "error", "words"), [
    (dict(preset="best"), ValueError, "preset"), (dict(quality="guess"), ValueError, "quality"),
    (dict(form="sum"), ValueError, "form"), (dict(noise_unit="dB"), ValueError, "noise_unit"),
    (dict(noise_weight=-1), ValueError, "noise_weight"),
    (dict(clean_level=0), ValueError, "clean_level"), (dict(weights_from=2), ValueError, "weights_from"),
    (dict(dependency_every=0), ValueError, "dependency_every"), (dict(speed=1), TypeError, "speed"),
    (dict(quality="variance", embedding=False), ValueError, "embedding=True")])
def test_wrong_options_are_named(options, error, words):
    with pytest.raises(error, match=words):
        udml(**options)


def test_the_oracle_needs_the_levels_and_one_modality_is_not_enough():
    oracle = udml(quality="given")
    oracle(features(WIDTHS))  # noise has not begun: nothing is weighted, nothing asked
    oracle.set_progress(0.6)
    with pytest.raises(ValueError, match="needs the true noise levels"):
        oracle(features(WIDTHS))
    with pytest.raises(ValueError, match="at least two"):
        udml(Catch(), dict(a=3))
    with pytest.raises(ValueError, match="share of training"):
        udml().set_progress(1.5)


def test_each_samples_own_dependency_and_energy_weigh():
    available = dict(a=torch.tensor([True, True, False]), b=torch.ones(3, dtype=torch.bool))
    alpha = dict(a=torch.tensor([1.0, 4.0, 1.0], requires_grad=True), b=torch.tensor([3.0, 1.0, 1.0]))
    energies = dict(a=torch.tensor([-3.0, 2.0, 0.0]), b=torch.tensor([-1.0, 1.0, 0.0]))
    neck = udml(Catch(), quality="energy", law="exponential", temperature=2.0, dependency="per_sample",
                form="multiplicative", embedding=False)
    neck.set_progress(1.0)
    x = features(WIDTHS, batch=3)
    neck(x, available, alpha=alpha, energies=energies)
    for i in range(2):
        odds = {m: math.sqrt(math.exp(-float(energies[m][i])) / alpha[m][i].item()) for m in AB}
        for m in AB:
            torch.testing.assert_close(neck.inner.feats[m][i], 2 * odds[m] / sum(odds.values()) * x[m][i])
    torch.testing.assert_close(neck.inner.feats["b"][2], x["b"][2])
    neck.inner.feats["a"].sum().backward()
    assert alpha["a"].grad is None, "the task's loss must not teach a prediction to be small"
    with pytest.raises(ValueError, match="dependency='per_sample' needs alpha"):
        neck(x, available, energies=energies)
    with pytest.raises(ValueError, match="quality='energy' needs the energies"):
        neck(x, available, alpha=alpha)
    with pytest.raises(ValueError, match="quality='energy' needs law='exponential'"):
        udml(quality="energy")
    with pytest.raises(ValueError, match="dependency must be True, False or 'per_sample'"):
        udml(dependency="sample")


@pytest.mark.parametrize("quality", ["estimated", "variance"])
def test_extreme_features_under_bfloat16_stay_finite(quality):
    """exp(10) squared leaves float16 and loses everything in bfloat16; the weights are made of logarithms."""
    neck = udml(quality=quality, preset="released", law="inverse_square", norm="layer", variance_norm=None,
                kl_weight=1.0)
    neck.set_progress(1.0)
    x = {m: (torch.randn(4, C) * 1e4).requires_grad_() for m, C in WIDTHS.items()}
    with torch.autocast("cpu", torch.bfloat16):
        out = neck(x, None, levels(a=[11.0, 0.0, 3.0, 1.0]))
    total = out.fused.float().mean() + sum(out.losses.values())
    total.backward()
    assert total.isfinite() and all(value.isfinite() for value in out.diagnostics.values())
    assert all(p.grad.isfinite().all() for p in neck.parameters() if p.grad is not None)


def test_it_moves_between_types_like_any_module():
    neck = udml().double()  # by way of Module._apply, a name that is taken
    assert neck({m: x.double() for m, x in features(WIDTHS).items()}).fused.dtype == torch.float64


def test_the_same_seed_builds_the_same_model_with_and_without_an_estimator():
    torch.manual_seed(3)
    with_one = UDML(AB, WIDTHS, Catch())
    head = torch.nn.Linear(4, 2)
    torch.manual_seed(3)
    without = UDML(AB, WIDTHS, Catch(), quality=None)
    torch.testing.assert_close(torch.nn.Linear(4, 2).weight, head.weight, atol=0, rtol=0)
    shared = without.state_dict()
    assert all(torch.equal(x, with_one.state_dict()[name]) for name, x in shared.items()) and with_one.estimate
