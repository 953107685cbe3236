"""Check 9: every reader of files and lists, given files that Hypothesis has damaged."""
from __future__ import annotations

import gc
import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from mmaction.registry import DATASETS as ACTION_DATASETS
from mmengine.registry import init_default_scope
from PIL import Image
from trust_cases import Row
from trust_inputs import small_checkpoint

from mmfusion_plugin.analysis import evidence, training_logs
from mmfusion_plugin.analysis.table_runs import read_results
from mmfusion_plugin.engine import checkpoint_files as files


def _loaders(folder: Path) -> Iterator[tuple[str, Path, Callable[[Path], object]]]:
    """(name, a sound file, what reads it)."""
    from mmseg.registry import DATASETS as SEG_DATASETS

    from mmfusion_plugin.recognition import clip_lists, crema_d, frame_folders, kinetics_sound, media
    from mmfusion_plugin.segmentation import nyuv2_convert, sensors

    rng = np.random.default_rng(0)
    (folder / "list.txt").write_text("a b.mp4 playing_guitar\nc.mp4 1\n")
    yield "list of clips", folder / "list.txt", lambda path: _built(ACTION_DATASETS, "mmaction", dict(
        type="AudioVisualDataset", ann_file=str(path), pipeline=[],
        metainfo=dict(classes=["playing guitar", "tapping"])))
    (folder / "frames.txt").write_text("RGB/12.jpg Label/12.png\n13\n14.png\n")
    yield "list of frames", folder / "frames.txt", lambda path: _built(SEG_DATASETS, "mmseg", dict(
        type="NYUDepthV2Dataset", ann_file=str(path), data_root=str(path.parent), check_files=False))
    (folder / "classes.txt").write_text("# names\nplaying guitar\ntapping pen\n")
    yield "list of classes", folder / "classes.txt", clip_lists.load_class_list
    (folder / "train.csv").write_text("label,youtube_id,time_start,time_end,split\nplaying guitar,abc,1,11,train\n")
    yield "Kinetics' csv", folder / "train.csv", lambda path: list(kinetics_sound._read_csv(path))
    (folder / "names.txt").write_text("1001_IEO_NEU_XX,NEU\n1002_TIE_ANG_XX.wav\n")
    (folder / "other.txt").write_text("1003_IEO_SAD_LO,SAD\n")
    yield "list of CREMA-D", folder / "names.txt", lambda path: crema_d._read_lists(path, folder / "other.txt")
    (folder / "m.jsonl").write_text('{"clip": "a", "times": [0.0, 0.1], "size": [4, 4], "end": 0.2}\n')
    yield "manifest of clips", folder / "m.jsonl", frame_folders.read_manifest
    (folder / "frames" / "a").mkdir(parents=True)
    yield "times in a manifest", folder / "m.jsonl", lambda path: (
        (folder / "frames" / frame_folders.MANIFEST).write_bytes(path.read_bytes()),
        frame_folders.folder_index(folder / "frames" / "a"))
    arrays = dict(x=rng.standard_normal((4, 3)), label=np.arange(4.0))
    np.savez_compressed(folder / "f.npz", **arrays)
    from scipy.io import savemat

    savemat(folder / "f.mat", arrays, do_compression=True)
    for name in ("f.npz", "f.mat"):
        yield f"features, {name[1:]}", folder / name, lambda path: _built(ACTION_DATASETS, "mmaction", dict(
            type="FeatureDataset", ann_file=str(path), arrays=dict(x="x"), num_classes=4, pipeline=[], max_gib=0.1))
    savemat(folder / "map.mat", dict(mapClass=rng.integers(1, 41, (1, 894))))
    yield "NYU's class mapping", folder / "map.mat", nyuv2_convert._read_mapping
    color, depth = rng.integers(0, 255, (16, 16, 3)), rng.integers(500, 5000, (16, 16))
    cv2.imwrite(str(folder / "c.png"), color.astype(np.uint8))
    for ending in ("jpg", "bmp"):
        cv2.imwrite(str(folder / f"c.{ending}"), color.astype(np.uint8))
    cv2.imwrite(str(folder / "d.png"), depth.astype(np.uint16))
    cv2.imwrite(str(folder / "l.png"), (depth % 4).astype(np.uint8))
    for name, kind in (("c.png", "color"), ("c.jpg", "color"), ("c.bmp", "color"), ("d.png", "depth")):
        yield f"{kind}, {name[1:]}", folder / name, sensors.Sensor(name="m", kind=kind).read
    yield "label, .png", folder / "l.png", sensors.read_label
    numbered = Image.fromarray((depth % 4).astype(np.uint8)).convert("P")
    numbered.putpalette(list(range(12)))
    numbered.save(folder / "p.png")
    yield "label with a palette, .png", folder / "p.png", sensors.read_label
    sound = (0.1 * rng.standard_normal(1600)).astype(np.float32)
    media.write_wav(folder / "s.wav", sound, 16000)
    media.write_clip(folder / "v.mp4", color[None].repeat(4, 0).astype(np.uint8).repeat(4, 1).repeat(4, 2), 8.0,
                     sound=sound, sample_rate=16000)
    yield "sound, .wav", folder / "s.wav", media.read_sound
    yield "clip, .mp4", folder / "v.mp4", lambda path: (
        media.probe(path), media.read_frames(path, media.frame_times(path)), media.read_sound(path))
    yield from _sources(folder)
    yield from _records(folder)
    yield "checkpoint", small_checkpoint(folder / "c.pth"), lambda path: files.load_from_local(str(path))
    (folder / "runs").mkdir()
    trained = small_checkpoint(folder / "runs" / "iter_1.pth")
    (folder / "pointer").write_text(str(trained))
    yield files.POINTER, folder / "pointer", lambda path: _resumable(trained, files.POINTER, path)
    (folder / "sums").write_bytes(files.sidecar(trained).read_bytes())
    yield "checksum of a checkpoint", folder / "sums", lambda path: _resumable(
        trained, files.sidecar(trained).name, path)


def _sources(folder: Path) -> Iterator[tuple[str, Path, Callable[[Path], object]]]:
    """What converters and generators read."""
    import h5py
    from scipy.io import savemat

    from mmfusion_plugin.recognition import digit_clips, media
    from mmfusion_plugin.segmentation import nyuv2_convert

    def convert(path: Path) -> None:
        with nyuv2_convert._open_source(path) as source, nyuv2_convert._named(str(path)):
            frames = nyuv2_convert._check_source(source, str(path), nyuv2_convert.Options())
            arrays = [source[key] for key in ("images", "depths", "labels")]
            for i in range(min(frames, 2)):
                nyuv2_convert._frame(arrays, i, to40, nyuv2_convert.Options())

    to40 = np.arange(41, dtype=np.uint8)
    with h5py.File(folder / "nyu.mat", "w") as file:
        for key, shape, dtype in (("images", (3, 640, 480), "u1"), ("depths", (640, 480), "f4"),
                                  ("labels", (640, 480), "u2")):
            file.create_dataset(key, data=np.ones((1, *shape), dtype), chunks=(1, *shape), compression="gzip")
    yield "NYU's frames", folder / "nyu.mat", convert
    savemat(folder / "splits.mat", dict(trainNdxs=[[1], [3]], testNdxs=[[2]]))
    yield "NYU's split", folder / "splits.mat", lambda path: nyuv2_convert._check_splits(
        *nyuv2_convert._read_splits(path), 3, str(path))
    (folder / "mnist").mkdir()
    for name, header in zip(digit_clips.MNIST_FILES, digit_clips.MNIST_HEADERS):
        content = np.array(header, ">i4").tobytes() + bytes(int(np.prod(header[1:])))
        (folder / "mnist" / name).write_bytes(gzip.compress(content, 9))
    for name in digit_clips.MNIST_FILES:
        (folder / name).write_bytes((folder / "mnist" / name).read_bytes())
        yield f"MNIST, {name.split('-')[1]}", folder / name, lambda path, name=name: (
            (folder / "mnist" / name).write_bytes(path.read_bytes()), digit_clips.read_mnist(folder / "mnist"))
        (folder / "mnist" / name).write_bytes((folder / name).read_bytes())
    media.write_wav(folder / "digit.wav", np.zeros(800, np.float32), digit_clips.SAMPLE_RATE)
    yield "spoken digit, .wav", folder / "digit.wav", digit_clips.read_wav


def _records(folder: Path) -> Iterator[tuple[str, Path, Callable[[Path], object]]]:
    """What the tools that evaluate read of earlier work."""
    log = folder / "run" / "1" / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True)
    content = "".join(json.dumps({"loss": 0.5, "fusion.weight.a": 1.0, "step": i}) + "\n" for i in (1, 2))
    (folder / "log").write_text(content)
    yield "log of a training", folder / "log", lambda path: (
        log.write_bytes(path.read_bytes()), training_logs.read_logs(folder / "run"))
    (folder / "record.json").write_text(json.dumps(dict(key="k", rows=[dict(name="a", samples=3)])))
    yield "record of an evaluation", folder / "record.json", evidence.read_record
    (folder / "results.jsonl").write_text('{"key": "a", "metrics": {"mIoU": 1.5}}\n{"key": "b", "error": null}\n')
    yield "results of a table", folder / "results.jsonl", read_results


def _resumable(trained: Path, name: str, content: Path) -> Path:
    """The checkpoint that a resumed run would take, with ``content`` for the file ``name`` beside it."""
    (trained.parent / name).write_bytes(content.read_bytes())
    found, wrong = files.newest_good(files.candidates(trained.parent, trained.parent, "iter_{}.pth"))
    if found is None:
        raise files.CheckpointError("; ".join(wrong))
    return found


def _built(registry, scope: str, cfg: dict) -> object:
    init_default_scope(scope)
    return registry.build(cfg)


def fuzzed_files(folder: Path, number: int) -> Iterator[Row]:
    """Bytes changed, inserted, cut and made up by Hypothesis; a loader may only succeed or raise a typed error."""
    if find_spec("hypothesis") is None:
        raise SystemExit("check 9 needs Hypothesis: pip install 'mmfusion_plugin[test]'")
    folder.mkdir(parents=True)
    for name, path, read in _loaders(folder):
        files.sidecar(path).unlink(missing_ok=True)
        read(path)  # sound as it is
        gc.freeze()  # mmengine's data sets collect garbage when they are built: 40 ms a case with all that is imported
        with _silent():
            outcomes, wrong = _fuzzed(path, read, number)
        yield Row(name, f"{sum(outcomes.values())} cases", f"{wrong or 'typed errors only'}; refused "
                  f"{outcomes['refused']}, read {outcomes['read']}".replace("|", "/"), not wrong)


def _fuzzed(path: Path, read: Callable[[Path], object], number: int) -> tuple[Counter, dict[str, str]]:
    """How many cases were read and refused; an example of every error that is not typed."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    whole, case = path.read_bytes(), path.with_name("case" + path.suffix)
    place = st.integers(0, len(whole) - 1)
    outcomes, wrong = Counter(), {}

    @settings(max_examples=number, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))
    @given(edits=st.lists(st.tuples(place, st.binary(min_size=1, max_size=4), st.booleans()), max_size=6),
           cut=st.none() | place, made_up=st.none() | st.none() | st.none() | st.binary(max_size=200))
    def fuzz(edits, cut, made_up):
        data = bytearray(whole if made_up is None else made_up)
        for at, new, insert in edits:
            data[at: at if insert else at + len(new)] = new
        case.write_bytes(bytes(data[:cut]))
        try:
            read(case)
            outcomes["read"] += 1
        except UnicodeError as error:  # a ValueError, but one that names no file
            outcomes["wrong"] += 1
            wrong.setdefault("UnicodeError", str(error)[:80])
        except (ValueError, OSError):  # what the docstrings name: MediaError, SensorReadError, ...
            outcomes["refused"] += 1
        except Exception as error:
            outcomes["wrong"] += 1
            wrong.setdefault(type(error).__name__, str(error)[:80])

    fuzz()
    return outcomes, wrong


@contextmanager
def _silent() -> Iterator[None]:
    """Decoders of pictures and clips write about each damaged file."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept), os.close(null)
