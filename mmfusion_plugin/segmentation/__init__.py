"""Segmentation of several sensors: data, preprocessor, segmentor. Needs mmsegmentation."""
from . import data_preprocessor, datasets, hooks, label_maps, segmentor, transforms

__all__ = ["data_preprocessor", "datasets", "hooks", "label_maps", "segmentor", "transforms"]
