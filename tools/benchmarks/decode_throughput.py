"""Clips per second of every way to read clips: ours, mmaction2's own decoders, extracted frames, the cache.

    python tools/benchmarks/decode_throughput.py                        # data/demo_clips
    python tools/benchmarks/decode_throughput.py --synthetic --clips 8  # 10 s, 320x240, 25 fps, made for this run
    python tools/benchmarks/decode_throughput.py --data-root DIR --ann-file LIST --clip-seconds 5 --num-frames 3

All ways take turns in each round, for each number of DataLoader workers, over the same clips; the first round, which
starts the workers and fills the cache, does not count. Each clip ends as its frames, resized to --size, and its
sound, in the main process. Frames are drawn as in training: one from each of --num-frames segments of a window of
--clip-seconds (default: of the whole clip); mmaction2's SampleFrames draws a window of frames at equal distances
instead. Read the numbers of one run against each other, not against those of another machine. On a machine with other
work, the CPU time per clip (of the loading process, all its threads) says more than the clips per second.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from mmaction.registry import TRANSFORMS
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader, Dataset

import mmfusion_plugin  # noqa: F401  registers LoadClip
from mmfusion_plugin.recognition.extraction import Options, extract
from mmfusion_plugin.recognition.media import MediaError, probe, write_clip

SYNTHETIC = dict(seconds=10, width=320, height=240, fps=25, sample_rate=16000)


class Clips(Dataset):
    """Samples of one way: ``sources`` are what its pipeline starts from."""

    def __init__(self, sources: Sequence[Mapping], pipeline: Sequence[Mapping]) -> None:
        self.sources, self.pipeline = sources, [TRANSFORMS.build(dict(step)) for step in pipeline]

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, number: int) -> tuple:
        """CPU time in s, frames, sound."""
        start = time.process_time()
        results = dict(self.sources[number])
        for step in self.pipeline:
            results = step(results)
        # The arrays cross to the main process as in training.
        arrays = [torch.from_numpy(results[key]) for key in ("imgs", "waveform") if key in results]
        return time.process_time() - start, *arrays


def ways(paths: Sequence[Path], extracted: Sequence[Path], args: argparse.Namespace) -> dict[str, Dataset]:
    """A data set per way of reading."""
    finish = [
        dict(type="Resize", scale=(args.size, args.size), keep_ratio=False),
        dict(type="FormatShape", input_format="NCHW")]
    sound = dict(sample_rate=args.sample_rate, seconds=args.clip_seconds or args.sound_seconds, pad="zero")
    visual = dict(type="LoadClip", num_frames=args.num_frames, clip_seconds=args.clip_seconds, modalities=["visual"])
    both = dict(visual, modalities=["visual", "audio"], sound=sound)
    ours = [dict(media=dict(visual=str(path), audio=str(path))) for path in paths]
    frames = [dict(media=dict(visual=str(path), audio=f"{path}.wav")) for path in extracted]
    stock = [dict(filename=str(path), start_index=0, modality="RGB") for path in paths]
    if args.clip_seconds is None:
        sampling = dict(type="SampleFrames", clip_len=1, num_clips=args.num_frames)
    else:
        interval = max(round(args.clip_seconds * (probe(paths[0]).average_fps or 25) / args.num_frames), 1)
        sampling = dict(type="SampleFrames", clip_len=args.num_frames, frame_interval=interval)
    found = {
        "LoadClip: frames and sound": Clips(ours, [both, *finish]),
        "LoadClip: frames only": Clips(ours, [visual, *finish]),
        "mmaction2 PyAV: frames only": Clips(
            stock, [dict(type="PyAVInit"), sampling, dict(type="PyAVDecode"), *finish]),
        "LoadClip: extracted frames and wav": Clips(frames, [both, *finish]),
        "LoadClip: extracted frames only": Clips(frames, [visual, *finish]),
        "LoadClip: frames and sound, cache": Clips(ours, [dict(both, cache_mb=args.cache_mb), *finish]),
    }
    if importlib.util.find_spec("decord"):
        found["mmaction2 decord: frames only"] = Clips(
            stock, [dict(type="DecordInit"), sampling, dict(type="DecordDecode"), *finish])
    return found


def loader(clips: Dataset, workers: int) -> DataLoader:
    return DataLoader(
        clips, batch_size=None, num_workers=workers, persistent_workers=True,
        worker_init_fn=lambda number: np.random.seed(number))


def measure(found: Mapping[str, Dataset], workers: Sequence[int], rounds: int) -> tuple[dict, dict, dict[str, str]]:
    """By (way, workers): clips per second of each round, CPU seconds of each clip; and why a way does not work."""
    loaders = {(name, number): loader(clips, number) for number in workers for name, clips in found.items()}
    rates: dict[tuple[str, int], list[float]] = {key: [] for key in loaders}
    used: dict[tuple[str, int], list[float]] = {key: [] for key in loaders}
    broken: dict[str, str] = {}
    for turn in range(rounds + 1):
        for (name, number), batches in loaders.items():
            if name in broken:
                continue
            start = time.perf_counter()
            try:
                spent = [sample[0] for sample in batches]
            except Exception as error:  # a decoder's own kind; the others go on
                broken[name] = str(error).strip().splitlines()[-1]
                continue
            if turn:
                rates[name, number].append(len(spent) / (time.perf_counter() - start))
                used[name, number] += spent
        print(f"round {turn} of {rounds}", file=sys.stderr)
    return rates, used, broken


def table(rates: Mapping, used: Mapping, broken: Mapping, names: Sequence[str], workers: Sequence[int]) -> str:
    heads = [f"clips/s, {number} worker{'s' * (number > 1)}" for number in workers] + ["CPU ms per clip"]
    lines = ["| median (lowest to highest) | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in names:
        cells = [
            "fails" if name in broken else f"{statistics.median(r):.1f} ({min(r):.1f} to {max(r):.1f})"
            for r in (rates[name, number] for number in workers)]
        cells += ["" if name in broken else f"{1000 * statistics.median(used[name, min(workers)]):.1f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(f"\n{name} fails: {reason}" for name, reason in broken.items())])


def write_synthetic(root: Path, clips: int) -> None:
    """Drifting gradients with sensor noise and a tone."""
    o, rng = SYNTHETIC, np.random.default_rng(0)
    y, x = np.mgrid[: o["height"], : o["width"]][..., None]
    time_of = np.arange(o["seconds"] * o["sample_rate"]) / o["sample_rate"]
    for number in range(clips):
        waves = rng.uniform(0.02, 0.1, (3, 3))
        frames = (
            np.clip(128 + 90 * np.sin(waves[0] * x + waves[1] * y + waves[2] * t) + rng.normal(0, 6, (*x.shape[:2], 3)),
                    0, 255).astype(np.uint8)
            for t in range(o["seconds"] * o["fps"]))
        tone = 0.3 * np.sin(2 * np.pi * (300 + 50 * number) * time_of)
        write_clip(root / f"{number:04d}.mp4", frames, o["fps"], tone, o["sample_rate"])
    (root / "train.txt").write_text("".join(f"{number:04d}.mp4 0\n" for number in range(clips)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data/demo_clips", help="default: data/demo_clips")
    parser.add_argument("--ann-file", default="train.txt", help="lines 'path label' below it (default: train.txt)")
    parser.add_argument("--synthetic", action="store_true", help="make clips for this run instead: {seconds} s, "
                        "{width}x{height}, {fps} fps, with sound".format(**SYNTHETIC))
    parser.add_argument("--clips", type=int, default=32, help="number of clips, from the list's start (default: 32)")
    parser.add_argument("--clip-seconds", type=float, help="length of the window (default: the whole clip)")
    parser.add_argument("--num-frames", type=int, default=3, help="from each clip (default: 3)")
    parser.add_argument("--size", type=int, default=112, help="of the frames that come out (default: 112)")
    parser.add_argument("--sample-rate", type=int, default=16000, help="Hz of the sound (default: 16000)")
    parser.add_argument("--sound-seconds", type=float, default=5.0, help="of sound without --clip-seconds (default: 5)")
    parser.add_argument("--short-side", type=int, help="shrink the extracted frames (default: as they are)")
    parser.add_argument("--cache-mb", type=float, default=1000, help="LoadClip.cache_mb (default: 1000)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="DataLoader processes (default: 1 2)")
    parser.add_argument("--rounds", type=int, default=5, help="that count (default: 5)")
    parser.add_argument("--json", metavar="FILE", help="write every number there")
    args = parser.parse_args()
    if min(args.rounds, args.clips, *args.workers) < 1:
        parser.error("--rounds, --clips and --workers must be at least 1")
    init_default_scope("mmaction")
    with tempfile.TemporaryDirectory() as folder:
        root, ann_file = Path(args.data_root), args.ann_file
        if args.synthetic:
            root, ann_file = Path(folder, "clips"), "train.txt"
            root.mkdir()
            write_synthetic(root, args.clips)
        if not (root / ann_file).is_file():
            print(f"no {ann_file} in --data-root {root}: make clips with tools/make_demo_clips.py, or --synthetic",
                  file=sys.stderr)
            return 2
        text = (root / ann_file).read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.strip()][: args.clips]
        listed = Path(folder, "list.txt")
        listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
        out = Path(folder, "extracted")
        report = extract(root, str(listed.resolve()), out, Options(short_side=args.short_side), overwrite=False)
        if report.faults:
            print(f"some clips cannot be read: {report.text()}", file=sys.stderr)
            return 2
        paths = [root / line.rsplit(None, 1)[0] for line in lines]
        extracted = [out / line.rsplit(None, 1)[0] for line in (out / "list.txt").read_text().splitlines()]
        try:
            info = probe(paths[0])
        except MediaError as error:
            print(error, file=sys.stderr)
            return 2
        load = os.getloadavg()[0]
        names = list(found := ways(paths, extracted, args))
        rates, used, broken = measure(found, args.workers, args.rounds)
    facts = dict(
        clips=len(paths), seconds=info.duration, width=info.width, height=info.height, fps=info.average_fps,
        num_frames=args.num_frames, clip_seconds=args.clip_seconds, size=args.size, sample_rate=args.sample_rate,
        rounds=args.rounds, cores=os.cpu_count(), load=[load, os.getloadavg()[0]], python=sys.version.split()[0],
        versions={name: version(name) for name in ("av", "torch", "mmaction2")},
        decord=version("decord") if importlib.util.find_spec("decord") else None)
    print(f"\n{len(paths)} clips, the first {info.width}x{info.height}, {info.duration:.1f} s, "
          f"{info.average_fps:g} fps; {args.num_frames} frames of {args.size}x{args.size} each; {args.rounds} rounds; "
          f"{os.cpu_count()} cores, load {load:.1f} before and {os.getloadavg()[0]:.1f} after\n")
    print(table(rates, used, broken, names, args.workers))
    if facts["decord"] is None:
        print("\nmmaction2 decord is left out: decord cannot be imported here (pip install decord)")
    if args.json:
        numbers = [
            dict(way=name, workers=number, clips_per_second=rate, cpu_seconds=used[name, number])
            for (name, number), rate in rates.items() if name not in broken]
        Path(args.json).write_text(json.dumps(dict(**facts, numbers=numbers, fails=broken), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
