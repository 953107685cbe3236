"""What only a GPU can show: the same results there, nobody waiting for it, and fusion as a CUDA graph.

    MMFUSION_GPU_TESTS=1 python -m pytest tests/test_cuda.py        # tools/run_tests.sh does it where there is one
"""
from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from fusion.cases import RANKS, features, present
from speed_cases import TASKS, BlockCase, ModelCase
from speed_floor import graphed

from mmfusion_plugin.fusion import FUSIONS, constant_weights, fused_only
from mmfusion_plugin.fusion.input_statistics import NUM_STATISTICS
from mmfusion_plugin.fusion.udml import UDML
from mmfusion_plugin.models.samples import NonFiniteReports

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or hidden: set MMFUSION_GPU_TESTS=1"),
    pytest.mark.usefixtures("full_precision")]

WIDTHS = dict(a=12, b=20)
FORMS = {
    "SCFAE": {}, "SCFAE literal": dict(norm=None), "SCFAE received": dict(recon_reads="received"),
    "SCFAE mse": dict(recon_metric="mse", detach_target=False), "SCFAE token": dict(missing_fill="token"),
    "SCFAE mean": dict(missing_fill="mean"), "SCFAE light": dict(width=0.5, with_cp=True),
    "SCFAE own": dict(width=12, missing_neighbour="own"),
    "SCFAE bypass": dict(residual=True, head_reads="post_and_input"),
    "ConcatFusion": {}, "SumFusion": {}, "MLPFusion": {}, "GatedFusion": {}, "FiLMFusion": {},
    "CrossAttentionFusion": {}}
UDMLS = {"default": {}, "released": dict(preset="released"), "positions": dict(per_position=True),
         "PE": dict(quality="variance", law="exponential"), "features": dict(novelty=["input", "distance"])}
MODELS = [*FORMS, *(f"UDML {name}" for name in UDMLS)]


def model_of(form: str) -> torch.nn.Module:
    """One of :data:`MODELS`."""
    if form.startswith("UDML"):
        return udml_of(form.removeprefix("UDML "))
    return FUSIONS[form.split()[0]](list(WIDTHS), WIDTHS, out_channels=8, **FORMS[form])


def udml_of(form: str) -> UDML:
    model = UDML(list(WIDTHS), WIDTHS, FUSIONS["SCFAE"](list(WIDTHS), WIDTHS, out_channels=8), **UDMLS[form])
    model.set_progress(1.0)
    for embed in model.embed.values():
        for level in embed:
            level.sample = lambda mu, log_variance: mu  # the generators of the two devices differ
    return model


def told(model: torch.nn.Module, feats: dict) -> dict:
    if not isinstance(model, UDML):
        return {}
    number = len(feats["a"])
    grid = model.grid(feats) or ()
    return dict(levels={m: torch.arange(number).float() for m in WIDTHS},
                statistics={m: torch.randn(number, NUM_STATISTICS, *grid) for m in WIDTHS})


def to(device: str, values):
    if isinstance(values, dict):
        return {key: to(device, value) for key, value in values.items()}
    return values.detach().to(device).requires_grad_(values.requires_grad)


def training_step(model, feats, available, more) -> dict[str, torch.Tensor]:
    out = model(feats, available, **more)
    (out.fused.square().mean() + sum(out.losses.values())).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return dict(fused=out.fused, **out.losses, **out.diagnostics, **gradients,
                **{f"input {m}": x.grad for m, x in feats.items()})


@pytest.mark.parametrize("form, rank", [
    (form, rank) for form in MODELS for rank in RANKS if rank == "map" or not form.endswith("positions")])
def test_a_step_gives_on_a_gpu_what_it_gives_on_a_processor(form, rank):
    model = model_of(form)
    feats = features(WIDTHS, rank=rank)
    available = present(WIDTHS, missing=dict(b=[1]))
    more = told(model, feats)
    there = copy.deepcopy(model).cuda()
    here = training_step(model, feats, available, more)
    found = training_step(there, to("cuda", feats), available, to("cuda", more))
    assert set(found) == set(here) and any(key.startswith("input") for key in here)
    for key, value in here.items():
        assert found[key].device.type == "cuda", key
        torch.testing.assert_close(found[key].cpu(), value, rtol=2e-4, atol=2e-5,
                                   msg=lambda text, key=key: f"{key}: {text}")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(there.state_dict()[key].cpu(), value, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("form", MODELS)
def test_a_training_step_waits_for_nothing(form, nobody_waits):
    model = model_of(form).cuda()
    feats = to("cuda", features(WIDTHS, rank="map"))
    available = present(WIDTHS, missing=dict(b=[1]))  # on the processor, as models give it
    more = to("cuda", told(model, feats))
    training_step(model, feats, available, more)
    nobody_waits()
    if isinstance(model, UDML):
        model.set_progress(0.99)
    training_step(model, feats, available, more)


@pytest.mark.parametrize("rank", ["vector", "map"])
def test_constant_weights_change_nothing_on_a_gpu(rank):
    block = model_of("SCFAE").cuda().eval()
    feats = to("cuda", features(WIDTHS, rank=rank))
    with torch.no_grad():
        plain = block(feats).fused
        with constant_weights(block), fused_only(block):
            for _ in range(2):
                torch.testing.assert_close(block(feats).fused, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("which", ["forward", "step"])
@pytest.mark.parametrize("shape", [(4,), (2, 3, 5)])
def test_a_block_becomes_a_cuda_graph(shape, which):
    case, other = (BlockCase(dict(type="SCFAE"), WIDTHS, shape, torch.device("cuda")) for _ in range(2))
    other.block.load_state_dict(case.block.state_dict())
    for name in WIDTHS:
        with torch.no_grad():
            other.feats[name].copy_(case.feats[name])
    other.gradient.copy_(case.gradient)
    before = [p.detach().clone() for p in case.block.parameters()]
    replay = graphed(getattr(case, which))  # three steps to warm up, none while it is captured
    for _ in range(2):
        replay()
    if which == "step":
        for _ in range(5):
            other.step()
        torch.cuda.synchronize()
        for p, q, was in zip(case.block.parameters(), other.block.parameters(), before):
            torch.testing.assert_close(p, q)
            assert not torch.equal(p, was)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(dtype):
    block = model_of("SCFAE").cuda()
    feats = to("cuda", features(WIDTHS, rank="map"))
    with torch.autocast("cuda", dtype):
        out = block(feats, present(WIDTHS, missing=dict(b=[1])))
    (out.fused.float().sum() + sum(out.losses.values())).backward()
    assert out.fused.dtype == dtype and all(torch.isfinite(p.grad).all() for p in block.parameters())


@pytest.mark.parametrize("task", TASKS)
def test_the_models_of_the_shipped_configs_learn_on_a_gpu(task):
    size = dict(segmentation=(64, 64)).get(task, (32, 32))
    for row in TASKS[task]:
        case = ModelCase(task, row, 4, size, torch.device("cuda"), amp=True)
        before = torch.cat([p.detach().flatten() for p in case.model.neck.parameters()]) if len(
            list(case.model.neck.parameters())) else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(3):
                case.step()
            case.forward()
        if before is not None:
            after = torch.cat([p.detach().flatten() for p in case.model.neck.parameters()])
            assert torch.isfinite(after).all() and not torch.equal(before, after)


def test_what_is_not_finite_is_reported_with_one_question_a_batch(monkeypatch, nobody_waits):
    said, answers = [], []
    monkeypatch.setattr("mmfusion_plugin.models.samples.print_log", lambda text, **_: said.append(text))
    reports = NonFiniteReports("they are left out")
    values = torch.ones(3, 4, device="cuda")
    values[1, :2] = torch.nan
    nobody_waits()
    for i in range(3):
        answers.append(reports.note("depth", torch.isfinite(values[i]), None))
    torch.cuda.set_sync_debug_mode("default")
    reports.tell()
    assert answers == [False] * 3 and len(said) == 1 and "holds 2 non-finite values" in said[0]
    reports.tell()
    assert len(said) == 1


@pytest.mark.parametrize("task, row", [("segmentation", "SCFAE light"), ("audio-visual", "SCFAE light")])
def test_nothing_of_ours_waits_in_a_training_step_but_two_questions(task, row):
    """Whether the readings were finite, and whether the gradients are."""
    case = ModelCase(task, row, 2, (64, 64), torch.device("cuda"))
    for _ in range(2):
        case.step()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            case.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{warning.filename}:{warning.lineno}" for warning in caught if "synchroniz" in str(warning.message)]
    ours = sorted(Path(place).name.split(":")[0] for place in places if "mmfusion_plugin/" in place)
    assert ours == ["guarded_optim.py", "samples.py"], places


def test_vectors_that_are_all_there_cost_no_mask():
    block = model_of("ConcatFusion").cuda().eval()
    feats = to("cuda", features(WIDTHS))
    kernels = {}
    for name, available in (("all", present(WIDTHS)), ("some", present(WIDTHS, missing=dict(b=[1])))):
        with torch.no_grad():
            block(feats, available)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                block(feats, available)
        kernels[name] = sum(event.count for event in profile.key_averages() if event.key == "aten::where")
    assert kernels["all"] == 0 < kernels["some"]
