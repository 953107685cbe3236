from __future__ import annotations

import numpy as np
import pytest
from mmengine.registry import init_default_scope


@pytest.fixture(autouse=True)
def mmaction_scope():
    """The default scope and numpy's generator are the process's: a test before may have left its own."""
    init_default_scope("mmaction")
    np.random.seed(0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder of what :func:`recognition.ramps.write_files` writes."""
    from recognition.ramps import write_files

    root = tmp_path_factory.mktemp("clips")
    write_files(root)
    return root
