from __future__ import annotations

import pytest

pytest.importorskip("mmseg")


@pytest.fixture(autouse=True)
def mmseg_scope():
    from mmengine.registry import init_default_scope

    import mmfusion_plugin  # noqa: F401

    init_default_scope("mmseg")


@pytest.fixture
def frames(tmp_path):
    from segmentation.scene import write_frames

    return write_frames(tmp_path / "frames")
