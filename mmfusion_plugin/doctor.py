"""``python -m mmfusion_plugin.doctor``: the environment, every known clash found, and its cure.

Works when libraries are missing or broken: versions come from the wheels' metadata, and whatever
could fail is imported in a process of its own. Exit code 0 if the plugin is usable, 1 if not.
"""
from __future__ import annotations

import platform
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from . import __version__, compat

__all__ = ["examine", "main"]

_LIBRARIES = ("torch", "numpy", "mmengine", "mmcv", "mmseg", "mmaction", "cv2")
# One after the other in one process; the last name printed is the one that failed.
_IMPORTS = {
    "torch": "import torch; cuda(torch)",
    "numpy": "import numpy",
    "cv2": "import cv2",
    "mmengine": "import mmengine",
    "mmcv": "import mmcv",
    "mmfusion_plugin": "import mmfusion_plugin",
    "mmseg": "import mmseg.apis",
    "mmaction": "import mmaction.models",
}
_CUDA = """
def cuda(torch):
    print('CUDA', f'{torch.cuda.device_count()} device(s), torch built for CUDA {torch.version.cuda}'
          if torch.cuda.is_available() else 'not available', flush=True)
"""


def _import_all(names: list[str]) -> tuple[str, str, str]:
    """Import ``names`` in a new interpreter: (CUDA, the name that fails or '', its error)."""
    steps = [f"print('import', {name!r}, flush=True); {_IMPORTS[name]}" for name in names]
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", "\n".join([_CUDA, *steps, "print('done')"])],
                         capture_output=True, text=True)
    said = dict.fromkeys(("CUDA", "import"), "")
    said.update(line.split(maxsplit=1) for line in run.stdout.splitlines() if line.startswith(tuple(said)))
    if run.returncode == 0:
        return said["CUDA"], "", ""
    error = run.stderr.strip().splitlines()
    return said["CUDA"], said["import"], error[-1] if error else f"exit code {run.returncode}"


def _cure_of_failed_import(name: str, error: str) -> str:
    if "libGL" in error:
        return ("this machine has no display libraries: pip uninstall -y opencv-python opencv-contrib-python "
                "&& pip install --force-reinstall --no-deps opencv-python-headless")
    wheels = compat.installed_version(name)
    return f"reinstall it: pip install --force-reinstall --no-deps {wheels.split()[0] if wheels else name}"


def _compiled_at_every_start() -> Path | None:
    """The libraries' folder, where they have no bytecode and this environment keeps none."""
    torch = find_spec("torch")
    if not sys.dont_write_bytecode or torch is None or not torch.cached or Path(torch.cached).is_file():
        return None
    return Path(torch.origin).parents[1]


def examine() -> tuple[list[str], list[compat.Clash]]:
    """Look at the environment.

    Returns: the lines that describe it, and what is wrong with it (clashes with ``blocks=True``
        make the plugin unusable).
    """
    lines = [f"mmfusion_plugin  {__version__}",
             f"python           {platform.python_version()} ({platform.platform()})"]
    for name in _LIBRARIES:
        lines.append(f"{name:<16} {compat.installed_version(name) or 'not installed'}")

    problems = compat.clashes()
    if not compat.installed("torch"):
        problems.append(compat.Clash("torch is not installed", "pip install 'torch>=2.6'"))
    if not compat.installed("mmseg") and not compat.installed("mmaction"):
        problems.append(compat.Clash(
            "neither mmsegmentation nor mmaction2 is installed: only mmfusion_plugin.fusion works",
            compat.INSTALL))
    if folder := _compiled_at_every_start():
        problems.append(compat.Clash(
            "PYTHONDONTWRITEBYTECODE is set and the libraries have no bytecode: every start compiles thousands of "
            "files anew and takes three times as long",
            f"unset PYTHONDONTWRITEBYTECODE, or once: python -m compileall -q -j 0 {folder}", blocks=False))
    # With a library missing the plugin's own import says nothing new.
    blocked = any(clash.blocks for clash in problems)
    names = [name for name in _IMPORTS if compat.installed(name) and not (blocked and name.startswith("mm"))]
    cuda, failed, error = _import_all(names)
    lines.append(f"{'CUDA':<16} {cuda or 'unknown'}")
    if failed:
        cure = _cure_of_failed_import(failed, error)
        problems.append(compat.Clash(f"import {failed} fails: {error}", cure))
    return lines, problems


def main() -> int:
    """Print the report. Returns the exit code."""
    lines, problems = examine()
    print("\n".join(lines))
    print("\nBreaks of released wheels that the plugin cures when it is imported:")
    cured = [cure for cure in compat.CURES if cure.needed()]
    for cure in cured:
        print(f"  [cured] {cure.name}: {cure.symptom}\n          -> {cure.cure}")
    if not cured:
        print("  none found")
    print("\nClashes that you have to cure:")
    for problem in problems:
        print(f"  [{'BLOCKS' if problem.blocks else 'note'}] {problem.symptom}\n          -> {problem.cure}")
    if not problems:
        print("  none found")
    usable = not any(problem.blocks for problem in problems)
    print(f"\n{'usable' if usable else 'NOT usable: cure what is marked BLOCKS first'}")
    return 0 if usable else 1


if __name__ == "__main__":
    sys.exit(main())
