"""Render the demo data set: RGB-D rooms in the layout of NYU Depth v2.

    python tools/make_demo_rooms.py --out data/demo_rooms
"""
from __future__ import annotations

import argparse

from mmfusion_plugin.engine import launch
from mmfusion_plugin.segmentation.demo_rooms import generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write; one that holds the same request is kept")
    parser.add_argument("--train", type=int, default=64, help="training frames (default: 64)")
    parser.add_argument("--val", type=int, default=16, help="validation frames (default: 16)")
    parser.add_argument("--size", type=int, nargs=2, default=(120, 160), metavar=("H", "W"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        out = generate(args.out, args.train, args.val, tuple(args.size), args.seed)
    except (FileExistsError, ValueError) as error:
        raise launch.UsageError(str(error)) from error
    print(f"{args.train} training and {args.val} validation frames in {out}")


if __name__ == "__main__":
    launch.run_tool(main)
