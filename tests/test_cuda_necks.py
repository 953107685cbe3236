"""Necks that replay CUDA graphs, on a GPU; tests/models/test_cuda_graphs.py has what shows without one.

    MMFUSION_GPU_TESTS=1 python -m pytest tests/test_cuda_necks.py        # tools/run_tests.sh does it where one is
"""
from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from models.graph_cases import (
    NECKS,
    assert_same,
    assert_same_gradients,
    batch,
    gradients_of_parts,
    loss_of,
    pair_of,
    present,
    step,
    values,
)
from speed_cases import TASKS, ModelCase
from speed_floor import graphed

from mmfusion_plugin.fusion import fused_only, recording

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or hidden: set MMFUSION_GPU_TESTS=1"),
    pytest.mark.usefixtures("full_precision")]


@pytest.fixture
def replays(monkeypatch) -> list:
    found = []
    plain = recording.Recording.__call__
    monkeypatch.setattr(
        recording.Recording, "__call__", lambda self, *given: found.append(self) or plain(self, *given))
    return found


def pair_there(name: str = "SCFAE") -> list[torch.nn.Module]:
    return [neck.cuda() for neck in pair_of(name)]


def batch_there(seed: int, number: int = 3) -> dict:
    return {m: [x.detach().cuda().requires_grad_() for x in levels] for m, levels in batch(seed, number).items()}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", NECKS)
def test_a_neck_from_graphs_learns_as_the_plain_one(name, channels_last, replays):
    """Several optimiser's steps, everything there and not, masks on the processor."""
    plain, graphed = pair_there(name)
    optimisers = [torch.optim.AdamW(neck.parameters(), lr=1e-3, fused=True) for neck in (plain, graphed)]
    for seed in range(5):
        for missing in (None, 1):
            feats = batch_there(seed)
            if channels_last:
                feats = {m: [x.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for x in levels]
                         for m, levels in feats.items()}
            available = present(missing=missing)
            mine, theirs = step(graphed, feats, available), step(plain, feats, available)
            assert_close(mine, theirs)
            for optimiser in optimisers:
                optimiser.step()
    assert len(replays) == 8


def assert_close(mine: dict, theirs: dict, **tolerance) -> None:
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(mine[key], value, **(tolerance or dict(rtol=1e-4, atol=1e-5)),
                                   msg=lambda text, key=key: f"{key}: {text}")


def test_a_neck_from_graphs_waits_for_nothing(nobody_waits, replays):
    _, graphed = pair_there()
    feats, some = batch_there(0), present(missing=1)
    for available in (None, some, None, some, None):
        step(graphed, feats, available)
    nobody_waits()
    step(graphed, feats, None)
    step(graphed, feats, some)
    assert len(replays) == 5


def test_graphs_are_recorded_while_other_threads_pin_memory(replays):
    stop = threading.Event()

    def pin():
        while not stop.is_set():
            torch.ones(2**20).pin_memory().cuda(non_blocking=True)  # draws nothing

    worker = threading.Thread(target=pin)
    worker.start()
    try:
        plain, graphed = pair_there()
        for number in (2, 3, 4):
            for seed in range(3):
                feats = batch_there(seed, number)
                assert_close(step(graphed, feats, None), step(plain, feats, None))
    finally:
        stop.set()
        worker.join()
    assert len(replays) == 6


def test_graphs_two_questions_and_sums_of_gradients():
    plain, graphed = pair_there()
    step(graphed, batch_there(0), None), step(plain, batch_there(0), None)
    found = {}
    for neck in (plain, graphed):
        found[neck] = gradients_of_parts(neck, batch_there(1))
        for seed in (2, 3):
            loss_of(neck(batch_there(seed))).backward()
        found[neck].append([p.grad for p in neck.parameters()])
    assert_same_gradients(found[graphed], found[plain], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_graphs_of_half_precision(dtype, replays):
    plain, graphed = pair_there()
    for seed in range(3):
        feats = batch_there(seed)
        with torch.autocast("cuda", dtype):
            mine, theirs = step(graphed, feats, None), step(plain, feats, None)
        assert mine["fused 0"].dtype == dtype
        assert_close(mine, theirs, rtol=2e-2, atol=2e-3)
    assert len(replays) == 2


def test_predictions_from_graphs(replays):
    plain, graphed = (neck.eval() for neck in pair_there())
    kept, expected = [], []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), fused_only(plain, graphed):
            for seed in range(4):
                feats = {m: [x.detach() for x in levels] for m, levels in batch_there(seed).items()}
                kept.append(values(graphed(feats)))
                expected.append(values(plain(feats)))
    for found, value in zip(kept, expected):
        assert_same(found, value)
    assert len(replays) == 7


def test_a_captured_step_holds_what_would_be_recorded():
    """Whoever records a whole step gets the kernels, not a graph within a graph."""
    _, graphed_neck = pair_there()
    feats = batch_there(0)
    for _ in range(3):
        step(graphed_neck, feats, None)
    with torch.no_grad():
        before = [x.clone() for x in graphed_neck(feats).fused]
        held = []
        replay = graphed(lambda: held.append(graphed_neck(feats).fused))
        replay()
    torch.testing.assert_close(list(held[-1]), before)


ASKING = """
import mmfusion_plugin
import torch
from models.graph_cases import batch, pair_of

neck = pair_of("ConcatFusion")[1].cuda()
neck.levels[0].register_forward_hook(lambda module, given, out: out.fused.sum().item() and None)
feats = {m: [x.detach().cuda() for x in levels] for m, levels in batch(0).items()}
with torch.no_grad():
    neck(feats)
    try:
        neck(feats)
    except RuntimeError as error:
        print(error)
assert torch.cuda.current_stream() == torch.cuda.default_stream()
print("the GPU says", torch.ones(3, device="cuda").sum().item())
"""


def test_what_asks_the_gpu_cannot_be_recorded():
    # in a process of its own: torch's generator does not recover from a recording that fails
    ran = subprocess.run([sys.executable, "-c", ASKING], capture_output=True, text=True, timeout=300,
                         env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
    assert "Set neck.cuda_graphs=False" in ran.stdout and "the GPU says 3.0" in ran.stdout, ran.stderr


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("row", ["SCFAE light", "UDML(SCFAE light)"])
def test_models_of_the_shipped_configs_learn_from_graphs(task, row, replays):
    size = dict(segmentation=(64, 64)).get(task, (32, 32))
    cases = [ModelCase(task, row, 4, size, torch.device("cuda"), graphs=graphs) for graphs in (False, True)]
    start = copy.deepcopy(cases[0].model.state_dict())
    losses = []
    for case in cases:
        case.model.load_state_dict(start)
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case.model.train()
            found = [case.model.train_step(case.data, case.optim_wrapper)["loss"].detach() for _ in range(5)]
            case.forward()
            case.forward()
        losses.append(torch.stack(found).cpu())
    assert len(replays) >= 3  # modality dropout makes two kinds
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-2, atol=1e-2)
