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
from .level_curve import LevelMeans
from .running_normal import RunningNormal

__all__ = ["SIGNALS", "KnownNoise", "Novelty", "disagreement", "pooled"]

SIGNALS = ("input", "distance", "disagreement", "reconstruction")
FARTHEST = 4.0  # spans: the largest level that an unknown fault is worth
STEEPEST = 4.0  # levels for one standard deviation of novelty, where the known noise hardly changes it


def pooled(x: Tensor) -> Tensor:
    """Mean over positions, non-finite values as 0. Any rank of the contract -> (B, C) float32, detached."""
    x = x.detach().float().nan_to_num(posinf=0.0, neginf=0.0)
    return x if x.ndim == 2 else x.mean([axis for axis in range(1, x.ndim) if axis != channel_axis(x)])


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
        signals: of :data:`SIGNALS`, less ``input``, which is :class:`KnownNoise`. ``distance`` is the mean over
            levels of :meth:`RunningNormal.distance` of pooled features; the values of the others are handed in.
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
        check_signals(signals, margin)
        if not signals or "input" in signals:
            raise ValueError(f"these signals are of {list(SIGNALS[1:])}, got {list(signals)}")
        self.modalities, self.signals = tuple(modalities), tuple(signals)
        self.clean_level, self.span, self.margin = clean_level, span, margin
        self.features = nn.ModuleDict(
            {
                m: nn.ModuleList(RunningNormal(C, momentum=momentum, shrinkage=shrinkage) for C in channels[m])
                for m in self.modalities
            } if "distance" in signals else {})
        self.scale = nn.ModuleDict(
            {
                m: nn.ModuleDict({name: RunningNormal(1, momentum=momentum) for name in signals})
                for m in self.modalities
            })
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
        z = {
            m: {name: self.scale[m][name].standardised(x[:, None])[:, 0] for name, x in raw[m].items()}
            for m in self.modalities
        }
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
            for name, x in raw[m].items():
                here = clean[m]
                if name == "distance":
                    here = here & torch.stack([normal.ready for normal in self.features[m]]).all()
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


class KnownNoise(nn.Module):
    """How much farther an input lies from clean data, and from every noise level of training, than those themselves.

    For each modality and level the mean and covariance of the inputs' statistics are learnt from training samples of
    known noise. A test sample's distance to the nearest level says whether it is anything that training knew, however
    noisy. A clean sample and one with known noise are both at home; an occlusion, a blur, a lost span of sound or a
    level beyond the largest are not. What it is worth is a convention: each doubling of the distance beyond ``margin``
    counts for ``span`` levels, at most for four of them.

    Args:
        modalities: names.
        channels: number of statistics.
        clean_level: level of what is no news.
        span: largest level of training; levels are told apart by whole numbers.
        margin: in standard deviations of the known samples' log distance.

    Shapes: statistics {m: (B, S)}, available {m: (B,)} bool, levels {m: (B,)} or None.
    """

    def __init__(
        self, modalities: Sequence[str], channels: int, clean_level: float = 1.0, span: float = 11.0,
        margin: float = 2.0,
    ) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self.clean_level, self.span, self.margin = clean_level, span, margin
        # an input's statistics do not drift as features do: nothing need be forgotten
        self.inputs = nn.ModuleDict(
            {m: RunningNormal(channels, bins=round(span) + 1, momentum=1e-3) for m in self.modalities})
        self.scale = nn.ModuleDict({m: RunningNormal(1) for m in self.modalities})

    @torch.no_grad()
    def forward(
        self, statistics: Mapping[str, Tensor], available: Mapping[str, Tensor],
        levels: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """({m: novelty}, {m: the level that it is worth}); with ``levels``, learn from the batch afterwards.

        The novelty is the log distance in standard deviations of known samples; (B,) each. Before anything is
        known it is 0, and the level the clean one. ``levels``: on every rank or on none.
        """
        novelty, worth = {}, {}
        for m in self.modalities:
            log_distance = self.inputs[m].distance(statistics[m]).log2()
            z_B = torch.where(available[m], self.scale[m].standardised(log_distance[:, None])[:, 0], 0.0)
            deviation = self.scale[m].covariance_NCC[0, 0, 0].sqrt()
            doublings = ((z_B - self.margin) * deviation).clamp(min=0)
            novelty[m] = z_B
            worth[m] = (self.clean_level + self.span * doublings).clamp(max=FARTHEST * self.span)
            if levels is not None:
                known = available[m] & self.inputs[m].ready
                self.scale[m].update(log_distance[:, None], known)
                bin_B = levels[m].float().round().clamp(0, round(self.span)).long()
                self.inputs[m].update(statistics[m], available[m], bin_B)
        return novelty, worth


def check_signals(signals: Sequence[str], margin: float) -> None:
    """Raises ValueError unless ``signals`` lists some of :data:`SIGNALS` once and ``margin`` is not negative."""
    known = not isinstance(signals, str) and set(signals) <= set(SIGNALS)
    if not known or not signals or len(set(signals)) != len(signals):
        raise ValueError(f"novelty must be a list of {list(SIGNALS)} such as ['input'], got {signals!r}")
    if not margin >= 0:
        raise ValueError(f"novelty_margin is a number of standard deviations of 0 or more, got {margin!r}")
