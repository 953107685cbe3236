"""How unlike clean data a modality looks, whatever has happened to it. Plain torch.

The noise estimator knows the types of noise it was taught; an occluded or blurred picture may seem cleaner to it
than a clean one. What is measured here needs no example of the fault: how far features lie from those of clean
samples (Lee et al., NeurIPS 2018), how much one modality's prediction disagrees with the others', how badly SCFAE
reconstructs. A curve fitted on the known noise of training says which level that is worth.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .contract import channel_axis
from .level_curve import LevelMeans, all_reduced

__all__ = ["SIGNALS", "Novelty", "RunningNormal", "disagreement", "pooled"]

SIGNALS = ("distance", "disagreement", "reconstruction")
LARGEST = 1e4  # of a distance: beyond it nothing is told apart, and its square still has a mean
SMALLEST_VARIANCE = 1e-8
STEEPEST = 4.0  # levels for one standard deviation of novelty, where the known noise hardly changes it


def pooled(x: Tensor) -> Tensor:
    """Mean over positions, non-finite values as 0. Any rank of the contract -> (B, C) float32, detached."""
    x = x.detach().float().nan_to_num(posinf=0.0, neginf=0.0)
    return x if x.ndim == 2 else x.mean([axis for axis in range(1, x.ndim) if axis != channel_axis(x)])


# B batch, C channels
class RunningNormal(nn.Module):
    """Running mean and covariance of vectors, and the distance of a vector from them.

    Both are buffers: saved, resumed and, through one all-reduce of sums, equal on all ranks and to those of one
    process with the same global batch.

    Args:
        channels: C.
        momentum: share of the newest batch, once more than 1 / momentum of them have come; until then all batches'
            samples count alike.
        shrinkage: share of the covariance that is replaced by its diagonal: with fewer samples than channels it
            has no inverse otherwise. None: C / (C + samples remembered).

    Raises: ValueError for a momentum outside (0, 1] or a shrinkage outside [0, 1].
    """

    def __init__(self, channels: int, momentum: float = 0.02, shrinkage: float | None = None) -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be in (0, 1], got {momentum}")
        if shrinkage is not None and not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage must be in [0, 1] or None, got {shrinkage}")
        self.momentum, self.shrinkage = momentum, shrinkage
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean_C", torch.zeros(channels))
        self.register_buffer("covariance_CC", torch.zeros(channels, channels))

    @property
    def ready(self) -> Tensor:
        """() bool: whether enough samples have come to speak of a spread."""
        return self.count >= 2

    @torch.no_grad()
    def update(self, x: Tensor, here_B: Tensor) -> None:
        """Take in the samples ``here``; on every rank, or the ranks wait for each other. (B, C), (B,) bool."""
        here_B = here_B & x.isfinite().all(1)
        # about the running mean: a sum of plain squares loses a small variance beside a large mean
        off_BC = torch.where(here_B[:, None], x.to(self.mean_C) - self.mean_C, 0.0)
        number, sum_C, square_CC = all_reduced(here_B.sum().to(self.count), off_BC.sum(0), off_BC.T @ off_BC)
        old = self.count * (1 - self.momentum)
        share = number / (old + number).clamp(min=1)
        mean_C, square_CC = sum_C / number.clamp(min=1), square_CC / number.clamp(min=1)
        together_CC = torch.lerp(self.covariance_CC, square_CC, share) - share.square() * mean_C.outer(mean_C)
        seen = number > 0
        self.covariance_CC.copy_(torch.where(seen, together_CC, self.covariance_CC))
        self.mean_C.add_(share * mean_C)
        self.count.copy_(torch.where(seen, old + number, self.count))

    @torch.no_grad()
    def distance(self, x: Tensor) -> Tensor:
        """Root of the mean square of the whitened deviations: about 1 for one of them. (B, C) -> (B,) float32."""
        with torch.autocast(x.device.type, enabled=False):
            variance_C = self.covariance_CC.diagonal()
            # a channel that never moved on clean data has no scale of its own: a thousandth of the others'
            least = (variance_C.mean() * 1e-3).clamp(min=SMALLEST_VARIANCE)
            C = len(variance_C)
            share = C / (C + self.count) if self.shrinkage is None else self.shrinkage
            more_C = share * variance_C + (least - variance_C).clamp(min=0)
            shrunk_CC = (1 - share) * self.covariance_CC + more_C.diag()
            root_CC, _ = torch.linalg.cholesky_ex(shrunk_CC)
            off_CB = (x.to(self.mean_C) - self.mean_C).nan_to_num().clamp(-LARGEST, LARGEST).T
            white_CB = torch.linalg.solve_triangular(root_CC, off_CB, upper=False)
        return white_CB.square().mean(0).sqrt().nan_to_num(LARGEST, LARGEST).clamp(max=LARGEST)

    @torch.no_grad()
    def standardised(self, x_B: Tensor) -> Tensor:
        """(x - mean) / standard deviation, for C = 1; 0 until it is ready. (B,) -> (B,) float32."""
        deviation = self.covariance_CC[0, 0].clamp(min=SMALLEST_VARIANCE).sqrt()
        z_B = (x_B.to(self.mean_C) - self.mean_C[0]) / deviation
        return torch.where(self.ready, z_B, 0.0).nan_to_num().clamp(-LARGEST, LARGEST)


def disagreement(logits: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Jensen-Shannon divergence of each modality's prediction from the mean of the others', a mean over positions.

    0 where the modality or all others are missing. Between two modalities it is the same for both, and cannot tell
    which of them is wrong.

    Shapes: logits {m: (B, K) or (B, K, h, w)} on one grid, available {m: (B,)} bool -> {m: (B,)} float32, in nats.
    """
    p = {m: x.detach().float().softmax(1).flatten(2) if x.ndim > 2 else x.detach().float().softmax(1)[..., None]
         for m, x in logits.items()}
    found = {}
    for m in p:
        others = [k for k in p if k != m]
        here = [available[k][:, None, None].to(p[m]) for k in others]
        number = sum(here)
        rest = sum(p[k].nan_to_num() * h for k, h in zip(others, here)) / number.clamp(min=1)
        middle = (p[m] + rest) / 2
        js = _entropy(middle) - (_entropy(p[m]) + _entropy(rest)) / 2
        found[m] = torch.where(available[m] & (number.flatten() > 0), js.mean(1).clamp(min=0).nan_to_num(), 0.0)
    return found


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(1)


class Novelty(nn.Module):
    """Signals in standard deviations of clean data, their maximum, and the noise level that is worth as much.

    Everything is learnt from training samples with known noise: statistics of each signal from the clean ones, the
    curve from novelty to level from all. Before that has happened the novelty is 0 and its level the clean one.
    In training the statistics are those of features in training mode, and of training samples: with BatchNorm and
    small data sets, clean test samples lie farther out, which ``margin`` has to allow for.

    Args:
        modalities: names.
        channels: by modality, width of each of its levels' features.
        signals: of :data:`SIGNALS`. ``distance`` is the mean over levels of :meth:`RunningNormal.distance` of
            pooled features; the values of the others are handed in.
        clean_level: level of a clean sample; samples of that level or less make the statistics.
        span: largest level to expect.
        margin: novelty in standard deviations that is taken for clean.
        momentum, shrinkage: see :class:`RunningNormal`.

    Raises: ValueError for unknown signals, none of them, or a negative margin.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        channels: Mapping[str, Sequence[int]],
        signals: Sequence[str] = ("distance",),
        clean_level: float = 1.0,
        span: float = 11.0,
        margin: float = 2.0,
        momentum: float = 0.02,
        shrinkage: float | None = None,
    ) -> None:
        super().__init__()
        known = not isinstance(signals, str) and set(signals) <= set(SIGNALS)
        if not known or not signals or len(set(signals)) != len(signals):
            raise ValueError(f"novelty must be a list of {list(SIGNALS)} such as ['distance'], got {signals!r}")
        if not margin >= 0:
            raise ValueError(f"novelty_margin is a number of standard deviations of 0 or more, got {margin!r}")
        self.modalities, self.signals = tuple(modalities), tuple(signals)
        self.clean_level, self.span, self.margin = clean_level, span, margin
        self.features = nn.ModuleDict(
            {m: nn.ModuleList(RunningNormal(C, momentum, shrinkage) for C in channels[m]) for m in self.modalities}
            if "distance" in signals else {})
        self.scale = nn.ModuleDict(
            {m: nn.ModuleDict({name: RunningNormal(1, momentum) for name in signals}) for m in self.modalities})
        self.curve = LevelMeans(self.modalities, span, momentum=momentum)

    @torch.no_grad()
    def forward(
        self,
        feats: Mapping[str, Sequence[Tensor]],
        available: Mapping[str, Tensor],
        values: Mapping[str, Mapping[str, Tensor]],
        levels: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Novelty {m: (B,)} in standard deviations of clean data; with ``levels``, learn from the batch afterwards.

        Args:
            feats: {m: features of each level}, any rank of the contract.
            values: {signal: {m: (B,)}} of the signals other than ``distance``.
            levels: {m: (B,)} injected noise, in training; on every rank or on none.
        """
        vectors = {m: [pooled(x) for x in feats[m]] for m in self.features}
        raw = {m: self._raw(m, vectors, values) for m in self.modalities}
        z = {m: {name: self.scale[m][name].standardised(x) for name, x in raw[m].items()} for m in self.modalities}
        # a missing modality is no news
        novelty = {
            m: torch.where(available[m], torch.stack(list(z[m].values())).amax(0), 0.0) for m in self.modalities}
        if levels is not None:
            self._learn(vectors, raw, novelty, available, {m: levels[m].float() for m in self.modalities})
        return novelty

    def _raw(self, m: str, vectors: Mapping[str, Sequence[Tensor]], values: Mapping) -> dict[str, Tensor]:
        raw = {name: values[name][m].float() for name in self.signals if name != "distance"}
        if m in vectors:
            distances = [normal.distance(x) for normal, x in zip(self.features[m], vectors[m])]
            raw["distance"] = torch.stack(distances).mean(0)
        return {name: raw[name] for name in self.signals}

    def _learn(self, vectors, raw, novelty, available, levels) -> None:
        """From values found with the statistics before this batch, as a test will find them."""
        clean = {m: available[m] & (levels[m] <= self.clean_level) for m in self.modalities}
        known = {}
        for m in self.modalities:
            known[m] = available[m] & torch.stack([scale.ready for scale in self.scale[m].values()]).all()
            ready = all(bool(normal.ready) for normal in self.features[m]) if m in vectors else True
            for name, x in raw[m].items():
                here = clean[m] if ready or name != "distance" else torch.zeros_like(clean[m])
                self.scale[m][name].update(x[:, None], here)
            for normal, x in zip(self.features[m] if m in vectors else (), vectors.get(m, ())):
                normal.update(x, clean[m])
        self.curve.update(novelty, levels, known)

    @torch.no_grad()
    def level(self, novelty: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{m: (B,)}: the level at which known noise is as novel on average; between ``clean_level`` and 2 x span.

        Up to ``margin`` it is the clean one; from there it rises with the novelty, at most ``STEEPEST`` levels per
        standard deviation, and goes on rising beyond what the largest level causes.
        """
        curve_MN = self.curve.curve()
        centre_N = self.curve.centre_N
        step = centre_N[1] - centre_N[0]
        ramp_N = centre_N / STEEPEST
        found = {}
        for i, m in enumerate(self.modalities):
            seen = curve_MN[i].isfinite().all()
            x_N = (curve_MN[i].nan_to_num().clamp(min=self.margin) - ramp_N).cummax(0).values + ramp_N
            place_B = torch.searchsorted(x_N, novelty[m].to(x_N).contiguous()).clamp(1, len(x_N) - 1)
            slope_B = step / (x_N[place_B] - x_N[place_B - 1])
            beyond_B = novelty[m] > x_N[-1]
            slope_B = torch.where(beyond_B, (centre_N[-1] - centre_N[0]) / (x_N[-1] - x_N[0]), slope_B)
            from_B = torch.where(beyond_B, len(x_N) - 1, place_B - 1)
            level_B = centre_N[from_B] + slope_B * (novelty[m] - x_N[from_B])
            level_B = level_B.clamp(self.clean_level, 2 * self.span)
            found[m] = torch.where(seen & (novelty[m] > self.margin), level_B, self.clean_level)
        return found

    def extra_repr(self) -> str:
        return f"signals={list(self.signals)}, margin={self.margin:g}"
