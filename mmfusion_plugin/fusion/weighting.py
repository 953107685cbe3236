"""From noise levels to the modalities' weights. Plain torch. Source: UDML, CVPR 2026, and laws of our own."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .level_curve import LevelMeans

__all__ = ["LAWS", "FusionWeights", "MonotoneCurve", "correct_probability"]

LAWS = ("inverse_square", "inverse", "exponential", "learned_monotone", "expected_gain")
SMALLEST = 1e-3  # of a noise level: below it all are equally clean
SMALLEST_GAIN = 0.05  # of log-odds: a modality that knows nothing still weighs something


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

    v_m = (g_m(s) / alpha)^(1 / temperature), s the noise level and alpha the dependency. g_m by ``law``:
    ``inverse_square`` 1 / s^2, as released; ``inverse`` 1 / s; ``exponential`` exp(-s);
    ``learned_monotone`` exp(-f_m(s)), f_m a :class:`MonotoneCurve` of each modality that the task's loss trains;
    ``expected_gain`` the log-odds of the probability that m's own head gives the right class at that level, less
    those of chance: the weight of an independent voter of that competence (Nitzan and Paroush, 1982), from running
    means (:meth:`update_gain`). It acts on features; where inner fusion and head are linear, that is on logits.
    M counts the available modalities, so that the weights' mean is 1 whatever is missing.

    Args:
        modalities: names.
        law: see above.
        temperature: above 1 evens the weights out, below 1 sharpens them. With multiplied features, 1 has no rest:
            the head makes up for a small weight, which counts as dependency, and the weight falls further.
        span: largest level to expect, for ``learned_monotone`` and ``expected_gain``.

    Shapes: s {m: (B,)}, alpha {m: () or (B,)}, available {m: (B,)} bool -> {m: (B,)} float32.
    Raises: ValueError for an unknown law, a temperature that is not positive, and for gains told to another law.
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
        self.curves = nn.ModuleDict(
            {m: MonotoneCurve(span=span) for m in self.modalities} if law == "learned_monotone" else {})
        self.gain = LevelMeans(self.modalities, span, falling=True) if law == "expected_gain" else None
        if self.gain is not None:
            self.register_buffer("chance", torch.full((), 0.5))

    @torch.no_grad()
    def update_gain(
        self, correct: Mapping[str, Tensor], s: Mapping[str, Tensor], available: Mapping[str, Tensor], classes: int
    ) -> None:
        """Take in what each modality's own head knew of a batch; on every rank.

        Shapes: correct {m: (B,)} probability of the right class (not finite: not counted), s {m: (B,)},
        available {m: (B,)} bool.
        """
        if self.gain is None:
            raise ValueError(f"gains are read by law='expected_gain' alone, the law is {self.law!r}")
        self.chance.fill_(1 / classes)
        self.gain.update(correct, s, available)

    def forward(
        self, s: Mapping[str, Tensor], alpha: Mapping[str, Tensor], available: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        # logarithms: 1 / s^2 leaves the range of half precision, its ratio to the others' does not
        noise = {m: s[m].float() for m in self.modalities}
        gains = self._log_gains(noise) if self.gain is not None else {}
        score_MB = torch.stack([
            ((gains[m] if gains else -self._penalty(m, noise[m])) - alpha[m].float().clamp(min=SMALLEST).log())
            / self.temperature for m in self.modalities])
        here_MB = torch.stack([available[m] for m in self.modalities])
        share_MB = score_MB.masked_fill(~here_MB, -torch.inf).softmax(0)
        weight_MB = share_MB * here_MB.sum(0)
        return {m: weight_MB[i] for i, m in enumerate(self.modalities)}

    def _penalty(self, m: str, s_B: Tensor) -> Tensor:
        """-log g_m(s)."""
        if self.law == "learned_monotone":
            return self.curves[m](s_B)
        if self.law == "exponential":
            return s_B
        return (2 if self.law == "inverse_square" else 1) * s_B.clamp(min=SMALLEST).log()

    def _log_gains(self, s: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{m: log g_m(s)}; equal for all while a modality's own head has told nothing."""
        correct = self.gain(s)
        known = (self.gain.count_MN.sum(1) > 0).all()
        gains = {}
        for m in self.modalities:
            p_B = torch.where(known, correct[m], 0.5).clamp(0.01, 0.99)
            gains[m] = (p_B.logit() - self.chance.logit()).clamp(min=SMALLEST_GAIN).log()
        return gains

    def extra_repr(self) -> str:
        return f"law={self.law}, temperature={self.temperature:g}"


@torch.no_grad()
def correct_probability(logits: Tensor, labels: Tensor, ignore: int = 255) -> Tensor:
    """Probability of the right class, a mean over labelled positions; NaN for a sample without a label.

    Shapes: logits (B, K) with labels (B,), or (B, K, h, w) with labels (B, H, W), which are read at the logits'
        positions (nearest) -> (B,) float32.
    """
    if logits.ndim == 4:
        labels = F.interpolate(labels[:, None].float(), logits.shape[2:], mode="nearest")[:, 0].long()
    labelled = (labels != ignore) & (labels >= 0) & (labels < logits.shape[1])
    right = logits.float().softmax(1).gather(1, torch.where(labelled, labels, 0)[:, None])[:, 0]
    right, labelled = (x.reshape(logits.shape[0], -1) for x in (right, labelled))
    return torch.where(labelled, right, 0.0).sum(1) / labelled.sum(1)
