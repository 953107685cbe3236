"""The base class of all fusion methods. Plain torch."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import Tensor, nn

from .contract import (
    FusionOutput,
    channel_axis,
    check_batch,
    check_in_channels,
    check_modalities,
    check_names,
    on_device_of,
    takes_weights,
    weighted,
)
from .kept import Kept, forget_where_gradients
from .masking import MissingFill, ModalityDropout
from .row_blocks import Block, join_rows, rows_pay, split_rows

__all__ = ["FusionBlock"]


class FusionBlock(nn.Module, ABC):
    """Fuses one level of features. Subclasses implement :meth:`fuse` and :attr:`out_channels`.

    A method that fuses position by position says ``pointwise = True``, which is faster on a processor. One whose
    :meth:`fuse` takes ``weights`` multiplies by them where no norm follows, which would take them away again; others
    get weighted features.

    The base class does what every method needs and what comparisons must share: it checks the
    batch, drops modalities in training, and replaces what is missing.

    Args:
        modalities: names, in fusion order (SCFAE: the ring).
        in_channels: width C_m of each modality, looked up by name.
        missing_fill: what stands in for a missing modality's features: ``zeros``, ``mean`` (running
            mean of the available ones) or ``token`` (learned).
        modality_dropout: share of training samples that lose a random part of their modalities.

    Shapes: feats {m: (B, C_m)} or any other rank of the contract, available {m: (B,)} bool, weights {m: one channel,
        and a feature's positions or 1 for each of them}: what each modality counts; None: all the same.
    Raises: ValueError for wrong names, widths or shapes, or a sample without any modality; RuntimeError where
        activation checkpointing would draw again.
    """

    # True: each position's result comes from that position alone, so fuse may be given rows of them instead of maps
    pointwise = False
    fused_only = False  # see modes.fused_only
    kept: Kept | None = None  # see modes.constant_weights

    def __init__(
        self,
        modalities: Sequence[str],
        in_channels: Mapping[str, int],
        *,
        missing_fill: str = "zeros",
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.modalities = check_modalities(modalities)
        self.in_channels = check_in_channels(self.modalities, in_channels)
        self.modality_dropout = ModalityDropout(self.modalities, modality_dropout)
        self.missing_fill = MissingFill(self.in_channels, missing_fill)

    @property
    @abstractmethod
    def out_channels(self) -> int:
        """Channels of ``FusionOutput.fused``."""

    @abstractmethod
    def fuse(
        self, feats: Mapping[str, Tensor], available: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None
    ) -> FusionOutput:
        """Fuse checked features in which every missing entry is already replaced."""

    def forward(
        self, feats: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> FusionOutput:
        forget_where_gradients(self.kept)
        available = self.check(feats, available)
        available = on_device_of(feats, self.modality_dropout(available))
        feats = self.missing_fill(feats, available)
        if weights is not None:
            check_names(self.modalities, weights, "weights")
            for m, x in feats.items():
                if weights[m].ndim != x.ndim or weights[m].shape[channel_axis(x)] != 1:
                    raise ValueError(
                        f"weights of {m!r} have shape {tuple(weights[m].shape)}, expected that of its features, "
                        f"{tuple(x.shape)}, with one channel, and their positions or 1 for each")
            if not takes_weights(type(self).fuse):
                feats, weights = {m: weighted(x, weights[m], available[m]) for m, x in feats.items()}, None
        blocks = split_rows(feats, available, self._widest, weights) if self.pointwise and rows_pay(feats) else []
        if blocks:
            return self.fuse_blocks(blocks, feats)
        return self.fuse(feats, available) if weights is None else self.fuse(feats, available, weights)

    @cached_property
    def _widest(self) -> int:
        """Channels of the widest tensor that a linear reads or writes, or that comes in."""
        linears = [part for part in self.modules() if isinstance(part, nn.Linear)]
        return max(*self.in_channels.values(), *(max(part.in_features, part.out_features) for part in linears))

    def fuse_blocks(self, blocks: Sequence[Block], feats: Mapping[str, Tensor]) -> FusionOutput:
        """:meth:`fuse` of ``feats``, a block of positions at a time.

        Raises: NotImplementedError where ``fuse`` gives losses: only the method knows how they add up.
        """
        outs = [self.fuse(*block) for block in blocks]
        if any(out.losses or out.per_sample for out in outs):
            raise NotImplementedError(
                f"{type(self).__name__}.fuse gives losses; join those of several blocks of positions in fuse_blocks, "
                "or set pointwise = False")
        like = feats[self.modalities[0]]
        sizes = [len(out.fused) for out in outs]
        means = {
            name: sum(size * out.diagnostics[name] for size, out in zip(sizes, outs)) / sum(sizes)
            for name in outs[0].diagnostics}
        return FusionOutput(join_rows([out.fused for out in outs], like), diagnostics=means)

    def check(
        self, feats: Mapping[str, Tensor], available: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """:func:`check_batch` against this block's modalities and widths."""
        return check_batch(self.modalities, self.in_channels, feats, available)
