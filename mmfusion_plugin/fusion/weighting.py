"""From noise levels to the modalities' weights. Plain torch. Source: UDML, CVPR 2026, and laws of our own."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LAWS", "FusionWeights", "MonotoneCurve"]

LAWS = ("inverse_square", "inverse", "exponential", "learned")
SMALLEST = 1e-3  # of a noise level: below it all are equally clean


class MonotoneCurve(nn.Module):
    """A learned penalty f(s) >= 0 that never falls with s: a sum of softplus ramps with positive slopes.

    Args:
        ramps: number of ramps, their knees spread over [0, span] at the start.
        span: largest level to expect.

    Shapes: (...) -> (...), f(0) = 0.
    """

    def __init__(self, ramps: int = 8, span: float = 11.0) -> None:
        super().__init__()
        self.knees = nn.Parameter(torch.linspace(0, span, ramps))
        self.slopes = nn.Parameter(torch.full((ramps,), -4.0))  # softplus: 0.018 each, nearly equal weights
        self.sharpness = ramps / span

    def forward(self, s: Tensor) -> Tensor:
        def ramps(x: Tensor) -> Tensor:
            return F.softplus((x[..., None] - self.knees) * self.sharpness) / self.sharpness

        return ((ramps(s) - ramps(torch.zeros_like(s))) * F.softplus(self.slopes)).sum(-1)


class FusionWeights(nn.Module):
    """w_m = M v_m / sum_j v_j over the available modalities, 0 for a missing one.

    v_m by ``law``, s the noise level and alpha the dependency: ``inverse_square`` 1 / (s^2 alpha), as released;
    ``inverse`` 1 / (s alpha); ``exponential`` exp(-s / temperature) / alpha; ``learned`` exp(-f(s)) / alpha with
    a learned monotone f shared by all modalities, trained by the task's loss. M counts the available ones,
    so that the weights' mean is 1 whatever is missing.

    Args:
        modalities: names.
        law: see above.
        temperature: of ``exponential``.
        span: largest level to expect, for ``learned``.

    Shapes: s {m: (B,)}, alpha {m: () or (B,)}, available {m: (B,)} bool -> {m: (B,)}.
    Raises: ValueError for an unknown law or a temperature that is not positive.
    """

    def __init__(
        self, modalities: Sequence[str], law: str = "inverse_square", temperature: float = 1.0, span: float = 11.0
    ) -> None:
        super().__init__()
        if law not in LAWS:
            raise ValueError(f"law must be one of {list(LAWS)}, got {law!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}")
        self.modalities = tuple(modalities)
        self.law = law
        self.temperature = temperature
        self.curve = MonotoneCurve(span=span) if law == "learned" else None

    def forward(
        self, s: Mapping[str, Tensor], alpha: Mapping[str, Tensor], available: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        # logarithms: 1 / s^2 leaves the range of half precision, its ratio to the others' does not
        score_MB = torch.stack([self._log_score(s[m].float(), alpha[m].float()) for m in self.modalities])
        here_MB = torch.stack([available[m] for m in self.modalities])
        share_MB = score_MB.masked_fill(~here_MB, -torch.inf).softmax(0)
        weight_MB = share_MB * here_MB.sum(0)
        return {m: weight_MB[i] for i, m in enumerate(self.modalities)}

    def _log_score(self, s_B: Tensor, alpha: Tensor) -> Tensor:
        log_alpha = alpha.clamp(min=SMALLEST).log()
        if self.law == "learned":
            return -self.curve(s_B) - log_alpha
        if self.law == "exponential":
            return -s_B / self.temperature - log_alpha
        return -(2 if self.law == "inverse_square" else 1) * s_B.clamp(min=SMALLEST).log() - log_alpha

    def extra_repr(self) -> str:
        return f"law={self.law}"
