"""The shipped audio-visual demo config under mmaction2's own tools, from another directory, and resumed."""
from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from running import call, log_of_test, run_tool

pytest.importorskip("mmaction")
pytest.importorskip("av")
CONFIG = "configs/recognition/scfae_small_demo-clips.py"
STOCK = Path(find_spec("mmaction").origin).parent / ".mim" / "tools"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    from mmfusion_plugin.recognition.demo_shapes import generate

    return generate(tmp_path_factory.mktemp("data") / "clips", 12, 6)


def options(clips, epochs):
    roots = [f"{part}_dataloader.dataset.data_root={clips}" for part in ("train", "val", "test")]
    return ["--cfg-options", *roots, "train_dataloader.batch_size=4", f"train_cfg.max_epochs={epochs}",
            "train_cfg.val_begin=1", "train_cfg.val_interval=1", "default_hooks.logger.interval=1"]


def scores(log: str) -> str:
    """The last evaluation's accuracies: fused and by modality."""
    line = [line for line in log.splitlines() if "acc/fused_top1:" in line][-1]
    return re.search(r"acc/fused_top1.*?(?=\s+data_time)", line).group()


@pytest.mark.skipif(not STOCK.is_dir(), reason="this mmaction2 has no .mim/tools (not a wheel)")
def test_train_resume_and_test_with_the_stock_tools(clips, repository, tmp_path, monkeypatch):
    config, work = repository / CONFIG, tmp_path / "work"
    log = call(tmp_path, STOCK / "train.py", config, "--work-dir", work, *options(clips, 1))
    assert (work / "epoch_1.pth").is_file()
    assert "fusion.loss_recon" in log and "aux_audio.loss_cls" in log

    log = call(tmp_path, STOCK / "train.py", config, "--work-dir", work, "--resume", *options(clips, 2))
    assert "resumed epoch: 1, iter: 3" in log
    assert re.search(r"Epoch\(train\) +\[2\]\[3/3\]", log) and not re.search(r"Epoch\(train\) +\[1\]\[", log)

    checkpoint = work / "epoch_2.pth"
    stock = call(tmp_path, STOCK / "test.py", config, checkpoint, "--work-dir", tmp_path / "t", *options(clips, 2))
    for name in ("acc/fused_top1", "acc/audio_top1", "acc/visual_top1"):
        assert name in scores(stock)
    # ours, on the copy that mmengine writes with sorted keys: it must score the same
    monkeypatch.chdir(tmp_path)
    ours = log_of_test(monkeypatch, tmp_path / "o", work / Path(CONFIG).name, checkpoint, *options(clips, 2))
    assert scores(ours) == scores(stock)
    without = log_of_test(
        monkeypatch, tmp_path / "w", config, checkpoint, "--missing", "audio", *options(clips, 2))
    assert "tested without: audio" in without


def test_pictures_of_clips(clips, repository, tmp_path, monkeypatch):
    import cv2

    monkeypatch.chdir(tmp_path)
    run_tool(monkeypatch, "browse_dataset", repository / CONFIG, "--out", tmp_path, "--number", 1,
             "--split", "val", *options(clips, 1))
    assert cv2.imread(str(next(tmp_path.glob("val_000_*.png")))).std() > 10
