"""Cosine similarity along channels at the price of reading both sides, backward too. Plain torch."""
from __future__ import annotations

import torch
from torch import Tensor

from .contract import plain_eager

__all__ = ["SILENT", "cosine"]

SILENT = 1e-6  # a feature vector of smaller norm has no direction


def cosine(a: Tensor, b: Tensor, axis: int, size_a: Tensor | None = None) -> Tensor:
    """a.b / (|a| |b|), each norm taken as :data:`SILENT` at least; without ``axis``.

    The value and gradients of ``F.cosine_similarity(a, b, axis, eps=SILENT)``, which writes both sides normalised (on
    maps twice the time); torch's own gradient of a norm takes five passes over the features where two do.

    Args:
        size_a: |a| with ``axis`` kept, if it is known already.
    """
    seen = plain_eager(a) and plain_eager(b)
    return (Cosine.apply(a, b, axis, size_a) if seen else _written_out(a, b, axis, size_a)[0]).squeeze(axis)


class Cosine(torch.autograd.Function):
    """:func:`cosine` with ``axis`` kept. The gradient by b is a / (|a| |b|) - cosine b / |b|^2, and so by a."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, axis: int, size_a: Tensor | None) -> Tensor:
        similarity, *sizes = _written_out(a, b, axis, size_a)
        ctx.save_for_backward(a, b, similarity, *sizes)
        ctx.axis = axis
        return similarity

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, b, similarity, size_a, size_b = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for: what was saved no longer knows whence it came
            similarity, size_a, size_b = _written_out(a, b, ctx.axis)
        across, along = gradient / (size_a * size_b), -gradient * similarity
        of_a = _gradient(a, size_a, b, across, along) if ctx.needs_input_grad[0] else None
        of_b = _gradient(b, size_b, a, across, along) if ctx.needs_input_grad[1] else None
        return of_a, of_b, None, None


def _written_out(a: Tensor, b: Tensor, axis: int, size_a: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(cosine, |a|, |b|)."""
    size_a = (a.norm(dim=axis, keepdim=True) if size_a is None else size_a).clamp(min=SILENT)
    size_b = b.norm(dim=axis, keepdim=True).clamp(min=SILENT)
    return (a * b).sum(axis, keepdim=True) / (size_a * size_b), size_a, size_b


def _gradient(x: Tensor, size: Tensor, other: Tensor, across: Tensor, along: Tensor) -> Tensor:
    # a clamped norm is a constant
    part = x * torch.where(size > SILENT, along / size.square(), 0.0)
    if torch.is_grad_enabled():
        return torch.addcmul(part, other, across)
    return part.addcmul_(other, across)  # one pass of writing less, where no second derivative needs part
