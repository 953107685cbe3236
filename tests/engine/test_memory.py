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
