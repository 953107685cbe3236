"""Large maps a block of positions at a time: no tensor is so wide that the system has to map it anew. Plain torch.

Every method that fuses position by position gives the same result so. On an AMD EPYC, two maps of 64x120x160 in a batch
of 4 take SCFAE 0.69 times as long forward and 0.73 in a training step; where freed memory is kept
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

__all__ = ["ROWS", "Block", "join_rows", "split_rows"]

ROWS = 8192  # 4096 to 16384 were level; fewer pay for torch's calls

Block = tuple[dict[str, Tensor], dict[str, Tensor]]  # features (N, C_m) and availability (N,) of N positions


def split_rows(feats: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> list[Block]:
    """Positions of all samples in a row, cut into equal blocks of at most :data:`ROWS`; [] where one block would do.

    On a processor, in single precision or better and in plain eager mode alone: compilers and exporters must see the
    maps, a GPU wants them whole, and half precision gains nothing (0.9 to 1.15 times as long in blocks).

    Shapes: feats {m: (B, C_m) or any other rank of the contract}, all with the same positions; available {m: (B,)}.
    """
    first = next(iter(feats.values()))
    number = first.numel() // first.shape[channel_axis(first)]
    if number <= ROWS or torch.is_autocast_enabled("cpu") or not all(map(_served, feats.values())):
        return []
    each = math.ceil(number / math.ceil(number / ROWS))
    names, per_sample = list(feats), math.prod(positions(first))
    # torch.split, not slices: its backward pass puts the blocks' gradients together once
    cut = [_rows(feats[m]).split(each) for m in names]
    there = [available[m].repeat_interleave(per_sample).split(each) for m in names]
    return [(dict(zip(names, x)), dict(zip(names, mask)))
            for x, mask in zip(zip(*cut, strict=True), zip(*there, strict=True), strict=True)]


def join_rows(blocks: Sequence[Tensor], like: Tensor) -> Tensor:
    """Blocks (N, D) -> the positions of ``like``, with D channels where ``like`` has its own."""
    rows = torch.cat(list(blocks))
    return rows.view(len(like), *positions(like), -1).movedim(-1, channel_axis(like))


def _served(x: Tensor) -> bool:
    return plain_eager(x) and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _rows(x: Tensor) -> Tensor:
    x = channels_last(x).movedim(channel_axis(x), -1)
    return x.reshape(-1, x.shape[-1])
