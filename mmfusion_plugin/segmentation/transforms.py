"""Load, jitter and pack several registered sensors; everything between is mmsegmentation's own.

Sensors that may be interpolated are stacked along the channels of ``results['img']``; depth joins
the label in ``results['seg_fields']``. The stock geometric transforms then move all of them at once:
the first bilinearly, the others by nearest neighbour.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform, CenterCrop, Compose, RandomFlip, Resize
from mmengine.dataset import Compose as DatasetCompose
from mmengine.structures import PixelData
from mmseg.datasets.transforms import Albu, PhotoMetricDistortion
from mmseg.registry import TRANSFORMS
from mmseg.structures import SegDataSample

from mmfusion_plugin.engine.file_cache import shared_cache
from mmfusion_plugin.models.samples import short

from .sensors import Sensor, read_label

__all__ = ["ColorJitter", "LoadModalities", "LoadSegLabel", "PackModalities", "check_pipeline", "sensors_of"]

IGNORE = 255
NEARLY = np.nextafter(np.float32(IGNORE), np.float32(0))
VALUES = np.arange(256, dtype=np.uint8)
# what results[m] of a depth sensor must not overwrite
TAKEN = {"img", "img_slices", "available", "not_8_bit", "frame", "modality_paths", "seg_fields", "gt_seg_map", "flip",
         "scale"}
# mmcv's own, which mmsegmentation's of these names inherit from, move image and label alone
LEAVE_DEPTH = (CenterCrop, RandomFlip, Resize)


@TRANSFORMS.register_module()
class LoadModalities(BaseTransform):
    """Read every sensor of a sample.

    Args:
        modalities: names, in stacking order.
        sensors: arguments of :class:`Sensor` by modality.
        cache_mb: MiB of decoded files that each process keeps, those that came first; 0: none. Transforms with the
            same number share them. Never changes a result. With ``persistent_workers=True``; NYU Depth v2 takes
            1.8 MB a frame.

    Reads ``modality_paths`` {m: path, array, or None for a missing one}; writes ``img``,
    ``img_slices`` {m: (start, stop)}, a float32 map in metres per depth sensor (listed in
    ``seg_fields``), ``available``, ``img_shape``, ``ori_shape``.
    Raises: ValueError for names that do not agree or sizes that differ; SensorReadError,
        DepthFormatError for files.
    """

    def __init__(self, modalities: Sequence[str], sensors: Mapping[str, Mapping], cache_mb: float = 0) -> None:
        if set(sensors) != set(modalities):
            raise ValueError(
                f"LoadModalities.sensors names {sorted(sensors)}, modalities names {list(modalities)}"
            )
        if isinstance(modalities, str) or len(set(modalities)) < len(modalities):
            raise ValueError(f"LoadModalities.modalities must be a list of different names, got {modalities!r}")
        if taken := sorted(TAKEN & set(modalities)):
            raise ValueError(f"LoadModalities.modalities names {taken}, which mmsegmentation uses itself; rename them")
        self.modalities = list(modalities)
        self.sensors = {m: Sensor(name=m, **sensors[m]) for m in self.modalities}
        self.cache = shared_cache(cache_mb, "LoadModalities")

    def transform(self, results: dict) -> dict:
        paths = results["modality_paths"]
        if set(self.modalities) - set(paths):
            raise ValueError(
                f"LoadModalities.modalities is {self.modalities}, the data set gives {sorted(paths)}; "
                "make dataset.modalities agree"
            )
        read = {m: self.sensors[m].read(paths[m], self.cache) for m in self.modalities if paths[m] is not None}
        size = self._one_size(read, paths)
        stacked, slices, start = [], {}, 0
        for m in self.modalities:
            if self.sensors[m].rides_with_label:
                depth = read.get(m, np.zeros(size, np.float32))
                # transforms fill with that number what they uncover, and PackModalities takes it for no reading
                results[m] = np.where(depth == IGNORE, NEARLY, depth) if self.sensors[m].valid_range[1] >= IGNORE \
                    else depth
                results["seg_fields"] = [*results.get("seg_fields", []), m]
                continue
            image = read[m] if m in read else np.zeros((*size, self.sensors[m].channels), np.uint8)
            stacked.append(image)
            slices[m] = (start, start + image.shape[2])
            start += image.shape[2]
        if not stacked:  # mmsegmentation's transforms take their size from an image
            stacked.append(np.zeros((*size, 1), np.uint8))
        if len({image.dtype for image in stacked}) > 1:
            stacked = [image.astype(np.float32) for image in stacked]
        results["img"] = np.ascontiguousarray(np.concatenate(stacked, axis=2))
        results["img_slices"] = slices
        results["available"] = {m: m in read for m in self.modalities}
        results["not_8_bit"] = [m for m, x in read.items() if m in slices and x.dtype != np.uint8]
        results["img_shape"] = results["ori_shape"] = size
        return results

    def _one_size(self, read: Mapping[str, np.ndarray], paths: Mapping) -> tuple[int, int]:
        if not read:
            raise ValueError(f"a sample has none of {self.modalities}: {dict(paths)}")
        sizes = {m: x.shape[:2] for m, x in read.items()}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{m} {h}x{w} ({short(paths[m])})" for m, (h, w) in sizes.items())
            raise ValueError(f"sensors differ in size: {told}; register them to one grid first")
        return next(iter(sizes.values()))

    def __repr__(self) -> str:
        return f"LoadModalities({list(self.sensors.values())})"


@TRANSFORMS.register_module()
class LoadSegLabel(BaseTransform):
    """Read the label of a sample into 0..K-1, with 255 for "ignore".

    ``label_offset`` and ``num_classes`` (K, as stored) come from the data set: offset 1 means stored
    1..K with 0 unlabelled, offset 0 stored 0..K-1 with 255 ignored. A ``label_map`` {stored: wanted},
    which mmsegmentation makes where ``metainfo.classes`` chooses or reorders, comes after that.
    ``cache_mb``: as of :class:`LoadModalities`.
    Raises: ValueError naming file, value and option if a label is outside that range, if its size is
        not the image's, or if the data set has no labels.
    """

    def __init__(self, cache_mb: float = 0) -> None:
        self.cache = shared_cache(cache_mb, "LoadSegLabel")

    def transform(self, results: dict) -> dict:
        path = results["seg_map_path"]
        if path is None:
            raise ValueError(
                f"{results.get('img_path')} has no label: dataset.data_prefix names no seg_map_path; name it or "
                "take LoadSegLabel out of the pipeline"
            )
        stored = read_label(path, self.cache)
        if "ori_shape" in results and stored.shape != tuple(results["ori_shape"][:2]):
            raise ValueError(
                f"label {path} is {stored.shape[0]}x{stored.shape[1]}, its image "
                f"{results['ori_shape'][0]}x{results['ori_shape'][1]}"
            )
        label = self._decode(stored, results["label_offset"], results["num_classes"], path)
        if results.get("label_map"):
            table = np.full(256, IGNORE, np.uint8)
            table[list(results["label_map"])] = list(results["label_map"].values())
            label = table[label]
        results["gt_seg_map"] = label
        results["seg_fields"] = [*results.get("seg_fields", []), "gt_seg_map"]
        return results

    @staticmethod
    def _decode(stored: np.ndarray, offset: int, classes: int, path: str) -> np.ndarray:
        ignore = 0 if offset == 1 else IGNORE
        if stored.dtype == np.uint8:
            label, wrong = (cv2.LUT(stored, table) for table in _label_tables(offset, classes))
        else:
            wrong = (stored != ignore) & ((stored < offset) | (stored >= classes + offset))
            label = np.where(stored == ignore, IGNORE, stored.astype(np.int64) - offset).astype(np.uint8)
        if wrong.any():
            value = int(stored[wrong != 0][0])
            other = 1 - offset
            raise ValueError(
                f"label {path} holds {value}; with dataset.label_offset={offset} and {classes} classes it may "
                f"hold {offset}..{classes + offset - 1} and {ignore} (unlabelled). If the files store "
                f"{other}..{classes + other - 1}, set dataset.label_offset={other}"
            )
        return label


@functools.cache
def _label_tables(offset: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(256,) uint8 each: the label of a stored number; 1 where there is none."""
    stored = np.arange(256)
    ignored = stored == (0 if offset == 1 else IGNORE)
    wrong = ~ignored & ((stored < offset) | (stored >= classes + offset))
    return np.where(ignored, IGNORE, stored - offset).astype(np.uint8), wrong.astype(np.uint8)


def _check_loaded(results: Mapping) -> None:
    if "img_slices" not in results:
        raise ValueError(
            "the pipeline loads no sensors; start it with LoadModalities instead of LoadImageFromFile, and take "
            "LoadSegLabel instead of LoadAnnotations"
        )


def _in_hsv(bgr: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """``bgr`` with one channel of its hue, saturation and value replaced by ``table`` (256,)."""
    hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


@TRANSFORMS.register_module()
class ColorJitter(PhotoMetricDistortion):
    """mmsegmentation's PhotoMetricDistortion on one colour modality; the other sensors stay as they are.

    Bit for bit the same from the same random numbers, through tables of 256 values instead of float pictures.

    Args:
        modality: the colour modality.
        others: as in PhotoMetricDistortion.

    Raises: ValueError if that modality is not among the stacked images or has not three channels.
    """

    def __init__(self, modality: str = "rgb", **kwargs) -> None:
        super().__init__(**kwargs)
        self.modality = modality

    def convert(self, img: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
        return cv2.LUT(img, super().convert(VALUES, alpha, beta))

    def saturation(self, img: np.ndarray) -> np.ndarray:
        if np.random.randint(2):
            factor = np.random.uniform(self.saturation_lower, self.saturation_upper)
            img = _in_hsv(img, 1, super().convert(VALUES, alpha=factor))
        return img

    def hue(self, img: np.ndarray) -> np.ndarray:
        if np.random.randint(2):
            turned = (VALUES.astype(int) + np.random.randint(-self.hue_delta, self.hue_delta)) % 180
            img = _in_hsv(img, 0, turned.astype(np.uint8))
        return img

    def transform(self, results: dict) -> dict:
        _check_loaded(results)
        if self.modality not in results["img_slices"]:
            raise ValueError(
                f"ColorJitter.modality is {self.modality!r}, the image holds {sorted(results['img_slices'])}"
            )
        start, stop = results["img_slices"][self.modality]
        if stop - start != 3:
            raise ValueError(f"ColorJitter needs three colour channels, {self.modality!r} has {stop - start}")
        if not results["available"][self.modality]:
            return results
        whole = results["img"]
        if whole.dtype == np.uint8 and whole.shape[2] == 3:
            results["img"] = super().transform({"img": whole})["img"]
            return results
        # 8 bit also where a 16-bit neighbour made the stack float: OpenCV's HSV of floats has another range
        colour = np.ascontiguousarray(whole[..., start:stop]).round().clip(0, 255).astype(np.uint8)
        jittered = super().transform({"img": colour})["img"]
        results["img"] = np.concatenate(
            [whole[..., :start], jittered.astype(whole.dtype), whole[..., stop:]], axis=2
        )
        return results


@TRANSFORMS.register_module()
class PackModalities(BaseTransform):
    """Pack a sample: inputs {m: (C, H, W)}, label and metainfo in a SegDataSample.

    Args:
        modalities: names to pack; may be fewer than were loaded (unimodal references).
        meta_keys: copied from ``results`` where present, beside ``NEEDED``.

    Raises: ValueError for a modality that was not loaded, one that a transform left behind, or a sample that went
        through the pipeline of a wrapper.
    """

    META_KEYS = (
        "img_path", "seg_map_path", "modality_paths", "available", "ori_shape", "img_shape", "pad_shape",
        "scale_factor", "flip", "flip_direction", "reduce_zero_label",
    )

    # without them a missing sensor would look present, a head of another number of classes would go unnoticed, and
    # frames of one name in two folders would be saved to one file
    NEEDED = ("available", "modality_paths", "dataset_classes", "frame", "not_8_bit")

    def __init__(self, modalities: Sequence[str], meta_keys: Sequence[str] = META_KEYS) -> None:
        self.modalities = list(modalities)
        self.meta_keys = tuple(dict.fromkeys((*meta_keys, *self.NEEDED)))

    def transform(self, results: dict) -> dict:
        _check_loaded(results)
        if "unpacked_by" in results:
            raise ValueError(
                f"{results['unpacked_by']}'s own pipeline ends before PackModalities, and a wrapper such as "
                "MultiImageMixDataset goes on; its mosaics mix pictures and leave depth, and what is known to be "
                "missing, behind; move all steps into dataset.pipeline, and take the wrapper away"
            )
        image = results["img"]
        image = image[..., None] if image.ndim == 2 else image  # OpenCV drops an axis of length 1
        self._check_sizes(image.shape[:2], results)
        inputs = {}
        for m in self.modalities:
            if m in results["img_slices"]:
                start, stop = results["img_slices"][m]
                inputs[m] = torch.from_numpy(np.ascontiguousarray(image[..., start:stop].transpose(2, 0, 1)))
            elif m in results:
                # rotation and cut-out fill what they uncover in seg_fields with "ignore": no reading
                metres = np.where(results[m] == IGNORE, 0, results[m]).astype(np.float32)
                inputs[m] = torch.from_numpy(metres[None])
            else:
                raise ValueError(f"PackModalities.modalities names {m!r}, which LoadModalities did not load")
        sample = SegDataSample()
        if "gt_seg_map" in results:
            label = torch.from_numpy(np.ascontiguousarray(results["gt_seg_map"])[None].astype(np.int64))
            sample.gt_sem_seg = PixelData(data=label)
        sample.set_metainfo({key: results[key] for key in self.meta_keys if key in results})
        return {"inputs": inputs, "data_samples": sample}

    def _check_sizes(self, size: tuple[int, int], results: dict) -> None:
        for m in self.modalities:
            if m in results and m not in results["img_slices"] and results[m].shape[:2] != size:
                raise ValueError(
                    f"{m!r} is {results[m].shape[0]}x{results[m].shape[1]}, the image {size[0]}x{size[1]}: a "
                    "transform before PackModalities (Pad, Albu and the like, or mmcv's own "
                    "instead of mmseg's) does not move what results['seg_fields'] names; take another, or pad "
                    "with data_preprocessor.size"
                )


def check_pipeline(pipeline: Callable) -> None:
    """Refuse stock transforms that part the sensors which LoadModalities reads, without a sign in the result.

    Raises: ValueError for a transform that moves image and label without the depth sensors, or takes several stacked
        sensors for one colour picture.
    """
    steps, sensors = list(_steps(pipeline)), sensors_of(pipeline)
    depth = [sensor.name for sensor in sensors if sensor.rides_with_label]
    stacked = {sensor.name: sensor.channels for sensor in sensors if not sensor.rides_with_label}
    for step in steps:
        name = f"{type(step).__module__.split('.')[0]}.{type(step).__name__}"
        if depth and type(step) in LEAVE_DEPTH:
            raise ValueError(
                f"pipeline: {name} moves image and label and leaves {depth} behind; take mmsegmentation's own "
                "(RandomFlip, Resize, RandomCrop, ...), which moves what results['seg_fields'] names"
            )
        if depth and type(step) is Albu and "gt_seg_map" in step.keymap_to_albu:
            raise ValueError(
                f"pipeline: {name} moves image and label and leaves {depth} behind; take mmsegmentation's own "
                "(RandomFlip, RandomRotate, ...), or for transforms that move nothing set its keymap=dict(img='image')"
            )
        if type(step) is PhotoMetricDistortion and list(stacked.values()) != [3]:
            raise ValueError(
                f"pipeline: {name} takes the stacked channels {stacked} for one colour picture; use "
                "dict(type='ColorJitter', modality=...)"
            )


def sensors_of(pipeline: Callable) -> list[Sensor]:
    """What the pipeline's LoadModalities reads; empty where it has none."""
    return next((list(step.sensors.values()) for step in _steps(pipeline) if isinstance(step, LoadModalities)), [])


def _steps(step: Callable) -> Iterator[Callable]:
    """A transform and those in it: of a RandomChoice, a TestTimeAug and the like."""
    yield step
    for part in vars(step).values():
        for inner in part if isinstance(part, (list, tuple)) else [part]:
            if isinstance(inner, (BaseTransform, Compose, DatasetCompose)):
                yield from _steps(inner)
