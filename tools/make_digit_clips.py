"""Make the digits benchmark: handwritten and spoken digits of the same class as mp4 clips with sound.

    python tools/make_digit_clips.py --out data/digit_clips

The sources: MNIST's test part (t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz) and the Free Spoken
Digit Dataset. Speakers, recordings and images of the three parts differ.
"""
from __future__ import annotations

import argparse
import time
from dataclasses import fields

from rich.progress import track

from mmfusion_plugin.engine import launch
from mmfusion_plugin.recognition.digit_clips import Difficulty, generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write; one that holds the same request is kept")
    parser.add_argument("--mnist", default="../shared/data/mnist",
                        help="folder with MNIST's two t10k files (default: %(default)s)")
    parser.add_argument("--spoken", default="../shared/data/spoken_digits",
                        help="folder of the Free Spoken Digit Dataset (default: %(default)s)")
    parser.add_argument("--train", type=int, default=4000, help="training clips (default: 4000)")
    parser.add_argument("--val", type=int, default=500, help="validation clips (default: 500)")
    parser.add_argument("--test", type=int, default=1000, help="test clips (default: 1000)")
    parser.add_argument("--size", type=int, default=48, help="height and width of the frames (default: 48)")
    parser.add_argument("--seed", type=int, default=0)
    for field in fields(Difficulty):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default,
                            help=f"see Difficulty in recognition/digit_clips.py (default: {field.default})")
    parser.add_argument("--workers", type=int, default=1, help="parallel processes (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace another generated set in --out")
    args = parser.parse_args()
    start = time.perf_counter()
    difficulty = Difficulty(**{field.name: getattr(args, field.name) for field in fields(Difficulty)})
    counts = dict(train=args.train, val=args.val, test=args.test)
    try:
        out = generate(args.out, args.mnist, args.spoken, counts, args.size, args.seed, difficulty, args.workers,
                       args.overwrite, progress=lambda clips, total: track(clips, "clips", total))
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        raise launch.UsageError(str(error)) from error
    size = sum(path.stat().st_size for path in out.rglob("*.mp4"))
    print(f"\n{args.train} training, {args.val} validation and {args.test} test clips in {out} ({size / 1e6:.1f} MB, "
          f"{time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    launch.run_tool(main)
