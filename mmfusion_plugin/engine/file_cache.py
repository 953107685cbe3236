"""What was decoded of files, kept in memory by each process of a data loader."""
from __future__ import annotations

import logging
import os
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

__all__ = ["FileCache", "Version", "file_version", "shared_cache"]

MIB = 2**20
Version = tuple[int, int] | None


class FileCache:
    """Values of files, kept for good while there is room within ``limit`` bytes; a warning says when there is none.

    What came first stays. An epoch reads every file once: to drop the least recently used would be to drop each just
    before its turn comes again, and every file would be decoded whole for nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._entries: dict = {}
        self._warned = False

    def get(self, key: Any, version: Version) -> Any:
        """The value, or None; what was kept of another version of the file makes room."""
        value, kept_version, size = self._entries.get(key, (None, version, 0))
        if kept_version != version:
            del self._entries[key]
            self.size -= size
            return None
        return value

    def has_room(self, size: int) -> bool:
        room = self.size + size <= self.limit
        if self.limit and not room and not self._warned:
            self._warned = True
            print_log(
                f"cache_mb={self.limit / MIB:g} has no room for more: what it holds stays, other files are decoded "
                "each time; raise it if memory allows, once per worker", "current", logging.WARNING)
        return room

    def put(self, key: Any, version: Version, value: Any, size: int) -> None:
        if self.get(key, version) is None and self.has_room(size):
            self._entries[key] = value, version, size
            self.size += size


def shared_cache(cache_mb: float, owner: str) -> FileCache:
    """One cache of this size for all pipelines of a process: evaluations and trainings, one after the other, share it.

    Raises: ValueError, naming ``owner``'s option, for a negative size.
    """
    if isinstance(cache_mb, bool) or not isinstance(cache_mb, Real) or cache_mb < 0:
        raise ValueError(f"{owner}.cache_mb must not be negative, got {cache_mb!r}")
    return _cache_of(int(cache_mb * MIB))


@cache
def _cache_of(limit: int) -> FileCache:
    return FileCache(limit)


def file_version(path: str | Path) -> Version:
    """Changes when a file is written again; None for what is no file."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns
