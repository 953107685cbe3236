"""Running means and covariances of vectors, one for each of several bins. Plain torch."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from .ranks import all_reduced

__all__ = ["RunningNormal"]

LARGEST = 1e4  # of a distance: beyond it nothing is told apart, and its square still has a mean
SMALLEST_VARIANCE = 1e-8


# B batch, N bins, C channels
class RunningNormal(nn.Module):
    """Running mean and covariance of vectors in each bin, and how far a vector lies from the nearest.

    All are buffers: saved, resumed and, through one all-reduce of sums, equal on all ranks and to those of one
    process with the same global batch.

    Args:
        channels: C.
        bins: N; samples are told apart by whoever updates.
        momentum: a bin's share of the newest batch, once more than 1 / momentum of them have come; until then all
            batches' samples count alike.
        shrinkage: share of a covariance that is replaced by its diagonal: with fewer samples than channels it
            has no inverse otherwise. None: C / (C + samples remembered).

    Raises: ValueError for a momentum outside (0, 1], a shrinkage outside [0, 1] or no bin.
    """

    def __init__(
        self, channels: int, bins: int = 1, momentum: float = 0.02, shrinkage: float | None = None
    ) -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be in (0, 1], got {momentum}")
        if shrinkage is not None and not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage must be in [0, 1] or None, got {shrinkage}")
        if bins < 1:
            raise ValueError(f"need at least one bin, got {bins}")
        self.momentum, self.shrinkage = momentum, shrinkage
        self.register_buffer("count_N", torch.zeros(bins))
        self.register_buffer("mean_NC", torch.zeros(bins, channels))
        self.register_buffer("covariance_NCC", torch.zeros(bins, channels, channels))
        self._last: tuple[Tensor, Tensor] | None = None  # whitening, for exporters

    def _load_from_state_dict(self, *args) -> None:
        self._last = None
        super()._load_from_state_dict(*args)

    def _apply(self, fn, recurse: bool = True):
        """Statistics stay in single precision where a model is cast: a half cannot count, nor hold a covariance."""
        self._last = None
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            if self._buffers[name].dtype != buffer.dtype:
                self._buffers[name] = buffer.to(self._buffers[name].device)
        return self

    @property
    def ready(self) -> Tensor:
        """() bool: whether enough samples have come to speak of a spread, in any bin."""
        return (self.count_N >= 2).any()

    @torch.no_grad()
    def update(self, x: Tensor, here_B: Tensor, bin_B: Tensor | None = None) -> None:
        """Take in the samples ``here``; on every rank, or the ranks wait for each other.

        Shapes: x (B, C), here (B,) bool, bin (B,) int64 in [0, N); None: all belong to the first.
        """
        with torch.autocast(x.device.type, enabled=False):  # in half precision a covariance has no inverse
            self._update(x, here_B, bin_B)

    def _update(self, x: Tensor, here_B: Tensor, bin_B: Tensor | None) -> None:
        self._last = None
        here_B = here_B & x.isfinite().all(1)
        bin_B = torch.zeros_like(here_B, dtype=torch.int64) if bin_B is None else bin_B
        member_BN = (bin_B[:, None] == torch.arange(len(self.count_N), device=x.device)) & here_B[:, None]
        member_BN = member_BN.to(self.mean_NC)
        # about the running mean: a sum of plain squares loses a small variance beside a large mean
        off_BC = torch.where(here_B[:, None], x.to(self.mean_NC) - self.mean_NC[bin_B], 0.0)
        number_N, sum_NC, square_NCC = all_reduced(
            member_BN.sum(0), member_BN.T @ off_BC, torch.einsum("bn,bc,bd->ncd", member_BN, off_BC, off_BC))
        old_N = self.count_N * (1 - self.momentum)
        share_N = number_N / (old_N + number_N).clamp(min=1)
        seen_N = number_N > 0
        mean_NC = sum_NC / number_N.clamp(min=1)[:, None]
        square_NCC = square_NCC / number_N.clamp(min=1)[:, None, None]
        outer_NCC = mean_NC[:, :, None] * mean_NC[:, None]
        share_N11 = share_N[:, None, None]
        together_NCC = torch.lerp(self.covariance_NCC, square_NCC, share_N11) - share_N11.square() * outer_NCC
        self.covariance_NCC.copy_(torch.where(seen_N[:, None, None], together_NCC, self.covariance_NCC))
        self.mean_NC.add_(share_N[:, None] * mean_NC)
        self.count_N.copy_(torch.where(seen_N, old_N + number_N, self.count_N))

    @torch.no_grad()
    def distance(self, x: Tensor) -> Tensor:
        """Root of the mean square of the deviations, whitened by the nearest bin that is ready: about 1 for its own.

        Shapes: (B, C) -> (B,) float32; ``LARGEST`` until a bin is ready.
        """
        with torch.autocast(x.device.type, enabled=False):
            white_NCC, known_N = self._whitening()
            off_NBC = (x.to(self.mean_NC) - self.mean_NC[:, None]).nan_to_num().clamp(-LARGEST, LARGEST)
            distance_NB = (white_NCC @ off_NBC.mT).square().mean(1).sqrt()
            distance_NB = distance_NB.nan_to_num(LARGEST, LARGEST).clamp(max=LARGEST)
        return torch.where(((self.count_N >= 2) & known_N)[:, None], distance_NB, LARGEST).amin(0)

    def _whitening(self) -> tuple[Tensor, Tensor]:
        """(N, C, C): inverse roots of the covariances, and (N,) bool where there is one."""
        if getattr(torch.compiler, "is_exporting", bool)():  # ONNX has no operators for what follows
            if self._last is None:
                raise RuntimeError(
                    "an exporter takes the statistics as they are: call the model once before exporting it")
            return self._last
        variance_NC = self.covariance_NCC.diagonal(dim1=1, dim2=2)
        C = variance_NC.shape[1]
        share_N1 = C / (C + self.count_N[:, None]) if self.shrinkage is None else self.shrinkage
        more_NC = share_N1 * variance_NC + (self._least() - variance_NC).clamp(min=0)
        keep = 1 - share_N1[:, :, None] if self.shrinkage is None else 1 - self.shrinkage
        root_NCC, failed_N = torch.linalg.cholesky_ex(keep * self.covariance_NCC + more_NC.diag_embed())
        one_NCC = torch.eye(C, device=root_NCC.device).expand_as(root_NCC)
        # the inverse first: a product over positions or a large batch takes a fifth of what solving takes
        found = torch.linalg.solve_triangular(root_NCC, one_NCC, upper=False), failed_N == 0
        if not torch.compiler.is_compiling():
            self._last = found
        return found

    @torch.no_grad()
    def standardised(self, x: Tensor) -> Tensor:
        """(x - mean) / standard deviation of the first bin; 0 until it is ready. (B, C) -> (B, C) float32."""
        deviation_C = torch.maximum(self.covariance_NCC[0].diagonal(), self._least()[0]).sqrt()
        z_BC = (x.to(self.mean_NC) - self.mean_NC[0]) / deviation_C
        return torch.where(self.count_N[0] >= 2, z_BC, 0.0).nan_to_num().clamp(-LARGEST, LARGEST)

    def _least(self) -> Tensor:
        """(N, 1): a channel that never moved has no scale of its own; it gets a thousandth of the others' variance."""
        variance_NC = self.covariance_NCC.diagonal(dim1=1, dim2=2)
        return (variance_NC.mean(1, keepdim=True) * 1e-3).clamp(min=SMALLEST_VARIANCE)
