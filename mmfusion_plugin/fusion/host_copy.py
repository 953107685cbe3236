"""Numbers that are buffers, hence saved and resumed, and that nobody waits for. Plain torch."""
from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["HostCopy"]


class HostCopy:
    """The value of a buffer of one number, asked of its device only when something but :meth:`add_one` and :meth:`fill`
    changed it.

    Reading a number from an accelerator waits until all its work is done; in every step that leaves it idle.
    """

    def __init__(self) -> None:
        self._known: tuple[Tensor, int, float] | None = None  # a buffer, how often it had been written to, its value

    def read(self, buffer: Tensor) -> float:
        """An int of a buffer of integers."""
        # a processor is not waited for, and what writes through buffer.data, as averaged models do, is not counted
        if buffer.device.type == "cpu" or buffer.is_inference():
            return buffer.item()
        if self._known is None or self._known[0] is not buffer or self._known[1] != buffer._version:
            self._keep(buffer, buffer.item())
        return self._known[2]

    def add_one(self, buffer: Tensor) -> None:
        value = self.read(buffer)
        buffer += 1
        self._keep(buffer, value + 1)

    def fill(self, buffer: Tensor, value: float) -> None:
        buffer.fill_(value)
        self._keep(buffer, _rounded_as(buffer, value))

    def __reduce__(self) -> tuple:  # copies have buffers of their own
        return HostCopy, ()

    def _keep(self, buffer: Tensor, value: float) -> None:
        if buffer.device.type != "cpu" and not buffer.is_inference():
            self._known = buffer, buffer._version, value

    def reached(self, buffer: Tensor, value: float) -> bool:
        """Whether the buffer holds ``value`` or more, in its own precision: 0.7 is reached at 0.7."""
        return self.read(buffer) >= _rounded_as(buffer, value)


def _rounded_as(buffer: Tensor, value: float) -> float:
    return torch.tensor(value, dtype=buffer.dtype, device="cpu").item()
