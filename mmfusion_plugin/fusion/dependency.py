"""How much a model leans on each modality. Plain torch. Source: UDML, CVPR 2026 (modality dependency calculator)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .ranks import all_reduced

__all__ = ["Dependency", "response"]


def response(logits: Tensor) -> Tensor:
    """Size of a prediction: |logit| summed over classes, a mean over positions. (B, K) or (B, K, H, W) -> (B,)."""
    size = logits.detach().float().abs().sum(1)
    return size if size.ndim == 1 else size.flatten(1).mean(1)


class Dependency(nn.Module):
    """alpha_m: running size of the prediction that the model makes with modality m alone.

    The released code overwrites it with the last batch and forgets it at test time; here it is a buffer: saved,
    resumed, and equal on all ranks.

    Args:
        modalities: names.
        momentum: share of the newest batch in the running mean.

    Raises: ValueError for a momentum outside (0, 1], and for predictions of other modalities.
    """

    def __init__(self, modalities: Sequence[str], momentum: float = 0.1) -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be in (0, 1], got {momentum}")
        self.modalities = tuple(modalities)
        self.momentum = momentum
        self.register_buffer("alpha_M", torch.ones(len(self.modalities)))
        self.register_buffer("updates_M", torch.zeros(len(self.modalities)))

    @torch.no_grad()
    def update(self, logits: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> None:
        """Take in one batch of predictions, ``logits[m]`` made with modality m alone.

        Shapes: logits {m: (B, K) or (B, K, H, W)}, available {m: (B,)} bool: only samples that have m count.
        """
        if set(logits) != set(self.modalities):
            raise ValueError(f"predictions of {sorted(logits)}, expected one for each of {list(self.modalities)}")
        sums, counts = [], []
        for m in self.modalities:
            size_B, here_B = response(logits[m]), available[m].to(logits[m].device)
            # a prediction that is not finite says nothing about dependency
            here_B = here_B & size_B.isfinite()
            sums.append(torch.where(here_B, size_B, 0.0).sum())
            counts.append(here_B.sum())
        sum_M, count_M = all_reduced(torch.stack(sums).to(self.alpha_M), torch.stack(counts).to(self.alpha_M))
        seen_M = count_M > 0
        batch_M = sum_M / count_M.clamp(min=1)
        # the first batch sets the value: an average with the initial 1 would take long to forget it
        step_M = torch.where(self.updates_M == 0, 1.0, self.momentum)
        self.alpha_M.copy_(torch.where(seen_M, self.alpha_M.lerp(batch_M, step_M), self.alpha_M))
        self.updates_M += seen_M

    def forward(self) -> dict[str, Tensor]:
        """{m: alpha_m}, scalars."""
        return {m: self.alpha_M[i] for i, m in enumerate(self.modalities)}
