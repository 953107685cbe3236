from __future__ import annotations

import numpy as np
import pytest
from mmengine.config import Config
from mmseg.registry import DATASETS, MODELS
from segmentation.scene import LOAD, PACK, SIZE, dataset_cfg, model_cfg, write_frames
from segmentation.test_segmentor import BINARY

from mmfusion_plugin.segmentation.predictions import LabelError, draw, mean_iou, pick


def test_mean_iou_by_hand():
    label = np.array([0, 0, 1, 1, 255])
    prediction = np.array([0, 1, 1, 1, 2])
    assert mean_iou(label, prediction, 3) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert mean_iou(np.array([255]), np.array([0]), 3) == 1


def test_the_worst_frame_comes_first(frames):
    model = MODELS.build(Config(dict(model=model_cfg())).model).eval()
    dataset = DATASETS.build(dataset_cfg(frames, [*LOAD, PACK]))
    predictions = pick(model, dataset, 3)
    scores = [p.score for p in predictions]
    assert len(scores) == 3
    assert scores == sorted(scores)
    assert predictions[0].label.shape == predictions[0].prediction.shape == SIZE
    assert [panel.caption.split()[0] for panel in predictions[0].inputs] == ["rgb", "depth"]
    everything = [p.score for p in pick(model, dataset, len(dataset) + 5)]
    assert len(everything) == len(dataset) and scores == everything[:3]
    spread = [p.score for p in pick(model, dataset, 2, spread=True)]
    assert spread == [everything[0], everything[-1]]


def test_a_head_of_one_logit_is_scored_and_drawn(frames, tmp_path):
    write_frames(frames, classes=2)
    two = dict(classes=("one", "two"), palette=[[0, 0, 0], [99, 0, 0]])
    dataset = DATASETS.build(dataset_cfg(frames, [*LOAD, PACK], metainfo=two))
    model = MODELS.build(Config(dict(model=model_cfg(decode_head=BINARY))).model).eval()
    shown = pick(model, dataset, 1)
    assert 0 <= shown[0].score < 1 and shown[0].prediction.dtype == np.int64
    assert draw(dataset, shown, tmp_path / "x.png", "").stat().st_size > 1000


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([LOAD[0], PACK], "1.png has no label"),
        ([*LOAD, dict(type="Resize", scale_factor=0.5), PACK], "24x32, its prediction .* 48x64; put LoadSegLabel"),
    ],
)
def test_labels_that_cannot_be_compared_are_named(frames, steps, words):
    model = MODELS.build(Config(dict(model=model_cfg())).model).eval()
    with pytest.raises(LabelError, match=words):
        pick(model, DATASETS.build(dataset_cfg(frames, steps)), 1)
