"""UDML: Unbiased Dynamic Multimodal Learning (CVPR 2026, arXiv:2603.19681), round any fusion. Plain torch.

Each modality's features become distributions; an estimator, taught by noise of known level, reads how noisy the
input was; the modalities are weighted by noise and by how much the model depends on them; then any inner fusion
method reads them.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .contract import FusionOutput, check_modalities, expand_mask
from .dependency import Dependency
from .noise_estimator import NoiseEstimator, noise_loss
from .probabilistic import ProbabilisticEmbedding, kl_to_noise
from .weighting import FusionWeights

__all__ = ["PRESETS", "UDML"]

QUALITIES = ("estimated", "variance", "given", None)
FORMS = ("residual", "multiplicative")

PRESETS: dict[str, dict] = {
    # The released code's formulas: BatchNorm on both branches, 1 / (s^2 alpha), x + w x, estimator detached.
    "released": dict(
        norm="batch", variance_norm="batch", law="inverse_square", form="residual", detach=True, noise_weight=0.1),
    "default": dict(
        norm="layer", variance_norm=None, law="inverse", form="residual", detach=True, noise_weight=0.1),
}


# B batch, M modalities, C channels
class UDML(nn.Module):
    """Noise-aware, dependency-corrected weights before any inner fusion.

    Args:
        modalities: names, in the inner fusion's order.
        in_channels: width by modality: a number, or a list for a pyramid.
        inner: takes the same features and availability and gives a FusionOutput: a fusion block or neck.
        preset: ``released`` or ``default``: the options not given here.
        embedding: features as distributions; False hands them on as they are (the ablation without them; the
            estimator then reads the features' own spread over positions or channels).
        norm, variance_norm: of the embedding, see :class:`ProbabilisticEmbedding`.
        quality: where s comes from: ``estimated``; ``variance``, the mean sigma itself (PE dynamic fusion);
            ``given``, the true level (the oracle of an analysis); None: all weights are 1 (static fusion with
            probabilistic heads).
        dependency: divide by the dependency alpha; False is the ablation without it.
        law, temperature: see :class:`FusionWeights`.
        form: ``residual`` x + w x, or ``multiplicative`` w x.
        detach, hidden: see :class:`NoiseEstimator`.
        noise_weight: of the estimator's squared error.
        kl_weight: of the KL to N(0, t), a mean over channels and positions. The released beta is a weight of the
            sum: beta = kl_weight / (channels x positions).
        clean_level: t, and the estimator's target, of a clean sample.
        span: largest level to expect.
        weights_from: share of training before which all weights are 1.
        dependency_every: training steps between two updates of the dependency.

    Shapes: feats {m: tensor of any rank of the contract, or a tuple of them}, available {m: (B,)} bool, levels
        {m: (B,)} or None -> FusionOutput of the inner fusion.
    Losses: the inner fusion's; with ``levels`` in training ``fusion.loss_noise`` and ``fusion.loss_kl``.
    Diagnostics: ``fusion.weight.<m>``, ``fusion.noise.<m>`` (means over available samples) and
        ``fusion.dependency.<m>``.
    Raises: ValueError for options outside their range, and for ``quality='given'`` without levels.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        in_channels: Mapping[str, int | Sequence[int]],
        inner: nn.Module,
        *,
        preset: str = "default",
        embedding: bool = True,
        quality: str | None = "estimated",
        dependency: bool = True,
        kl_weight: float = 0.0,
        clean_level: float = 1.0,
        span: float = 11.0,
        hidden: int = 64,
        temperature: float = 1.0,
        weights_from: float = 0.6,
        dependency_every: int = 10,
        dependency_momentum: float = 0.1,
        **options,
    ) -> None:
        super().__init__()
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}")
        unknown = sorted(set(options) - set(PRESETS[preset]))
        if unknown:
            raise TypeError(f"UDML has no options {unknown}")
        options = {**PRESETS[preset], **options}
        for key, value, choices in (("quality", quality, QUALITIES), ("form", options["form"], FORMS)):
            if value not in choices:
                raise ValueError(f"{key} must be one of {list(choices)}, got {value!r}")
        for key, value in (("noise_weight", options["noise_weight"]), ("kl_weight", kl_weight)):
            if not value >= 0:
                raise ValueError(f"{key} must not be negative, got {value!r}")
        if not clean_level > 0 or not span > clean_level:
            raise ValueError(f"need 0 < clean_level < span, got clean_level={clean_level}, span={span}")
        if not 0 <= weights_from <= 1:
            raise ValueError(f"weights_from is a share of training in [0, 1], got {weights_from!r}")
        if not isinstance(dependency_every, int) or dependency_every < 1:
            raise ValueError(f"dependency_every must be a positive number of steps, got {dependency_every!r}")
        if quality == "variance" and not embedding:
            raise ValueError("quality='variance' reads the embedding's variance; set embedding=True")
        self.modalities = check_modalities(modalities)
        if set(in_channels) != set(self.modalities):
            raise ValueError(f"in_channels names {sorted(in_channels)}, modalities names {list(modalities)}")
        widths = {m: [C] if isinstance(C := in_channels[m], int) else list(C) for m in self.modalities}
        self.inner = inner
        self.quality, self.form = quality, options["form"]
        self.noise_weight, self.kl_weight = options["noise_weight"], kl_weight
        self.clean_level, self.span = clean_level, span
        self.weights_from, self.dependency_every = weights_from, dependency_every
        self.embed = nn.ModuleDict(
            {
                m: nn.ModuleList(
                    ProbabilisticEmbedding(C, options["norm"], options["variance_norm"]) for C in widths[m])
                for m in self.modalities
            } if embedding else {})
        self.estimate = nn.ModuleDict(
            {m: NoiseEstimator(widths[m], hidden, options["detach"]) for m in self.modalities}
            if quality == "estimated" else {})
        self.weigh = None if quality is None else FusionWeights(self.modalities, options["law"], temperature, span)
        self.dependency = Dependency(self.modalities, dependency_momentum) if dependency and quality else None
        self.register_buffer("progress", torch.zeros(()))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def set_progress(self, share: float) -> None:
        """Tell how much of training is done, in [0, 1]; saved with the model, so that a test knows the stage."""
        if not 0 <= share <= 1:
            raise ValueError(f"progress is a share of training in [0, 1], got {share}")
        self.progress.fill_(share)

    @property
    def dynamic(self) -> bool:
        """Whether the stage of dynamic weights is reached."""
        return self.weigh is not None and bool(self.progress >= self.weights_from)

    def dependency_due(self) -> bool:
        """Whether this training step is to update the dependency; counts the steps. Call once a step."""
        if self.dependency is None or not self.training:
            return False
        due = int(self.step) % self.dependency_every == 0
        self.step += 1
        return due

    def forward(
        self,
        feats: Mapping[str, Tensor | Sequence[Tensor]],
        available: Mapping[str, Tensor] | None = None,
        levels: Mapping[str, Tensor] | None = None,
    ) -> FusionOutput:
        first = feats[self.modalities[0]]
        single = isinstance(first, Tensor)
        pyramid = {m: (feats[m],) if single else tuple(feats[m]) for m in self.modalities}
        if available is None:
            B, device = pyramid[self.modalities[0]][0].shape[0], pyramid[self.modalities[0]][0].device
            available = {m: torch.ones(B, dtype=torch.bool, device=device) for m in self.modalities}
        # before any arithmetic: NaN x 0 is NaN
        pyramid = {
            m: tuple(torch.where(expand_mask(available[m], x), x, 0.0) for x in pyramid[m]) for m in self.modalities}
        z, mus, log_variances = self._embed(pyramid)
        s = self._quality(log_variances, mus, available, levels)
        weights = self._weights(s, available)
        weighted = {m: tuple(self._apply(x, weights[m]) for x in z[m]) for m in self.modalities}
        output = self.inner({m: x[0] if single else x for m, x in weighted.items()}, available)
        losses = {**output.losses, **self._losses(s, mus, log_variances, available, levels)}
        return FusionOutput(output.fused, losses, {**output.diagnostics, **self._diagnostics(s, weights, available)})

    def _embed(self, pyramid: Mapping[str, Sequence[Tensor]]) -> tuple[dict, dict, dict]:
        """(z, mu, log sigma^2) by modality; without an embedding the features and their own spread."""
        if not self.embed:
            spread = {m: tuple(_spread(x) for x in pyramid[m]) for m in self.modalities}
            return dict(pyramid), dict(pyramid), spread
        z, mus, log_variances = {}, {}, {}
        for m in self.modalities:
            pairs = [embed(x) for embed, x in zip(self.embed[m], pyramid[m])]
            mus[m], log_variances[m] = (tuple(part) for part in zip(*pairs))
            z[m] = tuple(embed.sample(mu, log_v) for embed, (mu, log_v) in zip(self.embed[m], pairs))
        return z, mus, log_variances

    def _quality(self, log_variances, mus, available, levels) -> dict[str, Tensor] | None:
        if self.quality is None:
            return None
        if self.quality == "given":
            if levels is None:
                raise ValueError("quality='given' needs the true noise levels; inject noise in the preprocessor")
            return {m: levels[m].float().clamp(min=self.clean_level) for m in self.modalities}
        if self.quality == "variance":
            return {
                m: torch.stack([(0.5 * x.float()).exp().flatten(1).mean(1) for x in log_variances[m]]).mean(0)
                for m in self.modalities}
        return {m: self.estimate[m](log_variances[m]) for m in self.modalities}

    def _weights(self, s: Mapping[str, Tensor] | None, available: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.dynamic:
            weights = {m: available[m].float() for m in self.modalities}
            if self.weigh is not None and self.weigh.curve is not None:  # its parameters need a gradient on all ranks
                idle = sum(p.sum() for p in self.weigh.curve.parameters()) * 0
                weights = {m: w + idle for m, w in weights.items()}
            return weights
        # the task's loss must not teach the estimator what is convenient: detached, as released
        detached = {m: x.detach() for m, x in s.items()}
        one = torch.ones((), device=self.progress.device)
        alpha = dict.fromkeys(self.modalities, one) if self.dependency is None else self.dependency()
        return self.weigh(detached, alpha, available)

    def _apply(self, x: Tensor, weight_B: Tensor) -> Tensor:
        weight = expand_mask(weight_B, x).to(x.dtype)
        return x + weight * x if self.form == "residual" else weight * x

    def _losses(self, s, mus, log_variances, available, levels) -> dict[str, Tensor]:
        if not self.training:
            return {}
        losses = {}
        if self.estimate:
            if levels is None:  # the estimator's parameters still need a gradient on all ranks
                losses["fusion.loss_noise"] = sum(x.sum() for x in s.values()) * 0
            else:
                errors = [
                    noise_loss(s[m], levels[m].float().clamp(min=self.clean_level), available[m])
                    for m in self.modalities]
                losses["fusion.loss_noise"] = self.noise_weight * torch.stack(errors).mean()
        if self.kl_weight and self.embed and levels is not None:
            terms = []
            for m in self.modalities:
                t = levels[m].float().clamp(min=self.clean_level)
                here, number = available[m], available[m].sum().clamp(min=1)
                for mu, log_v in zip(mus[m], log_variances[m]):
                    terms.append(torch.where(here, kl_to_noise(mu, log_v, t), 0.0).sum() / number)
            losses["fusion.loss_kl"] = self.kl_weight * torch.stack(terms).mean()
        return losses

    def _diagnostics(self, s, weights, available) -> dict[str, Tensor]:
        found = {}
        for m in self.modalities:
            number = available[m].sum().clamp(min=1)
            found[f"fusion.weight.{m}"] = torch.where(available[m], weights[m], 0.0).sum() / number
            if s is not None:
                found[f"fusion.noise.{m}"] = torch.where(available[m], s[m], 0.0).sum() / number
        if self.dependency is not None:
            found |= {f"fusion.dependency.{m}": alpha for m, alpha in self.dependency().items()}
        return found


def _spread(x: Tensor) -> Tensor:
    """(B, C) log variance of each channel over positions; of vectors, of each value about its vector's mean."""
    if x.ndim == 2:
        return (x - x.mean(1, keepdim=True)).square().clamp(min=1e-6).log()
    channels = x if x.ndim == 3 else x.movedim(1, -1)
    return channels.flatten(1, -2).var(1, unbiased=False).clamp(min=1e-6).log()
