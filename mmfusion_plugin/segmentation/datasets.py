"""Data sets of several registered sensors and one label per frame."""
from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from mmengine.logging import print_log
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from mmfusion_plugin.engine.broken_samples import BrokenSamples

from . import demo_rooms
from .sensors import DepthFormatError, SensorReadError
from .transforms import check_pipeline

__all__ = ["CWFIDDataset", "DemoRoomsDataset", "MultimodalSegDataset", "NYUDepthV2Dataset"]

LABEL = "seg_map_path"
IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
# options of BaseSegDataset that have no effect here: the value that may stand, and what to use for others
INSTEAD = dict(
    img_suffix=(None, "dataset.suffixes"),
    seg_map_suffix=(None, "dataset.suffixes"),
    reduce_zero_label=(False, "dataset.label_offset=1"),
    ignore_index=(255, "255"),
)


@DATASETS.register_module()
class MultimodalSegDataset(BrokenSamples, BaseSegDataset):
    """One file per sensor and frame, named alike in one folder per sensor.

    Args:
        modalities: names to load.
        ann_file: list of frames; a line is a name (``12``) or paths (``RGB/12.jpg Label/12.png``), of
            which the first one's stem counts, with the folders that lie in a sensor's folder (``scene1/12``). No
            blanks in names.
        data_prefix: folder of each modality and of the label (``seg_map_path``), under ``data_root``.
            Without a label folder the data set has no labels, which only ``test_mode`` allows.
        suffixes: file ending by modality and for the label; of a list the first that exists.
        label_offset: 1 if labels are stored 1..K with 0 unlabelled, 0 if 0..K-1 with 255 ignored.
        allow_missing: modalities whose file may be absent: the sample is then marked as lacking them.
        check_files: look for every file when the data set is built.
        max_broken: share of the frames that training may replace because a sensor's or the label's file cannot
            be read; 0: the first one is an error, as always in test mode.
        broken_list: file that names them; needed with ``max_broken``.
        kwargs: as in BaseSegDataset.

    Raises: FileNotFoundError for the list or for frames' files; ValueError for an empty list, doubled
        frames, unknown names, options of BaseSegDataset without a meaning here, no or too many classes, a frame
        without any sensor, or transforms that part the sensors; TooManyBroken in training.
    """

    broken_errors = (SensorReadError, DepthFormatError)

    def __init__(
        self,
        modalities: Sequence[str],
        ann_file: str,
        data_prefix: Mapping[str, str],
        suffixes: Mapping[str, str | Sequence[str]] = MappingProxyType({}),
        label_offset: int = 0,
        allow_missing: Sequence[str] = (),
        check_files: bool = True,
        max_broken: float = 0.0,
        broken_list: str | None = None,
        **kwargs,
    ) -> None:
        self.allow_broken(max_broken, broken_list, kwargs.get("test_mode", False))
        for key, (harmless, instead) in INSTEAD.items():
            if key in kwargs and kwargs[key] != harmless:
                raise ValueError(f"dataset.{key}={kwargs[key]!r} has no effect here; use {instead}")
        for key, names in (("modalities", modalities), ("allow_missing", allow_missing)):
            if isinstance(names, str):
                raise ValueError(f"dataset.{key} must be a list such as [{names!r}], got {names!r}")
        labelled = LABEL in data_prefix or not kwargs.get("test_mode", False)
        for key, names in (("data_prefix", data_prefix), ("suffixes", suffixes)):
            lacking = sorted({*modalities, *([LABEL] if labelled else [])} - set(names))
            if lacking:
                raise ValueError(f"dataset.{key} has no entry for {lacking}; it names {sorted(names)}")
        unknown = sorted(set(allow_missing) - set(modalities))
        if unknown:
            raise ValueError(f"dataset.allow_missing names {unknown}, modalities names {list(modalities)}")
        if label_offset not in (0, 1):
            raise ValueError(f"dataset.label_offset must be 0 or 1, got {label_offset}")
        self.modalities = list(modalities)
        self.labelled = labelled
        self.suffixes = {k: [v] if isinstance(v, str) else list(v) for k, v in suffixes.items()}
        self.label_offset = label_offset
        self.allow_missing = set(allow_missing)
        self.check_files = check_files
        super().__init__(ann_file=ann_file, data_prefix=dict(data_prefix), **kwargs)
        check_pipeline(self.pipeline)

    def prepare_data(self, idx: int) -> dict | None:
        sample = super().prepare_data(idx)
        if isinstance(sample, dict) and "img_slices" in sample:  # a wrapper's own pipeline goes on, which none checked
            sample["unpacked_by"] = type(self).__name__
        return sample

    def load_data_list(self) -> list[dict]:
        if not self.metainfo.get("classes"):
            raise ValueError("dataset.metainfo=dict(classes=[...], palette=[...]) has to name the classes")
        if len(self.metainfo["classes"]) > 255:
            raise ValueError(
                f"dataset.metainfo.classes names {len(self.metainfo['classes'])} classes, a label of 8 bits has room "
                "for 255 beside 'ignore'; choose some of them"
            )
        frames = [self._frame(stem) for stem in self._stems()]
        if self.check_files:
            self._check(frames)
        return frames

    def _stems(self) -> list[str]:
        path = Path(self.ann_file)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such list of frames; set dataset.data_root (now {self.data_root!r}) and ann_file"
            )
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text: {error}; see dataset.ann_file") from error
        stems = [self._stem(line.split()[0]) for line in lines if line.strip()]
        if not stems:
            raise ValueError(f"{path} lists no frame")
        doubled = [stem for stem, number in Counter(stems).items() if number > 1]
        if doubled:
            blanks = "; what stands behind a blank is another file: rename files with blanks in their names" \
                if any(len(line.split()) > 1 for line in lines) else ""
            raise ValueError(f"{path} lists {len(doubled)} frames more than once, first {doubled[:3]}{blanks}")
        return stems

    def _stem(self, entry: str) -> str:
        """With the part of its folder that lies in a sensor's. Path.stem would shorten a plain name with a dot, too."""
        name = Path(entry).name
        endings = sorted({*IMAGES, *(e for candidates in self.suffixes.values() for e in candidates)}, key=len)
        ending = next((e for e in reversed(endings) if e and name.endswith(e) and name != e), "")
        parts = [*Path(entry).parts[:-1], name.removesuffix(ending)]
        first = max((i + 1 for i, part in enumerate(parts) if part in ("..", Path(entry).anchor)), default=0)
        candidates = ["/".join(parts[i:]) for i in range(first, len(parts))]
        found = (stem for stem in candidates[:-1] if any(Path(self._find(m, stem)).is_file() for m in self.modalities))
        return next(found, candidates[-1])

    def _frame(self, stem: str) -> dict:
        paths: dict[str, str | None] = {m: self._find(m, stem) for m in self.modalities}
        for m in self.allow_missing:
            if not Path(paths[m]).is_file():
                paths[m] = None
        there = [path for path in paths.values() if path is not None]
        if not there:
            raise ValueError(f"frame {stem!r} of {self.ann_file} has none of {self.modalities}")
        return dict(
            frame=stem,
            # visualisers of mmsegmentation open this one
            img_path=there[0],
            modality_paths=paths,
            seg_map_path=self._find(LABEL, stem) if self.labelled else None,
            label_offset=self.label_offset,
            # as stored, of which metainfo.classes may have chosen some
            num_classes=len(self.label_map or self.metainfo["classes"]),
            dataset_classes=len(self.metainfo["classes"]),
            label_map=self.label_map,
            reduce_zero_label=self.label_offset == 1,  # IoUMetric then saves predictions numbered as the labels
            seg_fields=[],
        )

    def _find(self, what: str, stem: str) -> str:
        candidates = [Path(self.data_prefix[what]) / f"{stem}{suffix}" for suffix in self.suffixes[what]]
        return str(next((path for path in candidates if path.is_file()), candidates[0]))

    def _check(self, frames: Sequence[dict]) -> None:
        absent = [
            (what, path)
            for frame in frames
            for what, path in (*frame["modality_paths"].items(), (LABEL, frame[LABEL]))
            if path is not None and not Path(path).is_file()
        ]
        if absent:
            numbers = Counter(what for what, _ in absent)
            sensors = sorted(self.allow_missing | set(numbers) - {LABEL})
            rescue = f"; or, if frames may lack a sensor, set dataset.allow_missing={sensors}"
            raise FileNotFoundError(
                f"{len(absent)} files that {self.ann_file} asks for do not exist ({dict(numbers)}), first "
                f"{[path for _, path in absent[:3]]}; check dataset.data_root, data_prefix and suffixes"
                + (rescue if set(numbers) - {LABEL} else "")
            )
        # A wrong folder would otherwise look like a sensor that is always absent.
        for m in sorted(self.allow_missing):
            number = sum(frame["modality_paths"][m] is None for frame in frames)
            if number:
                print_log(
                    f"{m!r} is absent in {number} of the {len(frames)} frames of {self.ann_file} "
                    f"(looked in {self.data_prefix[m]}; allowed by dataset.allow_missing)",
                    logger="current", level=logging.WARNING,
                )


@DATASETS.register_module()
class NYUDepthV2Dataset(MultimodalSegDataset):
    """NYU Depth v2, 40 classes (795 training and 654 test frames of 480x640).

    The default layout is the one that DFormer and CMX users have: ``RGB/``, ``Depth/`` (or ``HHA/``),
    ``Label/``, ``train.txt``, ``test.txt``, labels stored 1..40 with 0 unlabelled.
    Source: Silberman et al., ECCV 2012; class names from ``classMapping40.mat``.
    """

    # colours as far apart as 40 can be, also for deuteranopes; the calm ones go to the large classes
    METAINFO = dict(
        classes=(
            "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
            "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror",
            "floor mat", "clothes", "ceiling", "books", "refridgerator", "television", "paper", "towel",
            "shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp",
            "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
        ),
        palette=[
            [94, 133, 133], [172, 198, 237], [159, 237, 237], [146, 172, 120], [237, 159, 185],
            [16, 172, 172], [133, 237, 185], [185, 94, 68], [185, 146, 81], [224, 237, 133],
            [172, 120, 198], [16, 120, 237], [237, 198, 94], [94, 81, 107], [133, 94, 211],
            [237, 120, 16], [107, 198, 55], [16, 68, 42], [237, 42, 133], [81, 55, 16],
            [16, 237, 133], [94, 133, 16], [120, 55, 55], [94, 29, 68], [237, 237, 16],
            [16, 107, 172], [159, 55, 94], [237, 55, 237], [237, 16, 16], [146, 16, 16],
            [16, 237, 16], [172, 16, 146], [94, 16, 107], [68, 42, 185], [16, 55, 146],
            [133, 42, 237], [16, 16, 237], [55, 198, 237], [16, 133, 68], [237, 237, 185],
        ],
    )

    def __init__(
        self,
        modalities: Sequence[str] = ("rgb", "depth"),
        ann_file: str = "train.txt",
        data_prefix: Mapping[str, str] | None = None,
        suffixes: Mapping[str, str | Sequence[str]] | None = None,
        label_offset: int = 1,
        **kwargs,
    ) -> None:
        data_prefix = data_prefix or dict(rgb="RGB", depth="Depth", seg_map_path="Label")
        suffixes = suffixes or dict(rgb=[".png", ".jpg"], depth=".png", seg_map_path=".png")
        super().__init__(modalities, ann_file, data_prefix, suffixes, label_offset, **kwargs)


@DATASETS.register_module()
class CWFIDDataset(MultimodalSegDataset):
    """Crop/Weed Field Image Dataset: a red and a near-infrared camera, registered; soil, crop, weed.

    Source: Haug and Ostermann, CVPPP 2014.
    """

    # orange, blue and black stay apart for colour-blind readers
    METAINFO = dict(
        classes=("soil", "crop", "weed"), palette=[[40, 40, 40], [86, 180, 233], [230, 159, 0]]
    )

    def __init__(
        self,
        modalities: Sequence[str] = ("red", "nir"),
        ann_file: str = "train.txt",
        data_prefix: Mapping[str, str] | None = None,
        suffixes: Mapping[str, str | Sequence[str]] | None = None,
        **kwargs,
    ) -> None:
        data_prefix = data_prefix or dict(red="red", nir="nir", seg_map_path="label")
        suffixes = suffixes or dict(red=".png", nir=".png", seg_map_path=".png")
        super().__init__(modalities, ann_file, data_prefix, suffixes, **kwargs)


@DATASETS.register_module()
class DemoRoomsDataset(NYUDepthV2Dataset):
    """The rendered rooms of :mod:`.demo_rooms`, in NYU layout: 16-bit millimetre depth, labels 1..K."""

    METAINFO = dict(classes=tuple(demo_rooms.CLASSES), palette=[list(c) for c in demo_rooms.PALETTE])
