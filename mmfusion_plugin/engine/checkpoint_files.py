"""Checkpoints on disk: written whole or not at all, with a checksum beside them, and read without running code."""
from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from string import Formatter
from typing import Any

import torch
from mmengine.runner import checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

__all__ = [
    "CheckpointError", "candidates", "commit", "load_from_http", "load_from_local", "newest_good", "point_to", "remove",
    "sidecar", "verify",
]

PARTIAL = ".partial"  # of a file that is being written
SIDECAR = ".sha256"  # as sha256sum writes and checks it
POINTER = "last_checkpoint"  # mmengine's own name
BLOCK = 1 << 20
# torch stores tensors uncompressed: an archive that unpacks to much more than its size is no checkpoint of torch
UNPACKED = 4


class CheckpointError(ValueError):
    """A checkpoint is damaged, absent, or asks for more than data. The message names the file."""


def sidecar(path: str | Path) -> Path:
    """Where the checksum of a checkpoint is kept."""
    return Path(f"{path}{SIDECAR}")


def commit(path: str | Path) -> None:
    """Give ``path`` + ``.partial``, written by now, its name ``path``, and put its sha256 beside it.

    At every moment in between, ``path`` is absent, the old file or the new one, whole, and its checksum holds.
    Raises: OSError if the disk refuses; ``path`` then is as before.
    """
    path, partial = Path(path), Path(f"{path}{PARTIAL}")
    _flush(partial)
    new = _digest(partial)
    old = _listed(sidecar(path)) if path.is_file() and sidecar(path).is_file() else []
    # Two files cannot change names in one step: in between, the checksum file vouches for both versions.
    _replace_text(sidecar(path), _lines(path, [new, *old]))
    os.replace(partial, path)
    _flush(path.parent)
    if old:
        _replace_text(sidecar(path), _lines(path, [new]))


def point_to(work_dir: str | Path, path: str | Path) -> None:
    """Have ``last_checkpoint`` in ``work_dir`` name ``path``, which is what resuming starts from."""
    _replace_text(Path(work_dir) / POINTER, str(path))


def remove(path: str | Path) -> None:
    """Delete a checkpoint and its checksum; whichever is there."""
    Path(path).unlink(missing_ok=True)
    sidecar(path).unlink(missing_ok=True)


def verify(path: str | Path) -> None:
    """Compare a file with its checksum; without one, check what the archive itself holds of checksums.

    Raises: CheckpointError for an absent or damaged file.
    """
    path = Path(path)
    if not os.path.isfile(path):  # unlike Path.is_file, False for what can be no path
        raise CheckpointError(f"{path}: no such checkpoint")
    if sidecar(path).is_file():
        known = _listed(sidecar(path))
        if not known:
            raise CheckpointError(
                f"{sidecar(path)} holds no sha256, so nothing vouches for {path}; delete it if you trust the checkpoint"
            )
        found = _digest(path)
        if found not in known:
            raise CheckpointError(
                f"{path} is damaged: its sha256 is {found[:12]}..., {sidecar(path).name} says {known[0][:12]}...; "
                "take another checkpoint (--resume without a name finds the newest good one)"
            )
        return
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            head = file.read(2)
        if head in (b"", b"PK"):
            raise CheckpointError(f"{path} is damaged: it breaks off after {path.stat().st_size} bytes")
        return  # torch < 1.6 wrote pickles without any checksum
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_bomb(path, archive)
            broken = archive.testzip()
    except CheckpointError:  # a ValueError, too
        raise
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if broken is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of {broken!r} in it does not hold")


def candidates(work_dir: str | Path, out_dir: str | Path, template: str) -> list[Path]:
    """What a run may be resumed from, best first: what ``last_checkpoint`` names, then by number, newest first.

    Args:
        work_dir: holds ``last_checkpoint``.
        out_dir: holds the checkpoints.
        template: their name with a field for the number, ``epoch_{}.pth`` or ``iter_{:06d}.pth``.
    """
    found = []
    pointer = Path(work_dir) / POINTER
    if pointer.is_file():
        named = Path(pointer.read_text(encoding="utf-8", errors="replace").strip())
        # a work folder that was moved holds the file beside a pointer to where it was
        found += [path for path in (named, Path(out_dir) / named.name) if path.name]
    name = "".join(re.escape(text) + ("" if field is None else r"(\d+)")
                   for text, field, _, _ in Formatter().parse(template))
    numbered = {}
    for path in Path(out_dir).glob("*") if Path(out_dir).is_dir() else ():
        if match := re.fullmatch(name, path.name):
            numbered[tuple(map(int, match.groups()))] = path
    found += [numbered[number] for number in sorted(numbered, reverse=True)]
    # after a power cut the pointer may hold any bytes, which Path.is_file would not take
    return list(dict.fromkeys(path for path in found if os.path.isfile(path) or path is found[0]))


def newest_good(paths: Iterable[Path]) -> tuple[Path | None, list[str]]:
    """The first of ``paths`` that is whole, and what is wrong with those before it."""
    wrong = []
    for path in paths:
        try:
            verify(path)
        except CheckpointError as error:
            wrong.append(str(error))
        else:
            return path, wrong
    return None, wrong


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """What mmengine loads local checkpoints with: checked, and data alone.

    A pickle can call any function, so only tensors, plain containers and what mmengine stores are read. A text under
    ``meta.config``, which mmengine would run as Python when it resumes, is taken out.

    Raises: CheckpointError naming the file.
    """
    path = Path(filename).expanduser()
    verify(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _refuse_bomb(path, archive)
        loaded = torch.load(path, map_location=map_location, weights_only=True)
    except (MemoryError, torch.OutOfMemoryError, CheckpointError):
        raise
    except Exception as error:  # a file may hold any bytes, and parsers of torch's three formats raise as many types
        # torch's own message advises to load the file without protection
        reason = str(error).split("\n")[0][:200]
        if globals_ := re.findall(r"(?:Unsupported global: GLOBAL|GLOBAL) (\S+)", str(error)):
            reason = f"it asks for {globals_[0]}, which is no data"
        raise CheckpointError(
            f"{path} cannot be loaded as weights ({type(error).__name__}: {reason}); it is no checkpoint of this "
            "library, is damaged, or would run code"
        ) from error
    return without_code(loaded, str(path))


def load_from_http(filename: str, map_location: Any = None) -> Any:
    """What mmengine loads downloads with: data alone, as :func:`load_from_local`; without a checksum to compare.

    Raises: CheckpointError naming the address.
    """
    try:
        loaded = checkpoint.load_from_http(filename, map_location=map_location)
    except UnpicklingError as error:
        raise CheckpointError(f"{filename} is refused: it is no plain weights file, or would run code") from error
    return without_code(loaded, filename)


def without_code(loaded: Any, where: str) -> Any:
    """``loaded`` without what mmengine's Runner would execute when it resumes."""
    meta = loaded.get("meta") if isinstance(loaded, Mapping) else None
    if isinstance(meta, dict) and meta.pop("config", None) is not None:
        from mmengine.logging import print_log

        print_log(f"{where}: meta.config is left out; mmengine would run its text as Python", logger="current",
                  level=30)
    return loaded


def _refuse_bomb(path: Path, archive: zipfile.ZipFile) -> None:
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > UNPACKED * path.stat().st_size + BLOCK:
        raise CheckpointError(
            f"{path}: {path.stat().st_size} bytes would unpack to {unpacked}; torch writes checkpoints uncompressed"
        )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _lines(path: Path, digests: Iterable[str]) -> str:
    return "".join(f"{digest}  {path.name}\n" for digest in dict.fromkeys(digests))


def _listed(path: Path) -> list[str]:
    return re.findall(r"^([0-9a-f]{64})  ", path.read_text(encoding="ascii", errors="replace"), re.MULTILINE)


def _replace_text(path: Path, text: str) -> None:
    partial = Path(f"{path}{PARTIAL}")
    try:
        partial.write_text(text, encoding="utf-8")
        _flush(partial)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Have the disk hold what was written: after a power cut a renamed file may otherwise be empty."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


CheckpointLoader.register_scheme(prefixes="", loader=load_from_local, force=True)
CheckpointLoader.register_scheme(prefixes=("http://", "https://"), loader=load_from_http, force=True)
