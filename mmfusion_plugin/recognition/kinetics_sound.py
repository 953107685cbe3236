"""Kinetics-Sound from a tree of Kinetics-400: lists of the clips whose picture and sound both decode.

Two layouts are known. Class folders: ``train/<class>/<clip>.mp4``, ``val/...``, ``test/...``, classes
written with blanks or underscores. Or video files anywhere below one folder, and the published csv files
(``label,youtube_id,time_start,time_end,split``), which then decide label and split. A clip is known by
its name, ``<youtube id>_<start>_<end>`` as a rule; separate sound files are found by the same name.
"""
from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmfusion_plugin.engine.whole_files import replace_file

from .clip_lists import (
    SOUNDS,
    VIDEOS,
    Clip,
    ConversionError,
    check_clips,
    class_key,
    count_reasons,
    find_files,
    load_class_list,
    refuse_empty,
    refuse_existing,
    report_text,
    table,
    write_list,
)

__all__ = ["Report", "convert"]

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val",
          "test": "test"}
COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
LISTED_TWICE, TWO_LABELS, NO_SOUND_FILE = "listed twice", "listed under two labels", "audio: no file"
PUBLISHED = {"ks31": "OGM-GE's lists of these 31 classes hold 14,799 train and 2,597 test clips"}


@dataclass
class Report:
    """Counts of one conversion.

    ``found``, ``kept``: clips by split and class. ``dropped``: id, split, class and reason of each clip left
    out, with the decoder's message. ``silent``: kept clips whose sound is digital zero throughout.
    ``sound_without_video``: sound files that no clip of these classes asked for. ``not_downloaded``: clips of
    the csv without a file, by split.
    """

    class_list: str
    classes: list[str]
    lists: dict[str, str] = field(default_factory=dict)
    found: dict[str, dict[str, int]] = field(default_factory=dict)
    kept: dict[str, dict[str, int]] = field(default_factory=dict)
    dropped: list[dict] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    sound_without_video: int = 0
    not_downloaded: dict[str, int] = field(default_factory=dict)
    missing_classes: dict[str, list[str]] = field(default_factory=dict)

    def reasons(self) -> dict[str, int]:
        return count_reasons(clip["reason"] for clip in self.dropped)

    def text(self) -> str:
        splits = list(self.found)
        rows = [["class", *(f"{split} {what}" for split in splits for what in ("found", "kept"))]]
        for name in self.classes:
            rows.append([name, *(part[split].get(name, 0) for split in splits for part in (self.found, self.kept))])
        rows.append(["all", *(sum(part[split].values()) for split in splits for part in (self.found, self.kept))])
        facts = {f"list of {split}": path for split, path in self.lists.items()}
        if self.not_downloaded:
            facts["clips of the csv without a file"] = self.not_downloaded
        if self.sound_without_video:
            facts["sound files without a video"] = self.sound_without_video
        if self.silent:
            facts["kept, but silent throughout"] = len(self.silent)
        if self.missing_classes:
            facts["classes without a clip"] = self.missing_classes
        if self.class_list in PUBLISHED:
            facts["to compare"] = PUBLISHED[self.class_list]
        return report_text(f"Kinetics-Sound, {self.class_list}: {len(self.classes)} classes", facts, self.reasons(),
                           table(rows))


def convert(
    root: str | Path,
    out: str | Path | None = None,
    class_list: str = "ks31",
    csv_files: Sequence[str | Path] = (),
    sound: str | Path | None = None,
    allow_missing_classes: bool = False,
    overwrite: bool = False,
    processes: int = 1,
    progress: Callable[[Iterable, int], Iterable] = lambda results, total: results,
) -> Report:
    """Write ``<class list>_<split>.txt``, ``<class list>_report.json`` and ``.txt``; run again to go on.

    Args:
        root: the tree; listed paths are relative to it.
        out: folder of the lists; None: ``root``.
        class_list: ``ks31``, ``ks32``, ``ks33``, ``ks34``, or a file of class names in label order.
        csv_files: annotations for videos that are not in class folders.
        sound: folder of sound files with the clips' names, if the sound is not to come from the videos.
        allow_missing_classes: accept splits that lack classes; labels stay those of the whole list.
        overwrite: replace lists and report of an earlier run. Checks are never repeated for unchanged
            files: remove ``checked.jsonl`` to repeat them.
        processes: that decode side by side.
        progress: as in :func:`.clip_lists.check_clips`.

    Raises: ConversionError for a tree without clips, classes without clips, a part of which none is kept, files that
        exist already, and csv files that cannot be read; FileNotFoundError for absent paths; OSError for files that
        the system does not let it open.
    """
    root = Path(root)
    out = root if out is None else Path(out)
    for path in (root, *([Path(sound)] if sound is not None else [])):
        if not path.is_dir():
            raise FileNotFoundError(f"no such folder: {path}")
    classes = load_class_list(class_list)
    name = Path(class_list).stem
    report = Report(name, classes)
    entries = _from_csv(root, csv_files, classes, report) if csv_files else _from_folders(root, classes)
    if not entries:
        raise ConversionError(
            f"{root} holds no clip of the {len(classes)} classes of {name}; expected {root}/train/<class>/<clip>.mp4, "
            "or --csv with label,youtube_id,time_start,time_end,split"
        )
    splits = [split for split in ("train", "val", "test") if any(clip.split == split for clip in entries)]
    lists = {split: out / f"{name}_{split}.txt" for split in splits}
    refuse_existing([*lists.values(), out / f"{name}_report.json", out / f"{name}_report.txt"], overwrite)
    for split in splits:
        report.found[split] = _by_class([clip for clip in entries if clip.split == split], classes)
    report.missing_classes = {
        split: lacking for split in splits
        if (lacking := [c for c in classes if not report.found[split].get(c)])
    }
    if report.missing_classes and not allow_missing_classes:
        raise ConversionError(
            f"{root} has no clip of some classes of {name}: {report.missing_classes}; look for folders of another "
            "spelling, choose another --class-list, or accept it with --allow-missing-classes"
        )
    if sound is not None:
        entries = _with_sound(entries, Path(sound), classes, report)
    copies, kept = _copies(entries, classes, report), []
    while copies:
        clips = [first for first, *_ in copies.values()]
        results = check_clips(clips, out / "checked.jsonl", root, processes, progress)
        broken = {}
        for id, (first, *others) in copies.items():
            result = results[id]
            if result["reason"] is not None:
                _drop(report, first, classes, result["reason"], result["message"])
                if others:
                    broken[id] = others
                continue
            kept.append(first)
            if result["silent"]:
                report.silent.append(id)
            for clip in others:
                _drop(report, clip, classes, LISTED_TWICE, f"the {first.split} clip {first.visual} stays")
        copies = broken
    refuse_empty(splits, kept, report.reasons())
    for split, path in lists.items():
        chosen = [clip for clip in kept if clip.split == split]
        report.kept[split] = _by_class(chosen, classes)
        report.lists[split] = path.name
        write_list(path, chosen, root, None if sound is None else Path(sound))
    content = {**asdict(report), "reasons": report.reasons()}
    replace_file(out / f"{name}_report.json", json.dumps(content, indent=1) + "\n")
    replace_file(out / f"{name}_report.txt", report.text())
    return report


def _from_folders(root: Path, classes: Sequence[str]) -> list[Clip]:
    label_of = {class_key(name): label for label, name in enumerate(classes)}
    clips = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        split = SPLITS.get(folder.name.lower())
        if split is None:
            continue
        for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
            label = label_of.get(class_key(class_folder.name))
            if label is not None:
                for stem, paths in find_files(class_folder, VIDEOS).items():
                    clips += [Clip(stem, label, split, path, path) for path in paths]
    return clips


def _from_csv(root: Path, csv_files: Sequence[str | Path], classes: Sequence[str], report: Report) -> list[Clip]:
    label_of = {class_key(name): label for label, name in enumerate(classes)}
    files = find_files(root, VIDEOS)
    clips = []
    for path in map(Path, csv_files):
        for number, row in _read_csv(path):
            where = f"{path}, line {number}"
            if any(row.get(column) in (None, "") for column in COLUMNS):
                raise ConversionError(f"{where}: expected values for {', '.join(COLUMNS)}, got {row}")
            label, split = label_of.get(class_key(row["label"])), SPLITS.get(row["split"].strip().lower())
            if label is None:
                continue
            if split is None:
                raise ConversionError(f"{where}: split {row['split']!r} is none of train, val (validate), test")
            try:
                start, end = (int(float(row[column])) for column in ("time_start", "time_end"))
            except ValueError:
                raise ConversionError(f"{where}: time_start and time_end must be seconds, got {row}") from None
            youtube = row["youtube_id"].strip()
            names = (f"{youtube}_{start:06d}_{end:06d}", f"{youtube}_{start}_{end}", f"{youtube}_{start}", youtube)
            stem = next((stem for stem in names if stem in files), None)
            if stem is None:
                report.not_downloaded[split] = report.not_downloaded.get(split, 0) + 1
                continue
            clips += [Clip(stem, label, split, path, path) for path in files[stem]]
    return clips


def _read_csv(path: Path) -> Iterable[tuple[int, dict]]:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            lacking = sorted(set(COLUMNS) - set(reader.fieldnames or ()))
            if lacking:
                raise ConversionError(f"{path} has no column {lacking}; its first line is {reader.fieldnames}")
            for row in reader:
                yield reader.line_num, row
        except (UnicodeDecodeError, csv.Error) as error:
            raise ConversionError(f"{path}, after line {reader.line_num}: no csv file in UTF-8: {error}") from error


def _copies(entries: Sequence[Clip], classes: Sequence[str], report: Report) -> dict[str, list[Clip]]:
    """The files of each id, the one to keep first: of two splits the evaluated one. An id under two labels goes."""
    by_id = defaultdict(list)
    for clip in entries:
        by_id[clip.id].append(clip)
    copies = {}
    for id, clips in by_id.items():
        if len({clip.label for clip in clips}) > 1:
            for clip in clips:
                _drop(report, clip, classes, TWO_LABELS)
        else:
            copies[id] = sorted(clips, key=lambda clip: (("test", "val", "train").index(clip.split), clip.visual))
    return copies


def _with_sound(clips: Sequence[Clip], folder: Path, classes: Sequence[str], report: Report) -> list[Clip]:
    files = find_files(folder, SOUNDS)
    wanted = {clip.id for clip in clips}
    doubled = [stem for stem, paths in files.items() if len(paths) > 1 and stem in wanted]
    if doubled:
        paths = [str(path) for path in files[doubled[0]]]
        raise ConversionError(f"{len(doubled)} clips have more than one sound file, {doubled[0]!r} for one: {paths}")
    paired = []
    for clip in clips:
        if clip.id in files:
            paired.append(Clip(clip.id, clip.label, clip.split, clip.visual, files[clip.id][0]))
        else:
            _drop(report, clip, classes, NO_SOUND_FILE, f"{folder} holds no sound file named {clip.id}")
    report.sound_without_video = len(set(files) - wanted)
    return paired


def _drop(report: Report, clip: Clip, classes: Sequence[str], reason: str, message: str = "") -> None:
    report.dropped.append(
        dict(id=clip.id, split=clip.split, label=classes[clip.label], file=str(clip.visual), reason=reason,
             message=message)
    )


def _by_class(clips: Sequence[Clip], classes: Sequence[str]) -> dict[str, int]:
    counts = dict.fromkeys(classes, 0)
    for clip in clips:
        counts[classes[clip.label]] += 1
    return counts
