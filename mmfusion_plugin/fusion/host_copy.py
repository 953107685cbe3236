"""Numbers that are buffers, hence saved and resumed, and that nobody waits for. Plain torch."""
from __future__ import annotations

from torch import Tensor

__all__ = ["HostCopy"]


class HostCopy:
    """The value of a buffer of one number, asked of its device only when something but :meth:`add_one` changed it.

    Reading a number from an accelerator waits until all its work is done; in every step that leaves it idle.
    """

    def __init__(self) -> None:
        self._known: tuple[tuple[int, int], float] | None = None

    def read(self, buffer: Tensor) -> float:
        """An int of a buffer of integers."""
        if self._known is None or self._known[0] != _state(buffer):
            self._known = _state(buffer), buffer.item()
        return self._known[1]

    def add_one(self, buffer: Tensor) -> None:
        value = self.read(buffer)
        buffer += 1
        self._known = _state(buffer), value + 1


def _state(buffer: Tensor) -> tuple[int, int]:
    return buffer.data_ptr(), buffer._version
