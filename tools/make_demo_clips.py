"""Make the audio-visual demo set: moving textured shapes with tones, one mp4 file per clip.

    python tools/make_demo_clips.py --out data/demo_clips
"""
from __future__ import annotations

import argparse
import time

from rich.progress import track

from mmfusion_plugin.engine import launch
from mmfusion_plugin.recognition.demo_shapes import generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write; one that holds the same request is kept")
    parser.add_argument("--train", type=int, default=600, help="training clips (default: 600)")
    parser.add_argument("--val", type=int, default=150, help="validation clips (default: 150)")
    parser.add_argument("--size", type=int, default=48, help="height and width of the frames (default: 48)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="parallel processes (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace another generated set in --out")
    args = parser.parse_args()
    start = time.perf_counter()
    try:
        out = generate(args.out, args.train, args.val, args.size, args.seed, args.workers, args.overwrite,
                       progress=lambda clips, total: track(clips, "clips", total))
    except (FileExistsError, ValueError) as error:
        raise launch.UsageError(str(error)) from error
    size = sum(path.stat().st_size for path in out.rglob("*.mp4"))
    print(f"\n{args.train} training and {args.val} validation clips in {out} ({size / 1e6:.1f} MB, "
          f"{time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    launch.run_tool(main)
