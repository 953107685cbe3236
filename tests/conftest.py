"""Fixtures that several rooms' tests share."""
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

# The tests are about a processor: they fork, and they compare bits. What a GPU does is asked in test_cuda*.py.
if os.environ.get("MMFUSION_GPU_TESTS") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tests run side by side; more threads per process would only fight each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def plain_texts_of_configs():
    """Every Runner has its config's text laid out three times, 0.4 s each; processes that tests start still do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmengine.config.config.FormatCode", lambda text, **style: (text, True))
        yield


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def full_precision():
    """On a GPU without TF32, which has three digits and is torch's default for convolutions there, not for products."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture
def nobody_waits():
    """From its call on, an error for what waits for the GPU."""
    torch.cuda.synchronize()
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings beside the repository; they are no part of it."""
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("real data (../shared/data) are not on this machine")
    return path


@pytest.fixture
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def huge_jpeg() -> bytes:
    """A damaged file whose header claims more pixels than OpenCV allows: it raises, and returns no None."""
    cv2 = pytest.importorskip("cv2")
    data = bytearray(cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes())
    size = data.index(b"\xff\xc0") + 5  # in the start of the frame
    data[size: size + 4] = b"\x90\x00\x90\x00"
    return bytes(data)
