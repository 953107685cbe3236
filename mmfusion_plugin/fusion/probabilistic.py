"""Features as distributions: the mean carries the meaning, the variance how noisy the input was. Plain torch.

Used by UDML (Unbiased Dynamic Multimodal Learning, CVPR 2026, arXiv:2603.19681).
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .contract import all_there, channel_axis, expand_mask
from .layers import ChannelBatchNorm, ChannelLinear, channels_last, make_norm
from .ranks import several

__all__ = ["ProbabilisticEmbedding", "kl_to_noise"]

LOG_VARIANCE = (-10.0, 10.0)  # sigma between 0.007 and 148: 1 / sigma^2 and sigma^2 stay finite in half precision


class ProbabilisticEmbedding(nn.Module):
    """x -> N(mu, sigma^2) at each position, from two linear branches.

    Args:
        channels: C.
        norm: of mu: ``layer``, ``batch`` or None.
        variance_norm: of log sigma^2: ``batch`` or None. With ``batch`` (as released) a sample's variance in
            training is relative to the others of its batch; a norm over channels would take away the level
            that the noise estimator is to read.

    Shapes: (B, C) or any other rank of the contract, available (B,) bool or None: which samples count for ``batch``'s
        statistics -> (mu, log sigma^2), each of the same shape as x; log sigma^2 within [-10, 10].
    Raises: ValueError for an unknown norm.
    Source: UDML, "a probabilistic representation: mean encodes semantic information, variance noise".
    """

    def __init__(self, channels: int, norm: str | None = "layer", variance_norm: str | None = None) -> None:
        super().__init__()
        if variance_norm not in ("batch", None):
            raise ValueError(f"variance_norm must be 'batch' or None, got {variance_norm!r}")
        self.mean = _Branch(channels, norm)
        self.log_variance = _Branch(channels, variance_norm)

    def forward(self, x: Tensor, available: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = channels_last(x)
        return self.mean(x, available), self.log_variance(x, available).clamp(*LOG_VARIANCE)

    def sample(self, mu: Tensor, log_variance: Tensor) -> Tensor:
        """mu + epsilon sigma in training, mu in evaluation."""
        if not self.training:
            return mu
        # drawn in the order of memory: torch fills other orders value by value, ten times as slowly
        axis = channel_axis(mu)
        epsilon = torch.randn_like(mu.movedim(axis, -1), memory_format=torch.contiguous_format).movedim(-1, axis)
        return mu + epsilon * (0.5 * log_variance).exp()


def kl_to_noise(mu: Tensor, log_variance: Tensor, level_B: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, t)) of each sample, t its noise level taken as a variance.

    (sigma^2 / t + mu^2 / t - log(sigma^2 / t) - 1) / 2, a mean over channels and positions. The released code sums
    instead: its weight beta is ours divided by channels x positions.

    Shapes: mu, log_variance any rank of the contract, level_B (B,) > 0 -> (B,) float32.
    Raises: ValueError for a level that is not positive.
    """
    if level_B.device.type == "cpu" and not (level_B > 0).all():  # an accelerator would have to be waited for
        raise ValueError(f"noise levels must be positive to be a variance, got {float(level_B.min())}; set clean_level")
    mu, log_variance = mu.float(), log_variance.float()
    log_ratio = log_variance - expand_mask(level_B.float(), mu).log()
    kl = 0.5 * (log_ratio.exp() + mu.square() / expand_mask(level_B.float(), mu) - log_ratio - 1)
    return kl.flatten(1).mean(1)


class _Branch(nn.Sequential):

    def __init__(self, channels: int, norm: str | None) -> None:
        after = ChannelBatchNorm(channels) if norm == "batch" else make_norm(norm, channels)
        super().__init__(ChannelLinear(channels, channels), after)

    def forward(self, x: Tensor, available: Tensor | None) -> Tensor:
        linear, after = self
        x = linear(x)
        if isinstance(after, ChannelBatchNorm):
            return after(x, available)
        if isinstance(after, nn.modules.batchnorm._NormBase):  # a SyncBatchNorm put in its place
            rows = _over_those_there(after, x.mT if x.ndim == 3 else x, available)
            return rows.mT if x.ndim == 3 else rows
        return after(x)


def _over_those_there(norm: nn.Module, x: Tensor, available: Tensor | None) -> Tensor:
    """Batch normalisation by a norm that knows no mask; what is missing gives 0."""
    if not norm.training or available is None or all_there(available):
        return norm(x)
    rows = x[available]
    if several() or rows.numel() > rows.shape[1]:
        rows = norm(rows)
    else:  # one value of a channel has no spread
        rows = F.batch_norm(rows, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    return torch.zeros_like(x).to(rows).index_put((available,), rows)
