"""Make the lists of Kinetics-Sound from a tree of Kinetics-400.

    python tools/convert_kinetics_sound.py data/kinetics400
    python tools/convert_kinetics_sound.py data/kinetics400 --class-list ks33 --csv train.csv validate.csv

The tree: train/<class>/<clip>.mp4, val/<class>/<clip>.mp4 (classes with blanks or underscores); or, with --csv,
videos anywhere below it, named <youtube id>_<start>_<end>, _<start> or <youtube id>. Every clip is decoded from end
to end; what does not decode, in picture or sound, is left out and reported. Interrupted? Run the same command again.
"""
from __future__ import annotations

import argparse
import os
from pathlib import Path

from rich.progress import track

from mmfusion_plugin.engine import launch
from mmfusion_plugin.recognition.kinetics_sound import convert


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder with train/, val/ (or validate/) and test/, or with the videos of --csv")
    parser.add_argument("--out", help="folder of lists, report and checked.jsonl (default: ROOT)")
    parser.add_argument("--class-list", default="ks31",
                        help="ks31 (most papers; default), ks32, ks33 (UDML's), ks34 (original names), or a file")
    parser.add_argument("--csv", nargs="+", action="extend", default=[], metavar="FILE",
                        help="Kinetics-400's own lists: label,youtube_id,time_start,time_end,split")
    parser.add_argument("--sound", metavar="FOLDER",
                        help="sound files with the clips' names (default: the sound in the videos)")
    parser.add_argument("--allow-missing-classes", action="store_true", help="go on if a split lacks classes")
    parser.add_argument("--overwrite", action="store_true", help="replace lists and report of an earlier run")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that decode (default: all cores)")
    args = parser.parse_args()
    if args.processes < 1:
        parser.error("--processes must be at least 1")
    try:
        report = convert(
            args.root, args.out, args.class_list, args.csv, args.sound, args.allow_missing_classes, args.overwrite,
            args.processes, lambda results, total: track(results, f"decoding {total} clips", total),
        )
    except (ValueError, OSError) as error:
        raise launch.UsageError(str(error)) from error
    print(report.text())
    sound = "" if args.sound is None else (
        f", fields=['visual', 'audio', 'label'], delimiter='\\t', data_prefix=dict(visual='', "
        f"audio='{Path(args.sound).resolve()}')")
    ann_file = (Path(args.out or args.root) / next(iter(report.lists.values()))).resolve()
    print(f"In a config: dataset=dict(type='KineticsSoundDataset', class_list='{args.class_list}', "
          f"data_root='{args.root}', ann_file='{ann_file}'{sound}, pipeline=...)")


if __name__ == "__main__":
    launch.run_tool(main)
