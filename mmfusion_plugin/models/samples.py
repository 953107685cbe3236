"""What samples are called in messages and in the draw of their noise, alike in both tasks."""
from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path, PurePath

import torch
from mmengine.logging import print_log
from torch import Tensor

__all__ = ["NonFiniteReports", "sample_key", "sample_name", "short"]


FIRST, EVERY = 20, 100  # a sensor that is broken in every sample must not fill the log


def short(source: object) -> str:
    """A file's path, ``an array`` for what was handed over in memory."""
    return str(source) if source is None or isinstance(source, (str, Path)) else "an array"


def sample_name(data_sample, modality: str | None = None) -> str:
    """File of one modality, or of the whole sample; ``?`` without a data sample."""
    if data_sample is None:
        return "?"
    paths = data_sample.metainfo.get("modality_paths")
    if isinstance(paths, Mapping):
        return str({m: short(path) for m, path in paths.items()}) if modality is None else short(paths.get(modality))
    return str(paths or data_sample.metainfo.get("img_path") or data_sample.metainfo.get("filename"))


def sample_key(modalities: tuple[str, ...], data_sample) -> str | None:
    """What names a sample wherever its data lie: the last folder and the file; None if it has no name.

    Samples of equal keys in different folders get the same draw, which harms nothing.
    """
    meta = {} if data_sample is None else data_sample.metainfo
    paths = meta.get("modality_paths")
    named = [paths.get(m) for m in modalities] if isinstance(paths, Mapping) else []
    for source in (*named, meta.get("img_path"), meta.get("filename")):
        if isinstance(source, (str, PurePath)) and str(source):
            return "/".join(PurePath(source).parts[-2:])
    return None


class NonFiniteReports:
    """Warn of each file with non-finite readings once, and count them; of many, each hundredth.

    Args:
        consequence: what becomes of them: ``they are ...``.
    """

    def __init__(self, consequence: str) -> None:
        self.consequence = consequence
        self._reported: set[str] = set()
        self._open: list[tuple] = []

    def note(self, modality: str, finite: Tensor, data_sample) -> bool:
        """Take in which readings of a sample are finite. Returns whether it is known that all are.

        On an accelerator it never is: each answer would wait for it, and :meth:`tell` asks once for all.
        """
        if finite.device.type != "cpu":
            self._open.append((modality, (~finite).sum(), data_sample))
            return False
        if finite.all():
            return True
        self._warn(modality, int((~finite).sum()), data_sample)
        return False

    def tell(self) -> None:
        """At the end of a batch: warn of what :meth:`note` left open."""
        noted, self._open = self._open, []
        if noted:
            for number, (modality, _, data_sample) in zip(torch.stack([n for _, n, _ in noted]).tolist(), noted):
                if number:
                    self._warn(modality, number, data_sample)

    def _warn(self, modality: str, number: int, data_sample) -> None:
        name = f"{modality!r} of {sample_name(data_sample, modality)}"
        if name in self._reported:
            return
        self._reported.add(name)
        if len(self._reported) > FIRST and len(self._reported) % EVERY:
            return
        print_log(f"{name} holds {number} non-finite values; {self.consequence} (number {len(self._reported)} of such "
                  "files in this process)", logger="current", level=logging.WARNING)
