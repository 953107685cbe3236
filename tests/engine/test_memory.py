"""Freed memory is used again, not fetched anew page by page."""
from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from mmfusion_plugin.engine import ConstantWeightsHook, launch
from mmfusion_plugin.fusion import SCFAE, merging

PROGRAM = """
import resource, torch
from mmfusion_plugin.engine.memory import keep_freed_memory
print(keep_freed_memory())
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt") or torch.cuda.is_available(), reason="a processor and glibc alone")


def run(repository, **environment: str) -> tuple[str, int]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    out = subprocess.run([sys.executable, "-c", PROGRAM], env={**kept, **environment}, cwd=repository, check=True,
                         capture_output=True, text=True).stdout.split()
    return out[0], int(out[1])


@glibc
def test_a_large_tensor_takes_the_pages_of_the_last_one(repository):
    took, faults = run(repository)
    assert took == "True" and faults < 100, "80 MB are 19,531 pages"


@glibc
def test_the_environment_has_the_last_word(repository):
    took, faults = run(repository, MALLOC_MMAP_THRESHOLD_="1000000")
    assert took == "False" and faults > 10_000


def test_convolutions_are_laid_out_channels_last_and_train_as_before(tmp_path):
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.deep = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv3d(1, 2, 1)

        def forward(self, x, mode="loss"):
            y = self.conv(x)
            self.layout = y.is_contiguous(memory_format=torch.channels_last)
            return dict(loss=y.square().mean() + self.deep(x[:, None]).square().mean())

    def train(name: str, hooks: list) -> Model:
        torch.manual_seed(1)
        data = torch.utils.data.DataLoader([dict(x=torch.randn(3, 6, 6)) for _ in range(4)], 2)
        runner = Runner(Model(), str(tmp_path / name), train_dataloader=data, custom_hooks=hooks, log_level="ERROR",
                        train_cfg=dict(by_epoch=True, max_epochs=2), experiment_name=name,
                        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.1)))
        runner.train()
        return runner.model

    cfg = Config(dict(custom_hooks=[]))
    launch.use_channels_last(cfg)
    launch.use_channels_last(cfg)
    assert len(cfg.custom_hooks) == 1
    plain, laid_out = train("plain", []), train("laid out", [dict(hook) for hook in cfg.custom_hooks])
    assert laid_out.layout and not plain.layout
    torch.testing.assert_close(laid_out.state_dict(), plain.state_dict())


class Predicting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.block = SCFAE(["a", "b"], dict(a=8, b=8), out_channels=4).eval()


def test_validations_and_tests_keep_what_they_make_of_weights():
    hook, model = ConstantWeightsHook(), Predicting()
    runner = SimpleNamespace(model=model)
    for before, after in (("before_val_epoch", "after_val_epoch"), ("before_test_epoch", "after_test_epoch")):
        getattr(hook, before)(runner)
        assert model.block.kept is not None and model.block.readout.kept is not None
        getattr(hook, after)(runner, metrics={})
        assert model.block.kept is None and model.block.readout.kept is None
    hook.before_val_epoch(runner)  # ends in an exception: no after_val_epoch
    hook.before_train_epoch(runner)
    assert model.block.kept is None


def test_weights_exchanged_before_a_validation_are_the_ones_it_predicts_with():
    hook, model = ConstantWeightsHook(), Predicting()
    runner, feats = SimpleNamespace(model=model), {m: torch.randn(4, 8) for m in "ab"}
    averaged = [torch.randn_like(p) for p in model.parameters()]

    def exchange() -> None:  # as EMAHook does, uncounted
        for p, other in zip(model.parameters(), averaged):
            kept = p.data.clone()
            p.data.copy_(other)
            other.copy_(kept)

    with torch.no_grad():
        for _ in range(2):
            plain = model.block(feats).fused
            hook.before_val_epoch(runner)
            exchange()
            within = model.block(feats).fused
            hook.after_val_epoch(runner)
            torch.testing.assert_close(within, model.block(feats).fused, rtol=1e-4, atol=1e-3)
            exchange()
            torch.testing.assert_close(model.block(feats).fused, plain)
            assert not torch.allclose(within, plain, atol=1e-3)


def test_a_run_with_averaged_weights_validates_the_same(tmp_path, monkeypatch):
    from mmengine.evaluator import BaseMetric, Evaluator
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.block = SCFAE(["a", "b"], dict(a=8, b=8), out_channels=4)

        def forward(self, x, mode="loss"):
            fused = self.block(dict(a=x[:, :8], b=x[:, 8:])).fused
            return dict(loss=fused.square().mean()) if mode == "loss" else list(fused)

    found: list[float] = []

    class Mean(BaseMetric):
        def process(self, batch, predictions):
            self.results += [float(x.abs().mean()) for x in predictions]

        def compute_metrics(self, results):
            found.append(sum(results) / len(results))
            return dict(mean=found[-1])

    merges = []
    monkeypatch.setattr(merging, "merge", lambda *given, merge=merging.merge: merges.append(1) or merge(*given))

    def run(name: str, hooks: list) -> list[float]:
        torch.manual_seed(1)
        data = torch.utils.data.DataLoader([dict(x=torch.randn(16)) for _ in range(12)], 4)
        runner = Runner(
            Model(), str(tmp_path / name), train_dataloader=data, val_dataloader=data, val_cfg={},
            val_evaluator=Evaluator(Mean()),
            train_cfg=dict(by_epoch=True, max_epochs=3), custom_hooks=[*hooks, dict(type="EMAHook", momentum=0.1)],
            optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.05, fused=True)), experiment_name=name,
            log_level="ERROR")
        runner.train()
        means = list(found)
        found.clear()
        return means

    plain = run("plain", [])
    assert not merges
    assert run("hooked", [dict(type="ConstantWeightsHook")]) == pytest.approx(plain, rel=1e-4)
    assert len(merges) == 2 * 3 and len(set(plain)) == 3, "once for each modality and validation"


def test_tools_register_the_hook_once(tmp_path, monkeypatch):
    registered = []
    for hooks in ([], [ConstantWeightsHook()]):
        runner = SimpleNamespace(hooks=hooks, register_hook=registered.append)
        monkeypatch.setattr(launch.Runner, "from_cfg", lambda cfg, runner=runner: runner)
        assert launch.build_runner(Config(dict(launcher="none", model={}))) is runner
    assert [type(hook) for hook in registered] == [ConstantWeightsHook]
