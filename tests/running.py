"""Commands as a user runs them."""
from __future__ import annotations

import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def call(cwd: Path, script: Path, *arguments: object) -> str:
    """Output of a python script that has to succeed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script), *map(str, arguments)], cwd=cwd, env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def run_tool(monkeypatch, name: str, *arguments: object) -> None:
    """Run tools/NAME.py in this process: starting another costs ten seconds of imports."""
    script = ROOT / f"tools/{name}.py"
    monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", *map(str, arguments)])
    runpy.run_path(str(script), run_name="__main__")


def log_of_test(monkeypatch, work: Path, config: Path, checkpoint: Path, *options: object) -> str:
    """What tools/test.py logs, run in this process."""
    run_tool(monkeypatch, "test", config, checkpoint, "--work-dir", work, *options)
    log, = work.glob("*/*.log")
    return log.read_text(encoding="utf-8")


def leave_group() -> None:
    """End a process of torch.distributed; torch 2.6 hangs where gloo's threads still wait for this one's GIL."""
    import torch

    time.sleep(0.2)
    torch.distributed.destroy_process_group()
