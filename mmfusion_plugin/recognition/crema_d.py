"""CREMA-D from its two folders, ``VideoFlash/`` and ``AudioWAV/``: lists of clips by split.

A name tells all: ``1001_DFA_ANG_XX`` is actor 1001, sentence DFA, anger, level not given.

Three splits:

``speakers``: no actor is in two parts. The actors 1001..1091, shuffled by ``numpy.random.RandomState(0)``, give
    63 to training, 9 to validation, 19 to test; four clips are left out. This is TensorFlow Datasets' rule
    (``crema_d`` 1.0.0), whose counts are 5,144 / 738 / 1,556.
``usual``: the field's random split of 6,698 / 744 clips. It needs the two lists that the field shares
    (``train.csv``, ``test.csv`` of OGM-GE, CVPR 2022; lines ``1001_IEO_NEU_XX,NEU``).
``usual-random``: what ``usual`` becomes without these lists: another random split of the same sizes, reproducible,
    but not the one of published numbers.

The copies in circulation differ by one name: the sound of ``1040_ITH_SAD_XX`` is published as ``1040_ITH_SAD_X.wav``;
rename one of the two files where the report says that the other one is absent.

In both random ones all 91 actors are in both parts: a model may know a face and a voice from training. The
numbers they give are no measure for new people.
"""
from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from mmfusion_plugin.engine.whole_files import replace_file

from .clip_lists import (
    SOUNDS,
    VIDEOS,
    Clip,
    ConversionError,
    check_clips,
    count_reasons,
    find_files,
    read_lines,
    refuse_empty,
    refuse_existing,
    report_text,
    table,
    write_list,
)

__all__ = ["EMOTIONS", "Report", "convert", "random_split", "speaker_split"]

EMOTIONS = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
NAME = re.compile(r"(?P<actor>\d{4})_[A-Z]{3}_(?P<emotion>[A-Z]{3})_[A-Z]{1,2}")
ACTORS = [str(actor) for actor in range(1001, 1092)]
CLIPS, TEST_CLIPS = 7442, 744
SHARES = (0.7, 0.8)  # of the actors: where validation and test begin
# TensorFlow Datasets leaves these out.
LEFT_OUT = frozenset(
    ["1040_ITH_SAD_XX", "1040_ITH_SAD_X", "1006_TIE_NEU_XX", "1013_WSI_DIS_XX", "1017_IWW_FEA_XX"]
)
PUBLISHED = {"usual": "6,698 / 744", "usual-random": "6,698 / 744", "speakers": "5,144 / 738 / 1,556"}


@dataclass
class Report:
    """Counts of one conversion.

    ``kept``: clips by part and emotion; ``dropped``: id, part and reason of each clip left out; ``silent``: kept
    clips whose sound is digital zero; ``shared_actors``: how many actors are in training and in another part,
    of ``actors``.
    """

    split: str
    lists: dict[str, str] = field(default_factory=dict)
    kept: dict[str, dict[str, int]] = field(default_factory=dict)
    dropped: list[dict] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    actors: int = 0
    shared_actors: int = 0

    def reasons(self) -> dict[str, int]:
        return count_reasons(clip["reason"] for clip in self.dropped)

    def warning(self) -> str:
        """What to know before a number is quoted."""
        if self.split == "speakers":
            return f"speaker-disjoint: {self.shared_actors} of {self.actors} actors are in training and another part"
        leak = (
            f"LEAK: {self.shared_actors} of {self.actors} actors are in both parts, so test clips show faces and "
            "voices of training; use --split speakers to measure new people"
        )
        if self.split == "usual-random":
            leak += ". These are not the field's file lists but a random split of the same sizes: give --train-list " \
                    "and --test-list to compare with published numbers"
        return leak

    def text(self) -> str:
        rows = [["emotion", *self.kept]]
        rows += [[emotion, *(counts[emotion] for counts in self.kept.values())] for emotion in EMOTIONS]
        rows.append(["all", *(sum(counts.values()) for counts in self.kept.values())])
        facts = {f"list of {part}": path for part, path in self.lists.items()}
        facts["the whole set has"] = PUBLISHED[self.split]
        if self.silent:
            facts["kept, but silent throughout"] = len(self.silent)
        facts["note"] = self.warning()
        return report_text(f"CREMA-D, split {self.split!r}", facts, self.reasons(), table(rows))


def speaker_split(ids: Iterable[str]) -> dict[str, str]:
    """{id: 'train', 'val' or 'test'} by actor, without the clips that TensorFlow Datasets leaves out.

    The rule is over all 91 actors, so an incomplete copy of the set gives the same parts.
    """
    actors = list(ACTORS)
    np.random.RandomState(0).shuffle(actors)
    first, second = (int(share * len(actors)) for share in SHARES)
    part_of = dict.fromkeys(actors[:first], "train") | dict.fromkeys(actors[first:second], "val") \
        | dict.fromkeys(actors[second:], "test")
    return {id: part_of[id[:4]] for id in ids if id not in LEFT_OUT}


def random_split(ids: Iterable[str], seed: int = 0) -> dict[str, str]:
    """{id: 'train' or 'test'}: 744 of 7,442 test clips, or the same share of fewer."""
    ids = sorted(ids)
    order = np.random.RandomState(seed).permutation(len(ids))
    test = set(order[: round(len(ids) * TEST_CLIPS / CLIPS)].tolist())
    return {id: "test" if i in test else "train" for i, id in enumerate(ids)}


def convert(
    root: str | Path,
    out: str | Path | None = None,
    split: str = "usual",
    train_list: str | Path | None = None,
    test_list: str | Path | None = None,
    video_folder: str = "VideoFlash",
    sound_folder: str | None = "AudioWAV",
    seed: int = 0,
    overwrite: bool = False,
    processes: int = 1,
    progress: Callable[[Iterable, int], Iterable] = lambda results, total: results,
) -> Report:
    """Write ``<split>_<part>.txt``, ``<split>_report.json`` and ``.txt``; run again to go on.

    Args:
        root: holds the two folders; listed paths are relative to the folder of the videos.
        out: folder of the lists; None: ``root``.
        split: ``usual`` or ``speakers``, see the module.
        train_list, test_list: the field's lists for ``usual``; both or neither.
        video_folder, sound_folder: below ``root``; no sound folder: the sound in the videos.
        seed: of the random split.
        overwrite: replace lists and report of an earlier run.
        processes, progress: as in :func:`.clip_lists.check_clips`.

    Raises: ConversionError for folders without clips, lists that contradict the names or each other, a part of which
        no clip is kept, and files that exist already; FileNotFoundError for absent paths; OSError for files that the
        system does not let it open.
    """
    if split not in ("usual", "speakers"):
        raise ConversionError(f"--split must be usual or speakers, got {split!r}")
    if (train_list is None) != (test_list is None) or split == "speakers" and train_list is not None:
        raise ConversionError("--train-list and --test-list go together, and with --split usual only")
    root = Path(root)
    out = root if out is None else Path(out)
    folder = root / video_folder
    for path in (folder, *([root / sound_folder] if sound_folder is not None else [])):
        if not path.is_dir():
            raise FileNotFoundError(f"no such folder: {path}; see --video-folder, --sound-folder and --sound-in-video")
    report = Report("usual-random" if split == "usual" and train_list is None else split)
    videos = _known_names(find_files(folder, VIDEOS), folder, report)
    if not videos:
        raise ConversionError(f"{folder} holds no video with a name such as 1001_DFA_ANG_XX.flv or .mp4")
    # before any clip is dropped, so that a broken one does not move others to another part
    if split == "speakers":
        parts, part_of = ("train", "val", "test"), speaker_split(videos)
        _drop_all(report, sorted(set(videos) - set(part_of)), "left out of the published split")
    else:
        parts = ("train", "test")
        part_of = random_split(videos, seed) if train_list is None else _read_lists(train_list, test_list)
        _drop_all(report, sorted(set(videos) - set(part_of)), "in none of the lists")
        _drop_all(report, sorted(set(part_of) - set(videos)), "visual: no file", part_of)
    lists = {part: out / f"{report.split}_{part}.txt" for part in parts}
    reports = [out / f"{report.split}_report{ending}" for ending in (".json", ".txt")]
    refuse_existing([*lists.values(), *reports], overwrite)
    sounds = videos if sound_folder is None else _known_names(find_files(root / sound_folder, SOUNDS),
                                                              root / sound_folder, report)
    ids = sorted(set(videos) & set(part_of))
    _drop_all(report, [id for id in ids if id not in sounds], "audio: no file", part_of)
    _drop_all(report, sorted(set(sounds) - set(videos) - set(part_of)), "sound without a video")
    clips = [Clip(id, EMOTIONS.index(_emotion(id)), part_of[id], videos[id], sounds[id]) for id in ids if id in sounds]
    for clip in clips if sound_folder is not None else ():
        expected = root / sound_folder / clip.visual.relative_to(folder).with_suffix(".wav")
        if clip.audio != expected:
            raise ConversionError(f"{clip.audio} is the sound of {clip.visual}; expected {expected}, where "
                                  "CremaDDataset looks")
    results = check_clips(clips, out / "checked.jsonl", root, processes, progress)
    for clip in clips:
        if results[clip.id]["reason"] is not None:
            _drop_all(report, [clip.id], results[clip.id]["reason"], part_of, results[clip.id]["message"])
    kept = [clip for clip in clips if results[clip.id]["reason"] is None]
    refuse_empty(parts, kept, report.reasons())
    report.silent = [clip.id for clip in kept if results[clip.id]["silent"]]
    for part, path in lists.items():
        chosen = [clip for clip in kept if clip.split == part]
        report.kept[part] = {e: sum(clip.label == i for clip in chosen) for i, e in enumerate(EMOTIONS)}
        report.lists[part] = path.name
        write_list(path, chosen, folder)
    trained, evaluated = ({clip.id[:4] for clip in kept if (clip.split == "train") is there} for there in (True, False))
    report.actors, report.shared_actors = len(trained | evaluated), len(trained & evaluated)
    content = {**asdict(report), "reasons": report.reasons(), "note": report.warning()}
    replace_file(reports[0], json.dumps(content, indent=1) + "\n")
    replace_file(reports[1], report.text())
    return report


def _known_names(files: Mapping[str, Sequence[Path]], folder: Path, report: Report) -> dict[str, Path]:
    """One file per clip name; others are reported."""
    known = {}
    for stem, paths in files.items():
        if len(paths) > 1:
            raise ConversionError(f"{folder} holds the clip {stem} more than once: {[str(path) for path in paths[:3]]}")
        name = NAME.fullmatch(stem)
        if name and name["emotion"] in EMOTIONS and name["actor"] in ACTORS:
            known[stem] = paths[0]
        else:
            _drop_all(report, [stem], "name without actor and emotion", message=str(paths[0]))
    return known


def _emotion(id: str) -> str:
    return NAME.fullmatch(id)["emotion"]


def _read_lists(train_list: str | Path, test_list: str | Path) -> dict[str, str]:
    part_of: dict[str, str] = {}
    for part, path in (("train", Path(train_list)), ("test", Path(test_list))):
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
        try:
            rows = list(csv.reader(read_lines(path)))
        except csv.Error as error:
            raise ConversionError(f"{path} is no csv file: {error}") from error
        for number, row in enumerate(rows, 1):
            if not any(row):
                continue
            id, where = Path(row[0].strip()).stem, f"{path}, line {number}"
            name = NAME.fullmatch(id)
            if name is None or name["emotion"] not in EMOTIONS or name["actor"] not in ACTORS:
                raise ConversionError(f"{where}: expected a line such as 1001_IEO_NEU_XX,NEU, got {','.join(row)!r}")
            if len(row) > 1 and row[1].strip() != name["emotion"]:
                raise ConversionError(f"{where}: the label is {row[1].strip()!r}, the name says {name['emotion']!r}")
            if id in part_of:
                raise ConversionError(f"{where}: {id} was listed before, for {part_of[id]}")
            part_of[id] = part
    if set(part_of.values()) != {"train", "test"}:
        raise ConversionError(f"{train_list} or {test_list} lists no clip")
    return part_of


def _drop_all(report: Report, ids: Iterable[str], reason: str, part_of: Mapping[str, str] | None = None,
              message: str = "") -> None:
    report.dropped += [
        dict(id=id, split=(part_of or {}).get(id), reason=reason, message=message) for id in ids
    ]
