"""The shipped demo config under mmsegmentation's own tools, from another directory, and resumed."""
from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from running import call, log_of_test, run_tool

pytest.importorskip("mmseg")
CONFIG = "configs/segmentation/scfae_r18-segformer_demo-rooms.py"
STOCK = Path(find_spec("mmseg").origin).parent / ".mim" / "tools"


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    from mmfusion_plugin.segmentation.demo_rooms import generate

    return generate(tmp_path_factory.mktemp("data") / "rooms", 4, 2)


def options(rooms, iterations):
    roots = [f"{part}_dataloader.dataset.data_root={rooms}" for part in ("train", "val", "test")]
    return ["--cfg-options", *roots, "train_dataloader.batch_size=2", f"train_cfg.max_iters={iterations}",
            "train_cfg.val_interval=2", "default_hooks.checkpoint.interval=2", "default_hooks.logger.interval=1"]


@pytest.mark.skipif(not STOCK.is_dir(), reason="this mmsegmentation has no .mim/tools (not a wheel)")
def test_train_resume_and_test_with_the_stock_tools(rooms, repository, tmp_path, monkeypatch):
    config, work = repository / CONFIG, tmp_path / "work"
    call(tmp_path, STOCK / "train.py", config, "--work-dir", work, *options(rooms, 2))
    assert (work / "iter_2.pth").is_file()

    log = call(tmp_path, STOCK / "train.py", config, "--work-dir", work, "--resume", *options(rooms, 4))
    assert "resumed epoch: 0, iter: 2" in log
    assert "Iter(train) [4/4]" in log
    assert "Iter(train) [2/4]" not in log
    assert "fusion.loss_recon" in log

    checkpoint = work / "iter_4.pth"
    stock = call(tmp_path, STOCK / "test.py", config, checkpoint, "--work-dir", tmp_path / "t", *options(rooms, 4))
    # ours, on the copy that mmengine writes with sorted keys: it must score the same
    monkeypatch.chdir(tmp_path)
    ours = log_of_test(monkeypatch, tmp_path / "o", work / Path(CONFIG).name, checkpoint, *options(rooms, 4))
    assert score(stock) == score(ours)
    without = log_of_test(
        monkeypatch, tmp_path / "w", config, checkpoint, "--missing", "depth", *options(rooms, 4))
    assert "tested without: depth" in without


def test_pictures_of_data_and_predictions(rooms, repository, tmp_path, monkeypatch):
    import cv2

    config, out = repository / CONFIG, tmp_path / "pictures"
    monkeypatch.chdir(tmp_path)
    run_tool(monkeypatch, "browse_dataset", config, "--out", out, "--number", 1, *options(rooms, 2))
    picture = cv2.imread(str(next(out.glob("train_*.png"))))
    assert picture.std() > 10
    work = tmp_path / "work"
    run_tool(monkeypatch, "train", config, "--work-dir", work, *options(rooms, 2))
    run_tool(monkeypatch, "show_predictions", config, work / "iter_2.pth", "--out", out, "--number", 2,
             "--missing", "depth", *options(rooms, 2))
    assert cv2.imread(str(out / "worst_first_without_depth.png")).std() > 10


def score(log: str) -> str:
    """The last evaluation's line from ``aAcc`` to ``mAcc``."""
    line = [line for line in log.splitlines() if "mIoU:" in line][-1]
    return line[line.index("aAcc:") : line.index("data_time")].strip()
