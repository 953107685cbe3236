"""Make the lists of CREMA-D from VideoFlash/ (flv or mp4) and AudioWAV/.

    python tools/convert_crema_d.py data/crema-d --split speakers
    python tools/convert_crema_d.py data/crema-d --split usual --train-list train.csv --test-list test.csv

speakers: 63 actors train, 9 validate, 19 test (5,144 / 738 / 1,556 clips; TensorFlow Datasets' rule).
usual: the 6,698 / 744 clips of the field's own lists, which come with OGM-GE's code; without them a random split of
the same sizes, which is not the field's. In both all 91 actors are in both parts: no measure for new people.
Labels come from the file names. Every clip is decoded; what does not decode is left out and reported.
"""
from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from rich.progress import track

from mmfusion_plugin.engine import launch
from mmfusion_plugin.recognition.crema_d import convert


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder with VideoFlash/ and AudioWAV/")
    parser.add_argument("--out", help="folder of lists, report and checked.jsonl (default: ROOT)")
    parser.add_argument("--split", choices=["usual", "speakers"], required=True)
    parser.add_argument("--train-list", help="the field's train.csv, lines 1001_IEO_NEU_XX,NEU")
    parser.add_argument("--test-list", help="the field's test.csv")
    parser.add_argument("--seed", type=int, default=0, help="of the random split (default: 0)")
    parser.add_argument("--video-folder", default="VideoFlash", help="below ROOT (default: VideoFlash)")
    parser.add_argument("--sound-folder", default="AudioWAV", help="below ROOT (default: AudioWAV)")
    parser.add_argument("--sound-in-video", action="store_true", help="take the sound from the videos")
    parser.add_argument("--overwrite", action="store_true", help="replace lists and report of an earlier run")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that decode (default: all cores)")
    args = parser.parse_args()
    if args.processes < 1:
        parser.error("--processes must be at least 1")
    try:
        report = convert(
            args.root, args.out, args.split, args.train_list, args.test_list, args.video_folder,
            None if args.sound_in_video else args.sound_folder, args.seed, args.overwrite, args.processes,
            lambda results, total: track(results, f"decoding {total} clips", total),
        )
    except (ValueError, OSError) as error:
        raise launch.UsageError(str(error)) from error
    print(report.text())
    paths = {part: (Path(args.out or args.root) / name).resolve() for part, name in report.lists.items()}
    prefix = "" if args.sound_in_video else f", audio='{args.sound_folder}'"
    print(f"In a config: dataset=dict(type='CremaDDataset', data_root='{args.root}', ann_file='{paths['train']}', "
          f"data_prefix=dict(visual='{args.video_folder}'{prefix}), pipeline=...)")
    chosen = {"train": paths["train"], "val": paths.get("val", paths["test"]), "test": paths["test"]}
    options = [f"{part}_dataloader.dataset.{key}={value}" for part, path in chosen.items()
               for key, value in (("data_root", Path(args.root).resolve()), ("ann_file", path))]
    print("For configs/recognition/*_crema-d.py: --cfg-options", *map(shlex.quote, options))


if __name__ == "__main__":
    launch.run_tool(main)
