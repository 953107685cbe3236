"""RGB-D samples per second of our training pipeline, of mmsegmentation's own, and of the decoders alone.

    python tools/benchmarks/frame_throughput.py                            # 480x640 frames, made for this run
    python tools/benchmarks/frame_throughput.py --data-root data/nyuv2     # RGB/, Depth/, Label/, train.txt

Each takes the same frames through resize, crop, flip and colour jitter to packed tensors, in one process, by turns:

- decoding alone: the files' bytes through OpenCV, the floor of every pipeline;
- ours, and mmsegmentation's own, for colour and label: with the same seed they give the same tensors, which is checked;
- ours for colour, depth and label; the same with the decoded files in memory (cache_mb), as from the second epoch on;
- mmsegmentation's own twice, colour and depth, each with its label: what two streams take without this library.

Besides samples per second of CPU time the CPU milliseconds of each step are told. Files are in the system's cache.
"""
from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from mmfusion_plugin.analysis.evidence import markdown_table

OURS_RGB, STOCK_RGB = "ours: colour, label", "mmsegmentation: colour, label"
CACHED = "ours, cached: colour, depth, label"
OURS, STOCK = "ours: colour, depth, label", "mmsegmentation twice: colour, label; depth, label"
SIZE = (480, 640)


def geometry(crop: Sequence[int]) -> list[dict]:
    return [
        dict(type="RandomResize", scale=(crop[1], crop[0]), ratio_range=(0.5, 1.75), keep_ratio=True),
        dict(type="RandomCrop", crop_size=tuple(crop)),
        dict(type="RandomFlip", prob=0.5)]


def our_dataset(root: Path, crop: Sequence[int], modalities: Sequence[str], depth: Mapping,
                cache_mb: float = 0) -> Any:
    sensors = dict(rgb=dict(kind="color"), depth=dict(depth, kind="depth"))
    pipeline = [
        dict(type="LoadModalities", modalities=modalities, sensors={m: sensors[m] for m in modalities},
             cache_mb=cache_mb),
        dict(type="LoadSegLabel", cache_mb=cache_mb), *geometry(crop), dict(type="ColorJitter", modality="rgb"),
        dict(type="PackModalities", modalities=modalities)]
    return DATASETS.build(dict(
        type="NYUDepthV2Dataset", data_root=str(root), ann_file="train.txt", modalities=modalities, pipeline=pipeline,
        suffixes=dict(rgb=[".jpg", ".png"], depth=".png", seg_map_path=".png")))


def stock_dataset(ours: Any, crop: Sequence[int], source: str) -> Any:
    """mmsegmentation's own data set and transforms on the files of ``ours``; depth as a picture."""
    load = dict(type="LoadImageFromFile", color_type="color" if source == "rgb" else "unchanged")
    jitter = [dict(type="PhotoMetricDistortion")] if source == "rgb" else []
    dataset = DATASETS.build(dict(
        type="BaseSegDataset", data_root="", ann_file="", lazy_init=True, reduce_zero_label=True,
        metainfo=dict(classes=ours.metainfo["classes"]),
        pipeline=[load, dict(type="LoadAnnotations"), *geometry(crop), *jitter, dict(type="PackSegInputs")]))
    infos = [ours.get_data_info(i) for i in range(len(ours))]
    dataset.data_list = [dict(
        img_path=info["modality_paths"][source], seg_map_path=info["seg_map_path"], label_map=None,
        reduce_zero_label=True, seg_fields=[]) for info in infos]
    dataset.serialize_data, dataset._fully_initialized = False, True
    return dataset


def decode(dataset: Any, index: int) -> None:
    info = dataset.get_data_info(index)
    for path in (*info["modality_paths"].values(), info["seg_map_path"]):
        cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)


class Pipeline:
    """A data set's pipeline, with the CPU seconds that each step has taken."""

    def __init__(self, datasets: Sequence[Any]) -> None:
        self.datasets = datasets
        self.seconds: dict[str, float] = {}

    def __call__(self, index: int, seed: int) -> list[dict]:
        """The sample of each data set, all with the same random numbers."""
        found = []
        for dataset in self.datasets:
            np.random.seed(seed)
            results = dataset.get_data_info(index)
            results["sample_idx"] = index
            for step in dataset.pipeline.transforms:
                start = time.process_time()
                results = step(results)
                name = type(step).__name__
                self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
            found.append(results)
        return found


def same_output(ours: Callable, stock: Callable, number: int) -> bool:
    """Whether both give the same colours and labels, bit for bit."""
    for i in range(number):
        (one,), (other,) = ours(i, i), stock(i, i)
        if not (torch.equal(one["inputs"]["rgb"], other["inputs"]) and torch.equal(
                one["data_samples"].gt_sem_seg.data, other["data_samples"].gt_sem_seg.data)):
            return False
    return True


def measure(rows: Mapping[str, Callable[[int, int], object]], number: int, rounds: int) -> dict[str, list[float]]:
    """CPU seconds per sample of each round, the rows in turns; a round before them does not count."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(rounds + 1):
        for name, call in rows.items():
            if turn == 1 and isinstance(call, Pipeline):
                call.seconds.clear()
            start = time.process_time()
            for i in range(number):
                call(i, turn * number + i)
            if turn:
                times[name].append((time.process_time() - start) / number)
    return times


def write_frames(root: Path, number: int) -> None:
    """Scenes of smooth colour with sensor noise, depth in millimetres with holes, labels of 1 to 40."""
    rng = np.random.default_rng(0)
    for folder in ("RGB", "Depth", "Label"):
        (root / folder).mkdir()
    for i in range(number):
        def smooth(low: float, high: float, channels: int) -> np.ndarray:
            coarse = rng.uniform(low, high, (6, 8, channels)).astype(np.float32)
            return cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_CUBIC).reshape(*SIZE, channels)

        colour = smooth(20, 235, 3) + rng.normal(0, 4, (*SIZE, 3))
        depth = smooth(800, 6000, 1)[..., 0] + rng.normal(0, 8, SIZE)
        depth[rng.random(SIZE) < 0.05] = 0
        label = smooth(0, 41, 1)[..., 0].clip(0, 40)
        pictures = dict(RGB=colour.clip(0, 255).astype(np.uint8), Depth=depth.clip(0, 65535).astype(np.uint16),
                        Label=label.astype(np.uint8))
        for folder, picture in pictures.items():
            cv2.imwrite(str(root / folder / f"{i:04d}.{'jpg' if folder == 'RGB' else 'png'}"), picture)
    (root / "train.txt").write_text("".join(f"{i:04d}\n" for i in range(number)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="frames in the layout of NYU Depth v2 (default: made for this run)")
    parser.add_argument("--depth-dtype", default="uint16", help="of the stored depth (default: uint16)")
    parser.add_argument("--depth-scale", type=float, default=0.001, help="metres per count (default: 0.001)")
    parser.add_argument("--crop", type=int, nargs=2, default=SIZE, metavar=("H", "W"), help="default: 480 640")
    parser.add_argument("--frames", type=int, default=16, help="from the list's start (default: 16)")
    parser.add_argument("--rounds", type=int, default=7, help="that count (default: 7)")
    parser.add_argument("--json", metavar="FILE", help="write every number there")
    args = parser.parse_args()
    if min(args.frames, args.rounds, *args.crop) < 1:
        parser.error("--frames, --rounds and --crop must be at least 1")
    cv2.setNumThreads(0), torch.set_num_threads(1)
    init_default_scope("mmseg")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(args.data_root or folder)
        if not args.data_root:
            write_frames(root, args.frames)
        elif not (root / "train.txt").is_file():
            print(f"no train.txt in --data-root {root}; see Data in README.md", file=sys.stderr)
            return 2
        depth = dict(dtype=args.depth_dtype, scale=args.depth_scale)
        both = our_dataset(root, args.crop, ["rgb", "depth"], depth)
        rows = {"decoding alone": lambda i, seed: decode(both, i),
                OURS_RGB: Pipeline([our_dataset(root, args.crop, ["rgb"], depth)]),
                STOCK_RGB: Pipeline([stock_dataset(both, args.crop, "rgb")]),
                OURS: Pipeline([both]),
                CACHED: Pipeline([our_dataset(root, args.crop, ["rgb", "depth"], depth, 8 * args.frames)]),
                STOCK: Pipeline([stock_dataset(both, args.crop, m) for m in ("rgb", "depth")])}
        number = min(args.frames, len(both))
        same = same_output(rows[OURS_RGB], rows[STOCK_RGB], number)
        times = measure(rows, number, args.rounds)
    steps = {name: {step: 1000 * seconds / (number * args.rounds) for step, seconds in call.seconds.items()}
             for name, call in rows.items() if isinstance(call, Pipeline)}
    over = {OURS_RGB: STOCK_RGB, OURS: STOCK, CACHED: STOCK}
    lines = []
    for name, found in times.items():
        ratio = [b / a for a, b in zip(found, times[over[name]])] if name in over else []
        lines.append([name, f"{1 / statistics.median(found):.0f}", f"{1000 * statistics.median(found):.1f}",
                      f"{statistics.median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})" if ratio else ""])
    print(f"{number} frames, crops of {args.crop[0]}x{args.crop[1]}, {args.rounds} rounds, one thread; colours and "
          f"labels of both: {'the same, bit for bit' if same else 'DIFFERENT'}\n")
    print(markdown_table(["pipeline", "samples/s", "CPU ms per sample", "times as fast as mmsegmentation"], lines))
    print()
    for name, found in steps.items():
        print(f"{name}: " + ", ".join(f"{step} {ms:.2f}" for step, ms in found.items()) + " ms")
    if args.json:
        Path(args.json).write_text(json.dumps(dict(
            frames=number, crop=list(args.crop), same=same, seconds=times, step_ms=steps), indent=1) + "\n")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
