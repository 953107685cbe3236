"""What is made of weights once and used for as long as they stay what they are. Plain torch."""
from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Kept", "forget_where_gradients"]

Made = TypeVar("Made")


class Kept:
    """Made of weights, by a key; made anew where a weight is another one or has been written to.

    What writes without being counted (``weight.data``, fused optimisers) goes unseen. Copies and pickles are empty:
    what oneDNN lays out cannot be copied.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[tuple, Sequence[Tensor], object]] = {}

    def of(self, weights: Sequence[Tensor], make: Callable[[], Made], key: Hashable = None) -> Made:
        """What ``make`` gave for these weights as they are."""
        if any(w.is_inference() for w in weights):  # nothing counts what is written to them
            return make()
        state = tuple((id(w), w.data_ptr(), w._version) for w in weights)
        known = self._made.get(key)
        if known is None or known[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                # the weights beside it: an id is another tensor's once its own is gone
                known = self._made[key] = state, weights, make()
        return known[2]

    def forget(self) -> None:
        self._made.clear()

    def __reduce__(self) -> tuple:
        return Kept, ()


def forget_where_gradients(kept: Kept | None) -> None:
    """At the start of a pass: an optimiser, whose writing may go unseen, may follow one that asks for gradients."""
    if kept is not None and torch.is_grad_enabled():
        kept.forget()
