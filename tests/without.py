"""Run Python as if some libraries were not installed."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# None in sys.modules: find_spec gives None and import raises ModuleNotFoundError. As sitecustomize it
# reaches child processes too.
BLOCKER = "import os, sys\nsys.modules.update(dict.fromkeys(os.environ['BLOCKED'].split(), None))\n"


def python(folder: Path, *arguments: str, without: Sequence[str] = (),
           path: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
    """Run ``python *arguments`` from ``folder``, an empty one, with the modules ``without`` blocked.

    ``path`` is searched before the installed libraries.
    """
    (folder / "sitecustomize.py").write_text(BLOCKER)
    search = os.pathsep.join(map(str, [folder, *path, ROOT]))
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": search, "BLOCKED": " ".join(without), "OMP_NUM_THREADS": "1"})


def fake_wheel(folder: Path, name: str, number: str) -> Path:
    """Metadata of an installed wheel, in ``folder``. Returns ``folder``."""
    info = folder / f"{name.replace('-', '_')}-{number}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
    return folder
