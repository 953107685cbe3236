"""Data sets of several registered sensors and one label per frame."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from . import demo_rooms

__all__ = ["CWFIDDataset", "DemoRoomsDataset", "MultimodalSegDataset", "NYUDepthV2Dataset"]

LABEL = "seg_map_path"


@DATASETS.register_module()
class MultimodalSegDataset(BaseSegDataset):
    """One file per sensor and frame, named alike in one folder per sensor.

    Args:
        modalities: names to load.
        ann_file: list of frames; a line is a name (``12``) or a path (``RGB/12.jpg``), of which the
            stem counts.
        data_prefix: folder of each modality and of the label (``seg_map_path``), under ``data_root``.
        suffixes: file ending by modality and for the label; a list tries one after the other.
        label_offset: 1 if labels are stored 1..K with 0 unlabelled, 0 if 0..K-1 with 255 ignored.
        allow_missing: modalities whose file may be absent: the sample is then marked as lacking them.
        check_files: look for every file when the data set is built.
        kwargs: as in BaseSegDataset.

    Raises: FileNotFoundError for the list or for frames' files; ValueError for an empty list, doubled
        frames, unknown names, or a frame without any sensor.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        ann_file: str,
        data_prefix: Mapping[str, str],
        suffixes: Mapping[str, str | Sequence[str]],
        label_offset: int = 0,
        allow_missing: Sequence[str] = (),
        check_files: bool = True,
        **kwargs,
    ) -> None:
        for key, names in (("data_prefix", data_prefix), ("suffixes", suffixes)):
            lacking = sorted({*modalities, LABEL} - set(names))
            if lacking:
                raise ValueError(f"dataset.{key} has no entry for {lacking}; it names {sorted(names)}")
        unknown = sorted(set(allow_missing) - set(modalities))
        if unknown:
            raise ValueError(f"dataset.allow_missing names {unknown}, modalities names {list(modalities)}")
        if label_offset not in (0, 1):
            raise ValueError(f"dataset.label_offset must be 0 or 1, got {label_offset}")
        self.modalities = list(modalities)
        self.suffixes = {k: [v] if isinstance(v, str) else list(v) for k, v in suffixes.items()}
        self.label_offset = label_offset
        self.allow_missing = set(allow_missing)
        self.check_files = check_files
        super().__init__(ann_file=ann_file, data_prefix=dict(data_prefix), **kwargs)

    def load_data_list(self) -> list[dict]:
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
        stems = [Path(line.split()[0]).stem for line in path.read_text().splitlines() if line.strip()]
        if not stems:
            raise ValueError(f"{path} lists no frame")
        doubled = sorted({stem for stem in stems if stems.count(stem) > 1}) if len(set(stems)) < len(stems) else []
        if doubled:
            raise ValueError(f"{path} lists {len(doubled)} frames more than once, first {doubled[:3]}")
        return stems

    def _frame(self, stem: str) -> dict:
        paths: dict[str, str | None] = {m: self._find(m, stem) for m in self.modalities}
        for m in self.allow_missing:
            if not Path(paths[m]).is_file():
                paths[m] = None
        there = [path for path in paths.values() if path is not None]
        if not there:
            raise ValueError(f"frame {stem!r} of {self.ann_file} has none of {self.modalities}")
        return dict(
            # visualisers of mmsegmentation open this one
            img_path=there[0],
            modality_paths=paths,
            seg_map_path=self._find(LABEL, stem),
            label_offset=self.label_offset,
            num_classes=len(self.metainfo["classes"]),
            label_map=self.label_map,
            reduce_zero_label=False,
            seg_fields=[],
        )

    def _find(self, what: str, stem: str) -> str:
        candidates = [Path(self.data_prefix[what]) / f"{stem}{suffix}" for suffix in self.suffixes[what]]
        return str(next((path for path in candidates if path.is_file()), candidates[0]))

    def _check(self, frames: Sequence[dict]) -> None:
        absent = [
            path
            for frame in frames
            for path in (*frame["modality_paths"].values(), frame[LABEL])
            if path is not None and not Path(path).is_file()
        ]
        if absent:
            raise FileNotFoundError(
                f"{len(absent)} files that {self.ann_file} asks for do not exist, first {absent[:3]}; check "
                "dataset.data_prefix and suffixes, or name a sensor that may be absent in "
                f"dataset.allow_missing (now {sorted(self.allow_missing)})"
            )


@DATASETS.register_module()
class NYUDepthV2Dataset(MultimodalSegDataset):
    """NYU Depth v2, 40 classes (795 training and 654 test frames of 480x640).

    The default layout is the one that DFormer and CMX users have: ``RGB/``, ``Depth/`` (or ``HHA/``),
    ``Label/``, ``train.txt``, ``test.txt``, labels stored 1..40 with 0 unlabelled.
    Source: Silberman et al., ECCV 2012; class names from ``classMapping40.mat``.
    """

    METAINFO = dict(
        classes=(
            "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
            "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror",
            "floor mat", "clothes", "ceiling", "books", "refridgerator", "television", "paper", "towel",
            "shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp",
            "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
        ),
        palette=[
            [174, 199, 232], [152, 223, 138], [31, 119, 180], [255, 187, 120], [188, 189, 34],
            [140, 86, 75], [255, 152, 150], [214, 39, 40], [197, 176, 213], [148, 103, 189],
            [196, 156, 148], [23, 190, 207], [178, 76, 76], [247, 182, 210], [66, 188, 102],
            [219, 219, 141], [140, 57, 197], [202, 185, 52], [51, 176, 203], [200, 54, 131],
            [92, 193, 61], [78, 71, 183], [172, 114, 82], [255, 127, 14], [91, 163, 138],
            [153, 98, 156], [140, 153, 101], [158, 218, 229], [100, 125, 154], [178, 127, 135],
            [120, 185, 128], [146, 111, 194], [44, 160, 44], [112, 128, 144], [96, 207, 209],
            [227, 119, 194], [213, 92, 176], [94, 106, 211], [82, 84, 163], [100, 85, 144],
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
