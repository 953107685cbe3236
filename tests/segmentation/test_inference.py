from __future__ import annotations

import cv2
import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS
from segmentation.scene import LOAD, PACK, SIZE, model_cfg

from mmfusion_plugin.segmentation.inference import inference_model, init_model
from mmfusion_plugin.segmentation.transforms import LoadSegLabel


@pytest.fixture
def model(tmp_path):
    meta = dict(dataset_meta=dict(classes=("one", "two", "three"), palette=[[0] * 3] * 3))
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(model_cfg()).state_dict(), meta=meta), tmp_path / "model.pth")
    cfg = Config(dict(default_scope="mmseg", model=model_cfg(), test_pipeline=[*LOAD, PACK]))
    return init_model(cfg, str(tmp_path / "model.pth"))


def test_files_and_arrays_give_the_same_prediction(model, frames):
    paths = dict(rgb=frames / "RGB" / "1.png", depth=frames / "Depth" / "1.png")
    arrays = {m: cv2.imread(str(path), -1) for m, path in paths.items()}
    from_files, from_arrays = inference_model(model, paths), inference_model(model, arrays)
    assert from_files.pred_sem_seg.data.shape == (1, *SIZE)
    assert torch.equal(from_files.seg_logits.data, from_arrays.seg_logits.data)


def test_missing_sensors(model, frames):
    rgb = str(frames / "RGB" / "1.png")
    withheld = inference_model(model, dict(rgb=rgb, depth=str(frames / "Depth" / "1.png")), missing=["depth"])
    absent = inference_model(model, dict(rgb=rgb, depth=None))
    assert torch.equal(withheld.seg_logits.data, absent.seg_logits.data)
    with pytest.raises(ValueError, match=r"no source for \['depth'\]"):
        inference_model(model, dict(rgb=rgb))
    with pytest.raises(ValueError, match="every modality"):
        inference_model(model, dict(rgb=None, depth=None))
    with pytest.raises(ValueError, match="the model knows"):
        inference_model(model, dict(rgb=rgb, depth=None, nir=rgb))


@pytest.mark.parametrize("kind", [LoadSegLabel, "mmseg.LoadSegLabel", f"{LoadSegLabel.__module__}.LoadSegLabel"])
def test_the_label_is_left_out_however_the_config_names_it(model, frames, kind):
    model.cfg.test_pipeline = [LOAD[0], dict(type=kind), PACK]
    sample = inference_model(model, dict(rgb=str(frames / "RGB" / "1.png"), depth=None))
    assert sample.pred_sem_seg.data.shape == (1, *SIZE)


def test_a_file_without_a_modality_is_refused(model):
    with pytest.raises(ValueError, match=r"dict\(rgb=\.\.\., depth=\.\.\.\), got a\.png"):
        inference_model(model, "a.png")


def test_the_given_config_stays_as_it_is(tmp_path):
    cfg = Config(dict(default_scope="mmseg", model=model_cfg(), test_pipeline=[*LOAD, PACK]))
    before = cfg.pretty_text
    init_model(cfg)
    assert cfg.pretty_text == before
    cfg.pop("test_pipeline")
    with pytest.raises(ValueError, match="no test_pipeline"):
        init_model(cfg)


def test_weights_of_another_model_are_refused(tmp_path):
    """mmsegmentation would warn and predict with random ones."""
    cfg = Config(dict(default_scope="mmseg", model=model_cfg(), test_pipeline=[*LOAD, PACK]))
    state = MODELS.build(model_cfg()).state_dict()
    meta = dict(dataset_meta=dict(classes=("one", "two", "three"), palette=[[0] * 3] * 3))
    torch.save(dict(state_dict={n: x for n, x in state.items() if "neck" not in n}, meta=meta), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not fit the model in \d+ weights: no neck\."):
        init_model(cfg, str(tmp_path / "other.pth"))


def test_missing_files_are_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.py"):
        init_model("nowhere.py")
