"""Samples that cannot be read: an error, unless a stated share of them may be replaced in training."""
from __future__ import annotations

import logging
import os
from numbers import Real
from pathlib import Path

import torch
from mmengine.logging import print_log

__all__ = ["BrokenSamples", "TooManyBroken"]


class TooManyBroken(RuntimeError):
    """More samples are broken than ``max_broken`` allows. The message names the list of them."""


class BrokenSamples:
    """Mixin for a data set of mmengine: in training, another sample drawn at random takes a broken one's place.

    Samples are counted once each, over all loader processes, named in a file and logged. Ranks count their own: with
    several processes, each sees its part of the data. A subclass sets ``broken_errors``, what its reading raises for
    a broken file, calls :meth:`allow_broken` before BaseDataset's ``__init__``, and comes before BaseDataset in its
    bases.
    """

    broken_errors: tuple[type[Exception], ...] = ()

    def allow_broken(self, max_broken: float, broken_list: str | None, test_mode: bool) -> None:
        """Take the data set's options of these names.

        Args:
            max_broken: share of the data set in [0, 1] that may be broken; 0: the first one is an error.
            broken_list: file to which each broken sample's path and fault are added, a line each.
            test_mode: as of the data set: there, broken samples are always errors.

        Raises: ValueError for a share outside [0, 1], one without ``broken_list``, or in ``test_mode``.
        """
        if isinstance(max_broken, bool) or not isinstance(max_broken, Real) or not 0 <= max_broken <= 1:
            raise ValueError(f"dataset.max_broken is a share of the samples in [0, 1], got {max_broken!r}")
        if max_broken and test_mode:
            raise ValueError(
                f"dataset.max_broken={max_broken} in test_mode: a score over other samples is no score; set it to 0 "
                "for validation and test, and drop broken samples from the list"
            )
        if max_broken and not broken_list:
            raise ValueError("dataset.max_broken needs dataset.broken_list, the file that will name broken samples")
        self.max_broken, self.broken_list = float(max_broken), broken_list
        self._broken: torch.Tensor | None = None

    def full_init(self) -> None:
        super().full_init()
        if self.max_broken and self._broken is None:
            # One mark per sample in memory that loader processes share: marking twice changes no count.
            self._broken = torch.zeros(len(self), dtype=torch.uint8).share_memory_()

    @property
    def number_broken(self) -> int:
        """How many samples have turned out broken, in all loader processes of this rank."""
        return 0 if self._broken is None else int(self._broken.sum())

    def prepare_data(self, idx: int) -> dict | None:
        if not self.max_broken:
            return super().prepare_data(idx)
        try:
            return super().prepare_data(idx)
        except self.broken_errors as error:
            self._record(idx, error)
            return None  # mmengine then draws another sample

    def _record(self, idx: int, error: Exception) -> None:
        new = not self._broken[idx]
        if new:
            self._broken[idx] = 1
            self._list(f"{self._name(idx)}\t{type(error).__name__}: {error}".replace("\n", " "))
        number, all_of_them = self.number_broken, len(self)
        allowed = int(self.max_broken * all_of_them + 1e-6)  # 0.29 x 100 is less than 29
        if number > allowed or number == all_of_them:
            raise TooManyBroken(
                f"{number} of {all_of_them} samples are broken, dataset.max_broken={self.max_broken:g} allows "
                f"{allowed}; see {self.broken_list} (the last: {error})"
            ) from error
        if new:
            print_log(f"{self._name(idx)} is broken and replaced by another sample ({number} of {all_of_them}, "
                      f"dataset.max_broken allows {allowed}; see {self.broken_list})", logger="current",
                      level=logging.WARNING)

    def _name(self, idx: int) -> str:
        info = self.get_data_info(idx)
        return str(info.get("filename") or info.get("img_path") or f"sample {idx}")

    def _list(self, line: str) -> None:
        path = Path(self.broken_list)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            return  # from an earlier run
        # one write, appended: lines of several processes do not mix
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)
