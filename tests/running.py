"""Commands as a user runs them."""
from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from mmfusion_plugin.engine import launch

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
    spec = importlib.util.spec_from_file_location(f"tool_{Path(name).name}", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", *map(str, arguments)])
    launch.run_tool(module.main)
