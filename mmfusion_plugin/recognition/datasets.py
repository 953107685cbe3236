"""Data sets of clips with picture and sound, and of ready-made features by modality."""
from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from mmaction.datasets.base import BaseActionDataset
from mmaction.registry import DATASETS, TRANSFORMS
from mmaction.structures import ActionDataSample
from mmcv.transforms import BaseTransform

from mmfusion_plugin.engine.broken_samples import BrokenSamples
from mmfusion_plugin.engine.mat_files import MatFile

from .clip_lists import SOUNDS, VIDEOS, class_key, load_class_list, read_lines
from .media import MediaError, MissingFile

__all__ = [
    "AudioVisualDataset", "CremaDDataset", "FeatureDataset", "KineticsSoundDataset", "PackFeatures",
]

MODALITIES = ("visual", "audio")
GIB = 1 << 30
ABSENT = "-"  # stands for "no file" in an annotation line


@DATASETS.register_module()
class AudioVisualDataset(BrokenSamples, BaseActionDataset):
    """One annotation line per clip: ``path label``; the sound is in the same file, or in one of its own.

    A line is read from the right, so the first path may hold blanks. A label is the index of a class, or
    its name (blanks written as ``_`` where blanks separate the fields). ``-`` in place of a path: this clip
    lacks the modality.

    Args:
        ann_file: the list, under ``data_root``.
        pipeline: transforms; the first one is usually ``LoadClip``.
        data_prefix: folders of ``visual`` and ``audio``, under ``data_root``. With ``audio`` the sound comes
            from there, at the listed path with its ending replaced by ``audio_suffix``; without, from the
            listed file itself.
        fields: what a line holds: ``['visual', 'label']``, or ``['visual', 'audio', 'label']`` for sound
            files with names of their own (in ``data_prefix['audio']``, else beside the pictures).
        delimiter: between the fields; None: any white space.
        visual_suffix: replaces the ending of the listed picture path; ``''`` for clips extracted to a
            folder of frames each, so that one list serves both. None: the path as listed.
        audio_suffix: see ``data_prefix``.
        check_files: look for every file when the data set is built; otherwise a missing one is an error
            when it is read.
        max_broken: share of the clips that training may replace because nothing of them can be read as
            ``LoadClip.on_fault`` demands; 0: the first one is an error, as always in test mode.
        broken_list: file that names them; needed with ``max_broken``.
        kwargs: as in BaseActionDataset. Classes come from ``metainfo=dict(classes=[...])``; ``num_classes``
            is enough for lists of indices.

    A sample: ``media`` {'visual': path or None, 'audio': path or None}, ``filename``, ``label`` (int),
        ``line`` (in the list), ``num_classes``.
    Raises: FileNotFoundError for the list and, with ``check_files``, for clips; ValueError for options that
        make no sense, a list without clips, and a line that cannot be read or names a label that is no class;
        TooManyBroken in training.
    """

    broken_errors = (MediaError,)

    def __init__(
        self,
        ann_file: str,
        pipeline: Sequence,
        data_prefix: Mapping[str, str] | None = None,
        fields: Sequence[str] = ("visual", "label"),
        delimiter: str | None = None,
        visual_suffix: str | None = None,
        audio_suffix: str = ".wav",
        check_files: bool = False,
        max_broken: float = 0.0,
        broken_list: str | None = None,
        **kwargs,
    ) -> None:
        self.allow_broken(max_broken, broken_list, kwargs.get("test_mode", False))
        data_prefix = dict(data_prefix or {})
        unknown = sorted(set(data_prefix) - set(MODALITIES))
        if unknown:
            raise ValueError(f"dataset.data_prefix names {unknown}, known are {list(MODALITIES)}")
        fields = list(fields)
        if len(set(fields)) != len(fields) or fields[-1:] != ["label"] or not set(fields[:-1]) <= set(MODALITIES) \
                or len(fields) < 2:
            raise ValueError(
                f"dataset.fields must be ['visual', 'label'] or ['visual', 'audio', 'label'], got {fields}"
            )
        if delimiter == "":
            raise ValueError("dataset.delimiter must be None (white space) or hold a character, got ''")
        if kwargs.get("multi_class"):
            raise ValueError("dataset.multi_class is not supported: a line names one class")
        self.fields = fields
        self.delimiter = delimiter
        self.visual_suffix = visual_suffix
        self.audio_suffix = audio_suffix
        self.check_files = check_files
        super().__init__(ann_file, list(pipeline), data_prefix={"visual": "", **data_prefix}, **kwargs)

    def load_data_list(self) -> list[dict]:
        classes = _classes(self)
        path = Path(self.ann_file)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such list of clips; set dataset.data_root (now {self.data_root!r}) and ann_file"
            )
        lines = [(number, line) for number, line in enumerate(read_lines(path), 1) if line.strip()]
        if not lines:
            raise ValueError(f"{path} lists no clip")
        clips = [self._clip(number, line, classes) for number, line in lines]
        first: dict[tuple, int] = {}
        for clip in clips:
            earlier = first.setdefault(tuple(clip["media"].values()), clip["line"])
            if earlier != clip["line"]:
                raise ValueError(f"{path} lists {clip['filename']} twice, in lines {earlier} and {clip['line']}")
        if self.check_files:
            self._check(clips)
        return clips

    def get_data_info(self, idx: int) -> dict:
        return super().get_data_info(idx) | dict(num_classes=_number_of(_classes(self)))

    def get_cat_ids(self, idx: int) -> list[int]:
        """The class of one clip, as mmengine's ClassBalancedDataset asks for it."""
        return [self.get_data_info(idx)["label"]]

    def prepare_data(self, idx: int) -> dict | None:
        try:
            return super().prepare_data(idx)
        except MissingFile as error:
            line = self.get_data_info(idx)["line"]
            raise MissingFile(
                f"{error} (line {line} of {self.ann_file}; check dataset.data_root and data_prefix)"
            ) from error

    def _clip(self, number: int, line: str, classes: Sequence[str] | int) -> dict:
        where = f"{self.ann_file}, line {number}"
        values = [value.strip() for value in line.strip().rsplit(self.delimiter, len(self.fields) - 1)]
        if len(values) != len(self.fields) or not all(values):
            raise ValueError(
                f"{where}: expected {' '.join(self.fields)} separated by {self.delimiter or 'white space'!r}, got "
                f"{line.strip()!r}; see dataset.fields and dataset.delimiter"
            )
        listed = dict(zip(self.fields, values))
        media = self._media(listed)
        if not any(media.values()):
            raise ValueError(f"{where} names neither a video nor a sound file: {line.strip()!r}")
        label = _label(listed["label"], classes, where)
        return dict(filename=media["visual"] or media["audio"], media=media, label=label, line=number)

    def _media(self, listed: Mapping[str, str]) -> dict[str, str | None]:
        paths: dict[str, str | None] = dict.fromkeys(MODALITIES)
        for m in MODALITIES:
            if listed.get(m, ABSENT) != ABSENT:
                folder = self.data_prefix.get(m, self.data_prefix["visual"])
                paths[m] = str(Path(folder) / listed[m])
        if "audio" not in listed and listed["visual"] != ABSENT:
            if "audio" in self.data_prefix:
                name = _with_ending(listed["visual"], self.audio_suffix)
                paths["audio"] = str(Path(self.data_prefix["audio"]) / name)
            elif self.visual_suffix is None:
                paths["audio"] = paths["visual"]
            else:
                raise ValueError(
                    f"dataset.visual_suffix={self.visual_suffix!r} names files without sound; set "
                    "dataset.data_prefix.audio, or list sound files (dataset.fields)"
                )
        if paths["visual"] is not None and self.visual_suffix is not None:
            paths["visual"] = _with_ending(paths["visual"], self.visual_suffix)
        return paths

    def _check(self, clips: Sequence[dict]) -> None:
        absent = [
            f"line {clip['line']}: {path}"
            for clip in clips
            for path in dict.fromkeys(clip["media"].values())
            if path is not None and not Path(path).exists()
        ]
        if absent:
            raise FileNotFoundError(
                f"{len(absent)} files that {self.ann_file} asks for do not exist, first {absent[:5]}; "
                "check dataset.data_root, data_prefix and audio_suffix"
            )


@DATASETS.register_module()
class KineticsSoundDataset(AudioVisualDataset):
    """Kinetics-Sound, as ``tools/convert_kinetics_sound.py`` lists it.

    Args:
        class_list: ``ks31`` (most papers), ``ks32``, ``ks33`` (UDML's), ``ks34`` (the original names), or a
            file; it has to be the one the lists were made with.
        kwargs: as in AudioVisualDataset.

    Source: Arandjelovic and Zisserman, ICCV 2017; Kay et al., 2017. The list files name theirs.
    """

    def __init__(self, ann_file: str, pipeline: Sequence, class_list: str = "ks31", metainfo: dict | None = None,
                 **kwargs) -> None:
        if metainfo and "classes" in metainfo:
            raise ValueError("KineticsSoundDataset takes its classes from dataset.class_list; remove metainfo.classes")
        metainfo = {**(metainfo or {}), "classes": load_class_list(class_list)}
        super().__init__(ann_file, pipeline, metainfo=metainfo, **kwargs)


@DATASETS.register_module()
class CremaDDataset(AudioVisualDataset):
    """CREMA-D: 7,442 clips of 91 actors, six emotions, as ``tools/convert_crema_d.py`` lists it.

    Its usual split (6,698 / 744) has every actor in both parts: it measures emotions of known faces and
    voices. The speaker-disjoint one (5,144 / 738 / 1,556) does not.

    Source: Cao et al., IEEE Transactions on Affective Computing 2014.
    """

    METAINFO = dict(classes=("NEU", "HAP", "SAD", "FEA", "DIS", "ANG"))

    def __init__(self, ann_file: str, pipeline: Sequence, data_prefix: Mapping[str, str] | None = None,
                 **kwargs) -> None:
        super().__init__(ann_file, pipeline, data_prefix or dict(visual="VideoFlash", audio="AudioWAV"), **kwargs)


@DATASETS.register_module()
class FeatureDataset(BaseActionDataset):
    """Ready-made features: one array per modality in a ``.npz`` or ``.mat`` file, one row per sample.

    Neither kind of file can run code here: arrays of Python objects (pickles, MATLAB cells) are refused, and so is
    a small file that unpacks to more than fits the memory.

    Args:
        ann_file: the file, under ``data_root``.
        pipeline: usually ``[dict(type='PackFeatures')]``.
        arrays: name of each modality's array; ``{split}`` in it is replaced by ``split``.
        label: name of the labels' array, likewise.
        split: see ``arrays``.
        label_offset: the lowest label as stored, 1 for MATLAB's 1..K.
        standardize: None; ``dict(mean={m: values}, std={m: values})``; or ``dict(file=..., split=...)``: mean
            and standard deviation of each column over these rows (a column without any spread is divided by
            1). Name the training part there in the configs of all parts: no statistics of test data. Of a part
            that ``fold`` shares out, the rows of its ``'train'``.
        max_gib: GiB that the arrays may have unpacked.
        nonfinite: ``error``, or ``missing``: a row of a modality that holds NaN or infinity is a missing one.
        fold: None, or ``dict(number=4, index=0, part='train')`` where the file has no validation part: of every
            ``number`` rows in a row, the one at ``index`` is for ``part='validation'``, the others for ``'train'``.
        kwargs: as in BaseActionDataset; ``metainfo=dict(classes=[...])`` or ``num_classes`` is needed.

    Shapes: arrays (N, C) or (N, T, C), N the same for all and for the labels.
    A sample: ``inputs`` {m: (C,) or (T, C) float32}, ``available`` {m: bool}, ``label`` (int), ``filename``
        (file and row).
    Raises: FileNotFoundError for the file; ValueError for absent keys, object arrays, shapes that do not agree,
        labels that are no class, and non-finite values (key and row named).
    """

    def __init__(
        self,
        ann_file: str,
        pipeline: Sequence,
        arrays: Mapping[str, str],
        label: str = "label",
        split: str | None = None,
        label_offset: int = 0,
        standardize: Mapping | None = None,
        nonfinite: str = "error",
        max_gib: float = 16.0,
        fold: Mapping | None = None,
        **kwargs,
    ) -> None:
        if not isinstance(arrays, Mapping) or not arrays:
            raise ValueError(f"dataset.arrays must name an array for each modality, got {arrays!r}")
        if split is None and any("{split}" in key for key in (*arrays.values(), label)):
            raise ValueError("dataset.arrays or label holds {split}; set dataset.split")
        if nonfinite not in ("error", "missing"):
            raise ValueError(f"dataset.nonfinite must be 'error' or 'missing', got {nonfinite!r}")
        if standardize is not None and set(standardize) not in ({"mean", "std"}, {"file"}, {"file", "split"}):
            raise ValueError(
                "dataset.standardize must be None, dict(mean={m: ...}, std={m: ...}) or dict(file=..., split=...), "
                f"got {dict(standardize)!r}"
            )
        if kwargs.get("multi_class"):
            raise ValueError("dataset.multi_class is not supported: a row has one class")
        self.arrays = dict(arrays)
        self.label_key = label
        self.split = split
        self.label_offset = label_offset
        self.standardize = standardize
        self.nonfinite = nonfinite
        self.max_gib = max_gib
        self.fold = _checked_fold(fold)
        self._rows: dict[str, np.ndarray] = {}
        self._there: dict[str, np.ndarray] = {}
        super().__init__(ann_file, list(pipeline), **kwargs)

    def load_data_list(self) -> list[dict]:
        path = Path(self.ann_file)
        number_of_classes = _number_of(_classes(self))
        label_key = self._key(self.label_key, self.split)
        self._rows, self._there, others = self._load(path, self.split, {label_key: "labels"})
        numbers = {self._key(key, self.split): len(self._rows[m]) for m, key in self.arrays.items()}
        stored = others[label_key]
        if stored.size != stored.shape[0] and 1 not in stored.shape:
            raise ValueError(f"{path}: labels {label_key!r} have shape {stored.shape}, expected (N,)")
        stored = stored.ravel().astype(np.float64)
        numbers[label_key] = len(stored)
        if len(set(numbers.values())) > 1:
            raise ValueError(f"{path}: the arrays hold different numbers of rows: {numbers}; rows are the first axis")
        if not len(stored):
            raise ValueError(f"{path}: {label_key!r} holds no row")
        labels = stored - self.label_offset
        wrong = np.flatnonzero(~np.isin(labels, np.arange(number_of_classes)))
        if len(wrong):
            raise ValueError(
                f"{path}: {label_key!r} holds {stored[wrong[0]]:g} in row {wrong[0]} ({len(wrong)} such rows), "
                f"expected integers {self.label_offset}..{self.label_offset + number_of_classes - 1}; see "
                "dataset.label_offset and metainfo.classes"
            )
        nothing = np.flatnonzero(~np.any(list(self._there.values()), axis=0))
        if len(nothing):
            raise ValueError(f"{path}: row {nothing[0]} has a non-finite value in every modality; remove the row")
        mean, std = self._statistics()
        for m, rows in self._rows.items():
            missing = ~self._there[m]
            rows[missing] = 0
            self._rows[m] = ((rows - mean[m]) / std[m]).astype(np.float32)
            self._rows[m][missing] = 0
        return [dict(row=row, label=int(label), filename=f"{path}[{row}]")
                for row, label in enumerate(labels) if self._in_fold(row)]

    def _in_fold(self, row: int) -> bool:
        if self.fold is None:
            return True
        return (row % self.fold["number"] == self.fold["index"]) == (self.fold["part"] == "validation")

    def get_data_info(self, idx: int) -> dict:
        info = super().get_data_info(idx)
        row = info["row"]
        info["num_classes"] = _number_of(_classes(self))
        info["inputs"] = {m: rows[row] for m, rows in self._rows.items()}
        info["available"] = {m: bool(there[row]) for m, there in self._there.items()}
        return info

    def get_cat_ids(self, idx: int) -> list[int]:
        """The class of one row, as mmengine's ClassBalancedDataset asks for it."""
        return [self.get_data_info(idx)["label"]]

    def _key(self, pattern: str, split: str | None) -> str:
        return pattern.replace("{split}", split or "")

    def _load(self, path: Path, split: str | None, others: Mapping[str, str]) -> tuple[dict, dict, dict]:
        """Rows (N, ...) float64 and their availability (N,) by modality; the other arrays by key."""
        keys = {m: self._key(key, split) for m, key in self.arrays.items()}
        found = _read_arrays(path, [*keys.values(), *others], self.max_gib)
        rows, there = {}, {}
        for m, key in keys.items():
            if found[key].ndim not in (2, 3):
                raise ValueError(
                    f"{path}: {key!r} has shape {found[key].shape}, expected (N, C) or (N, T, C); see dataset.arrays"
                )
            rows[m] = found[key].astype(np.float64)
            there[m] = np.isfinite(rows[m]).all(tuple(range(1, rows[m].ndim)))
            if self.nonfinite == "error" and not there[m].all():
                row = int(np.flatnonzero(~there[m])[0])
                raise ValueError(
                    f"{path}: {key!r} holds a non-finite value in row {row} ({int((~there[m]).sum())} such rows); "
                    "clean it, or set dataset.nonfinite='missing'"
                )
        return rows, there, {key: found[key] for key in others}

    def _statistics(self) -> tuple[dict, dict]:
        """Mean and standard deviation by modality: numbers or (C,)."""
        if self.standardize is None:
            return dict.fromkeys(self.arrays, 0.0), dict.fromkeys(self.arrays, 1.0)
        if "mean" in self.standardize:
            return self._given_statistics()
        path = Path(self.standardize["file"])
        if self.data_root and not path.is_absolute():
            path = Path(self.data_root) / path
        split = self.standardize.get("split", self.split)
        rows, there, _ = self._load(path, split, {})
        shared_out = self.fold is not None and split == self.split and path.samefile(self.ann_file)
        mean, std = {}, {}
        for m in self.arrays:
            trains = np.arange(len(rows[m])) % self.fold["number"] != self.fold["index"] if shared_out else True
            kept = rows[m][there[m] & trains]
            if kept.shape[-1:] != self._rows[m].shape[-1:] or not kept.size:
                raise ValueError(
                    f"{path}: {m!r} has shape {kept.shape}, {self.ann_file} {self._rows[m].shape}; check "
                    "dataset.standardize.file"
                )
            axes = tuple(range(kept.ndim - 1))
            mean[m], std[m] = kept.mean(axes), kept.std(axes)
            # rounding leaves a constant column a spread of about 1e-16 of its size
            std[m][std[m] <= 1e-12 * np.abs(mean[m])] = 1.0
        return mean, std

    def _given_statistics(self) -> tuple[dict, dict]:
        values = {}
        for key in ("mean", "std"):
            given = self.standardize[key]
            if not isinstance(given, Mapping) or set(given) != set(self.arrays):
                raise ValueError(f"dataset.standardize.{key} must name {sorted(self.arrays)}, got {given!r}")
            values[key] = {m: np.asarray(value, np.float64) for m, value in given.items()}
            for m, value in values[key].items():
                width = self._rows[m].shape[-1]
                sound = np.isfinite(value).all() and (key == "mean" or (value > 0).all())
                if value.shape not in ((), (width,)) or not sound:
                    raise ValueError(
                        f"dataset.standardize.{key}.{m} must be one number or {width}, finite"
                        f"{' and positive' if key == 'std' else ''}; got shape {value.shape}"
                    )
        return values["mean"], values["std"]


@TRANSFORMS.register_module()
class PackFeatures(BaseTransform):
    """Features to what the recognizer takes.

    Args:
        modalities: which to pack; None: all that the data set gives.

    Gives: ``inputs`` {m: (C,) or (T, C) float32 tensor}, ``data_samples`` with ``gt_label`` and the metainfo
        ``filename``, ``num_classes`` and ``available``. A missing modality's tensor is a filler of zeros.
    Raises: ValueError for a modality that the data set does not give.
    """

    def __init__(self, modalities: Sequence[str] | None = None) -> None:
        if isinstance(modalities, str):
            raise ValueError(f"PackFeatures.modalities must be a list such as [{modalities!r}], got {modalities!r}")
        self.modalities = modalities

    def transform(self, results: dict) -> dict:
        inputs, available = results["inputs"], results["available"]
        modalities = list(inputs) if self.modalities is None else list(self.modalities)
        lacking = sorted(set(modalities) - set(inputs))
        if lacking:
            raise ValueError(f"PackFeatures.modalities names {lacking}, dataset.arrays names {sorted(inputs)}")
        sample = ActionDataSample().set_gt_label(results["label"])
        sample.set_metainfo(
            dict(filename=results["filename"], num_classes=results["num_classes"],
                 available={m: available[m] for m in modalities})
        )
        # a copy: the rows belong to the data set
        return dict(inputs={m: torch.tensor(inputs[m]) for m in modalities}, data_samples=sample)


def _with_ending(path: str, ending: str) -> str:
    """A dot inside a clip's name is no ending."""
    known = Path(path).suffix.lower() in VIDEOS | SOUNDS
    return str(Path(path).with_suffix(ending)) if known else path + ending


def _checked_fold(fold: Mapping | None) -> dict | None:
    if fold is None:
        return None
    example = "dict(number=4, index=0, part='train')"
    if set(fold) != {"number", "index", "part"} or fold["part"] not in ("train", "validation"):
        raise ValueError(f"dataset.fold must be None or such as {example} (or part='validation'), got {dict(fold)!r}")
    number, index = fold["number"], fold["index"]
    if not (isinstance(number, int) and isinstance(index, int) and number > 1 and 0 <= index < number):
        raise ValueError(f"dataset.fold.number must be 2 or more and index from 0 to number - 1, got {dict(fold)!r}")
    return dict(fold)


def _classes(dataset: BaseActionDataset) -> list[str] | int:
    """The classes' names, or their number where the config gives no names."""
    names, number = dataset.metainfo.get("classes"), dataset.num_classes
    if names is None and number is None:
        raise ValueError("dataset.metainfo=dict(classes=[...]) or dataset.num_classes has to say which classes exist")
    if names is None:
        if not isinstance(number, Integral) or number < 1:
            raise ValueError(f"dataset.num_classes must be a positive integer, got {number!r}")
        return int(number)
    if isinstance(names, str) or not names:
        raise ValueError(f"dataset.metainfo.classes must list names, or be the path of a file of names; got {names!r}")
    names = [str(name) for name in names]
    if number is not None and number != len(names):
        raise ValueError(f"dataset.num_classes is {number}, metainfo.classes lists {len(names)}")
    for index, name in enumerate(names):
        if name.isdecimal() and int(name) != index:
            raise ValueError(
                f"dataset.metainfo.classes: class {name!r} has index {index}, so a label {name!r} would be ambiguous"
            )
    return names


def _number_of(classes: Sequence[str] | int) -> int:
    return classes if isinstance(classes, int) else len(classes)


def _label(text: str, classes: Sequence[str] | int, where: str) -> int:
    number = _number_of(classes)
    if text.removeprefix("-").isdecimal():
        if not 0 <= int(text) < number:
            raise ValueError(f"{where}: label {text} is outside 0..{number - 1} ({number} classes in the config)")
        return int(text)
    if isinstance(classes, int):
        raise ValueError(f"{where}: label {text!r} is no index; class names need dataset.metainfo=dict(classes=[...])")
    keys = [class_key(name) for name in classes]
    if class_key(text) not in keys:
        raise ValueError(f"{where}: {text!r} is none of the {number} classes {list(classes)[:6]}...")
    return keys.index(class_key(text))


def _read_arrays(path: Path, keys: Sequence[str], max_gib: float) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of features; set dataset.data_root and ann_file")
    if path.suffix not in READERS:
        raise ValueError(f"{path}: expected a file that ends in one of {sorted(READERS)}; see dataset.ann_file")
    try:
        arrays = READERS[path.suffix](path, sorted(set(keys)), max_gib)
    except MemoryError as error:  # a few bytes of a header may claim any size
        raise ValueError(
            f"{path}: its arrays ask for more memory than there is ({error}); it is damaged, or lower dataset.max_gib "
            "to see its size"
        ) from error
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or array.ndim == 0:
            raise ValueError(
                f"{path}: {key!r} is {getattr(array, 'dtype', type(array).__name__)} of shape "
                f"{getattr(array, 'shape', None)}, expected an array of real numbers"
            )
    return arrays


def _read_npz(path: Path, keys: Sequence[str], max_gib: float) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array without a name")
            _demand(path, keys, file.files)
            sizes = {member.filename.removesuffix(".npy"): member.file_size for member in file.zip.infolist()}
            _limit(path, sum(sizes.get(key, 0) for key in keys), max_gib)
            return {key: file[key] for key in keys}
    except FeatureFileError:
        raise
    # what zipfile, zlib and numpy's parser of headers raise for damaged bytes
    except (ValueError, OSError, EOFError, KeyError, SyntaxError, TypeError, NotImplementedError, RuntimeError,
            OverflowError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError) as error:
        raise ValueError(f"{path} is no readable .npz file of plain arrays (pickles are refused): {error}") from error


def _read_mat(path: Path, keys: Sequence[str], max_gib: float) -> dict[str, np.ndarray]:
    file = MatFile(path)
    _demand(path, keys, file.names)
    _limit(path, sum(file.nbytes(key) for key in keys), max_gib)
    return {key: file.read(key) for key in keys}


class FeatureFileError(ValueError):
    """A file of features lacks what the config names, or holds more than it allows."""


def _limit(path: Path, size: int, max_gib: float) -> None:
    if size > max_gib * GIB:
        raise FeatureFileError(f"{path}: its arrays unpack to {size / GIB:.3g} GiB, dataset.max_gib allows {max_gib:g}")


def _demand(path: Path, keys: Sequence[str], there: Sequence[str]) -> None:
    absent = [key for key in keys if key not in there]
    if absent:
        raise FeatureFileError(
            f"{path} holds no {absent}; it holds {sorted(there)[:30]}; see dataset.arrays, label and split")


READERS = {".npz": _read_npz, ".mat": _read_mat}
