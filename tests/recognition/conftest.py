from __future__ import annotations

import pytest
from mmengine.registry import init_default_scope


@pytest.fixture(autouse=True)
def mmaction_scope():
    """The default scope is the process's: a segmentation test before may have left its own."""
    init_default_scope("mmaction")
