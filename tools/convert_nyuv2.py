"""Convert NYU Depth v2's labelled .mat to RGB/, Depth/ (16-bit millimetres), Label/, train.txt, test.txt.

    python tools/convert_nyuv2.py --mat nyu_depth_v2_labeled.mat --splits splits.mat \\
        --mapping classMapping40.mat --out data/nyuv2

Interrupted? Run the same command again. The sources: the data set's page has the first two, the
mapping to 40 classes comes with Gupta et al.'s benchmark.
"""
from __future__ import annotations

import argparse
import sys

from rich.progress import track

from mmfusion_plugin.engine import launch
from mmfusion_plugin.segmentation.nyuv2_convert import CROPS, DEPTHS, ConversionError, Options, convert


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mat", required=True, help="nyu_depth_v2_labeled.mat (2.8 GB)")
    parser.add_argument("--splits", required=True, help="splits.mat: 795 training and 654 test frames")
    parser.add_argument("--mapping", required=True, help="classMapping40.mat: 894 names to 40 classes")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--depth", choices=list(DEPTHS), default="filled",
                        help="in-filled depth, or raw with 0 where the sensor saw nothing (default: filled)")
    parser.add_argument("--crop", choices=list(CROPS), default="none",
                        help="standard cuts the border to rows 45:471, columns 41:601 (default: none)")
    args = parser.parse_args()
    try:
        report = convert(args.mat, args.splits, args.mapping, args.out, Options(args.depth, args.crop),
                         progress=lambda frames: track(list(frames), "frames"))
    except (ConversionError, FileNotFoundError) as error:
        raise launch.UsageError(str(error)) from error
    print(f"\n{report.frames} frames ({report.train} train, {report.test} test) in {args.out}; "
          f"{report.written} written now; {report.invalid_share:.1%} of the depth is without a reading, "
          f"{report.class_pixels[0] / sum(report.class_pixels):.1%} of the label unlabelled")
    if report.too_far:
        print(f"{report.too_far} readings beyond 65.535 m stored as 0", file=sys.stderr)


if __name__ == "__main__":
    launch.run_tool(main)
