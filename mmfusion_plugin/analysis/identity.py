"""Which evaluation a stored result belongs to."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .conditions import build_dataset

__all__ = ["fingerprint"]


def fingerprint(cfg: Mapping[str, Any], checkpoint: str | Path, *more: Any,
                loaders: Sequence[str] = ("test_dataloader",)) -> str:
    """Hash of all that decides an evaluation's result: model, data, metrics, weights, and ``more``.

    Of the data sets of ``loaders`` it reads what each sample's ``get_data_info`` says (its files' names, its label,
    its arrays) and the size and time of each file, not the file: one that is written anew counts as another. A data
    set without ``get_data_info`` counts by its config alone.
    """
    digest = hashlib.sha256()
    parts = [cfg.get(key) for key in ("model", "test_evaluator", *loaders)]
    digest.update(json.dumps([*parts, *more], sort_keys=True, default=repr).encode())
    if Path(checkpoint).is_file():
        with open(checkpoint, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest() if hasattr(hashlib, "file_digest")
                          else hashlib.sha256(file.read()).digest())
    else:
        digest.update(str(checkpoint).encode())
    for name in loaders:
        dataset = build_dataset(cfg[name])
        if hasattr(dataset, "get_data_info"):
            for i in range(len(dataset)):
                for piece in _pieces(dataset.get_data_info(i)):
                    digest.update(piece)
    return digest.hexdigest()[:16]


def _pieces(value: Any) -> Iterator[bytes]:
    """What identifies a sample; objects that no list can tell apart count by their type."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield repr(key).encode()
            yield from _pieces(value[key])
    elif isinstance(value, (list, tuple)):
        yield str(len(value)).encode()
        for part in value:
            yield from _pieces(part)
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, (str, Path)):
        yield repr(str(value)).encode()
        yield from _file(Path(value))
    else:
        yield (repr(value) if value is None or isinstance(value, (bool, int, float, np.generic))
               else type(value).__name__).encode()


def _file(path: Path) -> Iterator[bytes]:
    """Size and time of a file, or of those in a folder of frames; nothing for what is no path."""
    try:
        # a word without a folder may be the name of one by chance
        frames = sorted(path.iterdir()) if len(path.parts) > 1 and path.is_dir() else []
        for file in frames or [path] * path.is_file():
            found = file.stat()
            yield f"{file.name} {found.st_size} {found.st_mtime_ns}".encode()
    except OSError:  # a text that is too long for a path, or a file that has gone: the evaluation will name it
        return
