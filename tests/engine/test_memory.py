"""Freed memory is used again, not fetched anew page by page."""
from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch

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
    from mmengine.config import Config
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    from mmfusion_plugin.engine import launch

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
