"""Missing modalities: who is dropped in training, and what stands in for what is not there."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .contract import channel_axis, expand_mask, refuse_recomputation, where_there
from .host_copy import HostCopy
from .ranks import all_reduced, rank

__all__ = ["MissingFill", "ModalityDropout"]

FILLS = ("zeros", "mean", "token")


class ModalityDropout(nn.Module):
    """Hide modalities of random training samples; identity in evaluation.

    With probability ``p`` a sample loses something: each proper non-empty subset of what it has is
    equally likely to survive. A sample with one modality keeps it. The draw depends on (seed, rank,
    step) alone, and seed and step are buffers, so that a resumed run draws what the unbroken one
    would have drawn and the global generators are left alone.

    Args:
        modalities: names, in fusion order.
        p: share of samples that lose at least one modality, in [0, 1).
        seed: None takes torch's initial seed, which the runner sets.

    Shapes: available {m: (B,)} bool -> {m: (B,)} bool.
    Raises: ValueError if p is outside [0, 1).
    """

    def __init__(self, modalities: Sequence[str], p: float = 0.0, seed: int | None = None) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"modality_dropout must be in [0, 1), got {p}")
        self.modalities = tuple(modalities)
        self.p = p
        if p > 0:
            seed = torch.initial_seed() if seed is None else seed
            # below 2^24: mmengine's SyncBuffersHook averages buffers over ranks as float32
            self.register_buffer("seed", torch.tensor(seed % 2**24, dtype=torch.int64))
            self.register_buffer("step", torch.zeros((), dtype=torch.int64))
            self._seed, self._step = HostCopy(), HostCopy()

    def forward(self, available: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.training or self.p == 0:
            return dict(available)
        refuse_recomputation("modality_dropout")
        here_BM = torch.stack([available[m] for m in self.modalities], 1)
        if here_BM.is_meta or self.step.is_meta:  # shapes alone: there is nothing to draw for
            return dict(available)
        keep_BM = self.draw(here_BM.cpu()).to(here_BM.device)
        self._step.add_one(self.step)
        return {m: keep_BM[:, i] for i, m in enumerate(self.modalities)}

    def draw(self, here_BM: Tensor) -> Tensor:
        """What each sample keeps of ``here_BM`` (B, M) at the current step."""
        generator = torch.Generator()
        mixed = (self._seed.read(self.seed) * 1_000_003 + self._step.read(self.step)) * 65_537 + rank()
        generator.manual_seed(mixed % 2**63)
        B, M = here_BM.shape
        lose_B = (torch.rand(B, generator=generator) < self.p) & (here_BM.sum(1) > 1)
        keep_BM = here_BM.clone()
        open_B = lose_B.clone()
        while open_B.any():
            coin_BM = torch.rand(B, M, generator=generator) < 0.5
            try_BM = coin_BM & here_BM
            kept_B = try_BM.sum(1)
            proper_B = open_B & (kept_B > 0) & (kept_B < here_BM.sum(1))
            keep_BM[proper_B] = try_BM[proper_B]
            open_B &= ~proper_B
        return keep_BM

    def extra_repr(self) -> str:
        return f"p={self.p}"


class MissingFill(nn.Module):
    """Replace the features of missing modalities; non-finite values there never get through.

    Args:
        in_channels: width C_m by modality.
        fill: ``zeros``; ``mean``, the running mean of the available features (zeros until the first
            training step); ``token``, a learned vector per modality.
        momentum: of the running mean.

    Shapes: feats {m: any rank of the contract}, available {m: (B,)} bool -> feats, same shapes.
    Raises: ValueError for an unknown fill.
    """

    def __init__(self, in_channels: Mapping[str, int], fill: str = "zeros", momentum: float = 0.1) -> None:
        super().__init__()
        if fill not in FILLS:
            raise ValueError(f"missing_fill must be one of {FILLS}, got {fill!r}")
        self.fill = fill
        self.momentum = momentum
        if fill == "mean":
            for m, C in in_channels.items():
                self.register_buffer(f"mean_{m}", torch.zeros(C))
        if fill == "token":
            self.token = nn.ParameterDict({m: nn.Parameter(torch.zeros(C)) for m, C in in_channels.items()})

    def forward(self, feats: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.fill == "mean" and self.training:
            refuse_recomputation("missing_fill='mean'")
            self._update_means(feats, available)
        return self.replace(feats, available)

    def replace(self, feats: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """:meth:`forward` without updating the running means."""
        return {m: self._fill(m, x, available[m]) for m, x in feats.items()}

    def _fill(self, m: str, x: Tensor, mask_B: Tensor) -> Tensor:
        if self.fill == "zeros":
            stand_in = 0.0
        else:
            vector = self.token[m] if self.fill == "token" else getattr(self, f"mean_{m}")
            shape = [1] * x.ndim
            shape[channel_axis(x)] = -1
            stand_in = vector.to(x.dtype).reshape(shape)
        # torch.where, not a product: NaN x 0 is NaN, and the dropped branch stays in the graph
        return where_there(expand_mask(mask_B, x), x, stand_in)

    @torch.no_grad()
    def _update_means(self, feats: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> None:
        for m, x in feats.items():
            mean = getattr(self, f"mean_{m}")
            rows = x.movedim(channel_axis(x), -1).reshape(x.shape[0], -1, mean.numel()).float()
            here = torch.where(available[m][:, None, None], rows, 0.0)
            # torch.where, not if: an accelerator would have to be waited for
            total, count = all_reduced(here.sum((0, 1)), available[m].sum().float() * rows.shape[1])
            sound = (count > 0) & torch.isfinite(total).all()
            newest = torch.where(sound, total / count.clamp(min=1), mean.float()).to(mean.dtype)
            mean.lerp_(newest, self.momentum)

    def extra_repr(self) -> str:
        return f"fill={self.fill}"
