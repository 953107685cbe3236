"""Maps as rows of positions, large ones a block at a time: no way there and back in every layer, and no tensor so wide
that the system has to map it anew. Plain torch.

Every method that fuses position by position gives the same result so. On an AMD EPYC, two maps of 64x120x160 in a batch
of 4 take SCFAE 0.66 times as long forward and 0.70 in a training step; where freed memory is kept
(engine.memory.keep_freed_memory) the whole is as fast. Without gradients the widest activations exist for one block at
a time.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .contract import channel_axis, plain_eager, positions
from .layers import channels_last

__all__ = ["VALUES", "Block", "join_rows", "rows_pay", "split_rows"]

VALUES = 5_600_000  # of a block's widest tensor; below: torch's calls count, with several threads first

# features (N, C_m), availability (N,) and perhaps weights (N, 1) of N positions
Block = tuple[dict[str, Tensor], ...]


def rows_pay(feats: Mapping[str, Tensor]) -> bool:
    """Whether positions should be fused as rows: on a processor, in single precision or better, in plain eager mode.

    Compilers and exporters must see the maps, a GPU wants them whole, and half precision gains nothing (0.9 to 1.15
    times as long in blocks).
    """
    return not torch.is_autocast_enabled("cpu") and all(
        plain_eager(x) and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) for x in feats.values())


def split_rows(
    feats: Mapping[str, Tensor], available: Mapping[str, Tensor], widest: int,
    weights: Mapping[str, Tensor] | None = None,
) -> list[Block]:
    """Positions of all samples in a row, in equal blocks of at most :data:`VALUES` values at ``widest`` channels.

    [] for vectors that fit into one block: rows already. Maps that fit are one block: rows spare every layer the way
    there and back.

    Shapes: feats {m: (B, C_m) or any other rank of the contract}, all with the same positions; available {m: (B,)};
        weights {m: one channel, and those positions or 1 for each of them}.
    """
    first = next(iter(feats.values()))
    number, most = first.numel() // first.shape[channel_axis(first)], max(1, VALUES // widest)
    fits = number <= most
    if fits and first.ndim == 2:
        return []
    names, per_sample = list(feats), math.prod(positions(first))
    whole = [
        [_rows(feats[m]) for m in names], [available[m].repeat_interleave(per_sample) for m in names]]
    if weights is not None:
        one = [w.expand(first.shape[0], *_with_channels(1, first)) for w in (weights[m] for m in names)]
        whole.append([_rows(w) for w in one])
    if fits:  # not split: the way back of a split copies the gradient
        return [tuple(dict(zip(names, rows)) for rows in whole)]
    each = math.ceil(number / math.ceil(number / most))
    # torch.split, not slices: its backward pass puts the blocks' gradients together once
    parts = [zip(*(rows.split(each) for rows in known)) for known in whole]
    return [tuple(dict(zip(names, rows)) for rows in block) for block in zip(*parts)]


def join_rows(blocks: Sequence[Tensor], like: Tensor) -> Tensor:
    """Blocks (N, D) -> the positions of ``like``, with D channels where ``like`` has its own."""
    rows = torch.cat(list(blocks)) if len(blocks) > 1 else blocks[0]
    return rows.view(like.shape[0], *positions(like), rows.shape[1]).movedim(-1, channel_axis(like))


def _with_channels(C: int, like: Tensor) -> tuple[int, ...]:
    """Sizes of all axes but the batch's: ``like``'s positions, C channels."""
    return (*positions(like), C) if like.ndim == 3 else (C, *positions(like))


def _rows(x: Tensor) -> Tensor:
    x = channels_last(x).movedim(channel_axis(x), -1)
    return x.reshape(-1, x.shape[-1])
