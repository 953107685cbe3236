"""Predict from a stranger's files or arrays."""
from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmseg.apis import init_model as mmseg_init_model
from mmseg.structures import SegDataSample
from torch import nn

from mmfusion_plugin.engine.launch import LABEL_STEPS, load_weights, type_name
from mmfusion_plugin.models.samples import short

from .transforms import check_pipeline

__all__ = ["inference_model", "init_model"]


def init_model(config: str | Path | Config, checkpoint: str | None = None, device: str = "cpu",
               cfg_options: dict | None = None) -> nn.Module:
    """A model ready to predict; see ``mmseg.apis.init_model``. A given Config stays as it is.

    Raises: FileNotFoundError for a missing file; ValueError if the config has no ``test_pipeline``, or if the weights
        are another model's.
    """
    for path in (config, checkpoint):
        if isinstance(path, (str, Path)) and "://" not in str(path) and not Path(path).is_file():
            raise FileNotFoundError(f"no such file: {path}")
    cfg = Config.fromfile(config) if isinstance(config, (str, Path)) else copy.deepcopy(config)
    if "test_pipeline" not in cfg:
        raise ValueError("the config has no test_pipeline, which says how a frame is read")
    for encoder in cfg.model.backbone.get("backbones", {}).values():
        encoder.init_cfg = None  # the checkpoint holds the weights
    model = mmseg_init_model(cfg, checkpoint, device, cfg_options)
    if checkpoint is not None:  # mmsegmentation warns, and leaves random what the checkpoint lacks
        load_weights(model, str(checkpoint))
    return model


def inference_model(model: nn.Module, sources: Mapping[str, str | Path | np.ndarray | None],
                    missing: Sequence[str] = ()) -> SegDataSample:
    """Segment one frame.

    Args:
        model: from :func:`init_model`.
        sources: path or array by modality. Arrays: colour (H, W, 3) uint8 in BGR order, one-channel
            (H, W), depth in stored counts as the config's sensor says, or float metres. None marks a
            modality that this frame lacks.
        missing: modalities to withhold.

    Returns: SegDataSample with ``pred_sem_seg`` (1, H, W).
    Raises: ValueError for sources without names, unknown or absent ones, if nothing is left, or for a test pipeline
        that parts the sensors.
    """
    modalities = list(model.data_preprocessor.modalities)
    if not isinstance(sources, Mapping):
        given = ", ".join(f"{m}=..." for m in modalities)
        raise ValueError(f"sources must name a file or an array by modality, dict({given}), got {short(sources)}")
    unknown = sorted({*sources, *missing} - set(modalities))
    if unknown:
        raise ValueError(f"the model knows {modalities}, got {unknown}")
    lacking = [m for m in modalities if m not in sources and m not in missing]
    if lacking:
        raise ValueError(f"no source for {lacking}; name them in missing=[...] to do without")
    paths = {m: None if m in missing else sources[m] for m in modalities}
    if all(path is None for path in paths.values()):
        raise ValueError(f"every modality of {modalities} is missing; give at least one")
    pipeline = Compose([step for step in model.cfg.test_pipeline if type_name(step) not in LABEL_STEPS])
    check_pipeline(pipeline)
    named = {m: p if p is None or isinstance(p, np.ndarray) else str(p) for m, p in paths.items()}
    image_path = next((p for p in named.values() if isinstance(p, str)), None)
    data = pipeline({"modality_paths": named, "img_path": image_path, "seg_fields": []})
    with torch.no_grad():
        return model.test_step(pseudo_collate([data]))[0]
