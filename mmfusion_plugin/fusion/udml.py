"""UDML: Unbiased Dynamic Multimodal Learning (CVPR 2026, arXiv:2603.19681), round any fusion. Plain torch.

Each modality's features become distributions; an estimator, taught by noise of known level, reads how noisy the
input was; the modalities are weighted by noise and by how much the model depends on them; then any inner fusion
method reads them.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .cells import Cells
from .contract import (
    FusionOutput,
    as_levels,
    check_modalities,
    check_names,
    check_width,
    expand_mask,
    on_device_of,
    refuse_recomputation,
    takes_weights,
    where_there,
)
from .dependency import Dependency
from .host_copy import HostCopy
from .input_statistics import NUM_STATISTICS
from .masking import ModalityDropout
from .modes import evaluating, fused_only
from .noise_estimator import NoiseEstimator, noise_loss
from .novelty import KnownNoise, Novelty
from .probabilistic import ProbabilisticEmbedding, kl_to_noise
from .udml_options import checked_options
from .weighting import FusionWeights

__all__ = ["UDML"]


# B batch, M modalities, C channels
class UDML(nn.Module):
    """Noise-aware, dependency-corrected weights before any inner fusion.

    Args:
        modalities: names, in the inner fusion's order.
        in_channels: width by modality: a number, or a list for a pyramid.
        inner: takes the same features and availability and gives a FusionOutput: a fusion block or neck. One that
            takes ``weights``, too, multiplies by them where no norm follows, which would take them away again; another
            reads weighted features. It drops no modality itself.
        modality_dropout: share of training samples that lose a random part of their modalities. Drawn here, because
            the weights are shares of what is left, as in a test.
        preset: ``released`` or ``default``: the options not given here.
        reads: what the estimator reads: ``variance``, of the embedding, as published; ``input``, the texture of the
            input itself (:func:`input_statistics`), handed to ``forward``: encoders trained on noise hide it.
        embedding: features as distributions; False hands them on as they are (the ablation without them; the
            estimator then reads the features' own spread over positions or channels).
        norm, variance_norm: of the embedding, see :class:`ProbabilisticEmbedding`.
        quality: where s comes from: ``estimated``; ``variance``, the mean sigma itself (PE dynamic fusion);
            ``energy``, -logsumexp of each modality's own head, handed to ``forward`` (QMF-like; QMF's ranking
            loss is left out; needs ``law='exponential'``: energies have either sign); ``given``, the true level
            (the oracle of an analysis); ``equal``: none, the dependency alone weighs (the ablation without the
            estimator); None: all weights are 1 (static fusion with probabilistic heads).
        dependency: divide by the dependency alpha. True: its running mean; ``per_sample``: each sample's own, handed
            to ``forward``; False: the ablation without it.
        law, temperature: see :class:`FusionWeights`, temperature 1 as released; ``law='expected_gain'`` is told by
            :meth:`update_gain`.
        novelty: signals such as ``['input']``: s becomes the larger of s and the level that the novelty is worth, so
            that a fault the estimator was never shown costs weight, too. ``input`` is :class:`KnownNoise`, the others
            :class:`Novelty`'s; ``disagreement`` is handed to ``forward``; ``reconstruction`` runs the inner fusion
            (SCFAE) once more. None: off. For ``quality`` ``estimated`` and ``given``; a preset's is left out elsewhere.
        novelty_margin: standard deviations of clean data that are taken for clean.
        per_position: on maps, s, novelty and weights for each cell of the coarsest level's grid, on finer levels
            interpolated: a fault that covers a part of a picture costs that part. Needs ``quality='estimated'``, maps
            (B, C, H, W) and ``statistics`` of the grid's cells; an estimate is taught the level of the whole.
        form: ``residual`` x + w x, or ``multiplicative`` w x.
        detach, hidden: see :class:`NoiseEstimator`.
        noise_weight: of the estimator's squared error, which every batch with known levels teaches, in the
            stage before the dynamic weights too.
        noise_unit: the estimator's output: a softplus in units of one ``level``, as released, or linear in units of
            ``span``, starting in the middle of it: learnt in hundreds instead of thousands of steps. The weights
            then read no less than ``clean_level``.
        kl_weight: of the KL to N(0, t), a mean over channels, positions, levels and modalities. The released beta is
            a weight of the sum: beta = kl_weight / (channels x positions x modalities).
        clean_level: t of a clean sample. The least level that the weights read of a linear estimate, which learns 0 for
            a clean sample; of one that is a softplus the target of a clean sample.
        span: largest level to expect.
        weights_from: share of training before which all weights are 1.
        dependency_every: training steps between two updates of the dependency.

    Shapes: feats {m: tensor of any rank of the contract, or a tuple of them}, available {m: (B,)} bool, levels
        {m: (B,)} or None, alpha, energies and disagreements {m: (B,)} where ``reads_alone``, ``reads_energies`` and
        ``reads_disagreement`` ask for them, statistics {m: (B, 29)} where ``reads_statistics`` does, with
        ``per_position`` (B, 29, h, w) -> FusionOutput of the inner fusion.
    Losses: the inner fusion's; with ``levels`` in training ``fusion.loss_noise`` and ``fusion.loss_kl``.
    Diagnostics: ``fusion.weight.<m>``, ``fusion.noise.<m>``, ``fusion.novelty.<m>`` (means over available samples) and
        ``fusion.dependency.<m>``. Per sample the same, and ``fusion.level.<m>``: what the weights read.
    Raises: ValueError for options outside their range, and for ``quality='given'`` without levels, ``energy``
        without energies, ``disagreement`` without disagreements and ``dependency='per_sample'`` without alpha once
        the weights are dynamic.
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
        dependency: bool | str = True,
        kl_weight: float = 0.0,
        clean_level: float = 1.0,
        span: float = 11.0,
        hidden: int = 64,
        novelty_margin: float = 2.0,
        per_position: bool = False,
        modality_dropout: float = 0.0,
        weights_from: float = 0.6,
        dependency_every: int = 10,
        dependency_momentum: float = 0.1,
        **options,
    ) -> None:
        super().__init__()
        options = checked_options(
            preset, options, UDML.__init__.__kwdefaults__, quality=quality, dependency=dependency, embedding=embedding,
            per_position=per_position, kl_weight=kl_weight, clean_level=clean_level, span=span,
            novelty_margin=novelty_margin, weights_from=weights_from, dependency_every=dependency_every)
        reads, novelty = options["reads"], options["novelty"]
        self.per_position = per_position
        self.modalities = check_modalities(modalities)
        if set(in_channels) != set(self.modalities):
            raise ValueError(f"in_channels names {sorted(in_channels)}, modalities names {list(modalities)}")
        widths = self.widths = {
            m: [C] if isinstance(C := in_channels[m], int) else list(C) for m in self.modalities}
        if getattr(getattr(inner, "modality_dropout", None), "p", 0) > 0:
            raise ValueError(
                "the inner fusion drops modalities itself, after their weights: give modality_dropout to UDML instead")
        self.inner = inner
        self.modality_dropout = ModalityDropout(self.modalities, modality_dropout)
        compiled = getattr(inner, "_orig_mod", inner)  # torch.compile's wrapper takes anything
        self.hands_weights = takes_weights(type(compiled).forward)
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
        scaled = dict(unit=span, start=span / 2) if options["noise_unit"] == "span" else {}
        # a seed gives what is built after this the same weights with an estimator as without: comparisons are paired
        with torch.random.fork_rng(devices=[]):
            self.estimate = nn.ModuleDict(
                {
                    m: NoiseEstimator(
                        widths[m] if "variance" in reads else [], hidden, options["detach"],
                        statistics=NUM_STATISTICS if "input" in reads else 0, **scaled)
                    for m in self.modalities
                } if quality == "estimated" else {})
        self.reads, self.linear = reads, bool(scaled) and quality == "estimated"
        self.weigh = None if quality is None else FusionWeights(
            self.modalities, options["law"], options["temperature"], span)
        of_features = [name for name in novelty or () if name != "input"]
        self.novelty = Novelty(
            self.modalities, widths, of_features, clean_level, span, novelty_margin) if of_features else None
        self.known = KnownNoise(
            self.modalities, NUM_STATISTICS, clean_level, span, novelty_margin) if "input" in (novelty or ()) else None
        self.per_sample = dependency == "per_sample" and quality is not None
        running = dependency is True and quality is not None
        self.dependency = Dependency(self.modalities, dependency_momentum) if running else None
        self._told = False  # in this process: a resumed buffer does not show that the schedule goes on
        self.register_buffer("progress", torch.zeros(()))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._steps, self._share = HostCopy(), HostCopy()
        self._stage: bool | None = None  # for compilers, to which the buffer is a shape; None: not read yet

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        self._stage = None
        for name in ("seed", "step"):  # the inner fusion's in checkpoints of before 2026-11-26
            old = f"{prefix}inner.modality_dropout.{name}"
            if old in state_dict:
                state_dict[f"{prefix}modality_dropout.{name}"] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def set_progress(self, share: float) -> None:
        """Tell how much of training is done, in [0, 1]; saved with the model, so that a test knows the stage."""
        if not 0 <= share <= 1:
            raise ValueError(f"progress is a share of training in [0, 1], got {share}")
        self._told = True
        self._share.fill(self.progress, share)
        self._stage = self._share.reached(self.progress, self.weights_from)

    @property
    def dynamic(self) -> bool:
        """Whether the stage of dynamic weights is reached."""
        if self.weigh is None:
            return False
        if torch.compiler.is_compiling() and self._stage is not None:
            return self._stage
        if getattr(torch.compiler, "is_exporting", bool)():
            raise RuntimeError("an exporter cannot read how far training is: call the model once before exporting it")
        self._stage = self._share.reached(self.progress, self.weights_from)
        return self._stage

    @property
    def awaits_progress(self) -> str | None:
        """What cannot start because nobody has told how far training is; None if nothing waits."""
        waiting = self.weigh is not None and self.weights_from > 0 and not self._told
        return f"neck.weights_from={self.weights_from:g} of training starts the dynamic weights" if waiting else None

    @property
    def learns_levels(self) -> str | None:
        """What learns from noise of known level; None if nothing does."""
        return f"neck.quality={self.quality!r}" if self.quality in ("estimated", "given") else None

    @property
    def reads_energies(self) -> bool:
        """Whether ``forward`` needs ``energies``."""
        return self.quality == "energy"

    @property
    def reads_disagreement(self) -> bool:
        """Whether ``forward`` needs ``disagreements``."""
        return self.novelty is not None and "disagreement" in self.novelty.signals

    @property
    def reads_statistics(self) -> bool:
        """Whether ``forward`` needs ``statistics`` of the inputs, see :func:`input_statistics`."""
        return self.known is not None or any(part.scale is not None for part in self.estimate.values())

    def grid(self, feats: Mapping[str, Tensor | Sequence[Tensor]]) -> tuple[int, int] | None:
        """(h, w) of the cells whose statistics ``forward`` reads; None for the whole."""
        if not self.per_position:
            return None
        x = feats[self.modalities[0]]
        x = x if isinstance(x, Tensor) else x[-1]
        if x.ndim != 4:
            raise ValueError(f"neck.per_position=True weighs the cells of maps (B, C, H, W), got {tuple(x.shape)}")
        return tuple(x.shape[2:])

    @property
    def reads_gain(self) -> bool:
        """Whether :meth:`update_gain` is to be called in training."""
        return self.weigh is not None and self.weigh.gain is not None

    @property
    def reads_own_heads(self) -> list[str]:
        """Options for which every modality must have a head of its own."""
        asked = {"quality='energy'": self.reads_energies, "novelty=['disagreement']": self.reads_disagreement,
                 "law='expected_gain'": self.reads_gain}
        return [option for option, asks in asked.items() if asks]

    @property
    def reads_alone(self) -> bool:
        """Whether ``forward`` needs each sample's ``alpha``: the size of the prediction with one modality alone."""
        return self.per_sample and self.dynamic

    def dependency_due(self) -> bool:
        """Whether this training step is to update the dependency; counts the steps. Call once a step."""
        if self.dependency is None or not self.training:
            return False
        due = self._steps.read(self.step) % self.dependency_every == 0
        self._steps.add_one(self.step)
        return due

    def update_gain(
        self, correct: Mapping[str, Tensor], output: FusionOutput, available: Mapping[str, Tensor], classes: int
    ) -> None:
        """What each modality's own head knew of the batch that gave ``output``; for ``law='expected_gain'``.

        Shapes: see :meth:`FusionWeights.update_gain`.
        """
        level = {m: output.per_sample[f"fusion.level.{m}"] for m in self.modalities}
        self.weigh.update_gain(correct, level, available, classes)

    def forward(
        self,
        feats: Mapping[str, Tensor | Sequence[Tensor]],
        available: Mapping[str, Tensor] | None = None,
        levels: Mapping[str, Tensor] | None = None,
        alpha: Mapping[str, Tensor] | None = None,
        energies: Mapping[str, Tensor] | None = None,
        disagreements: Mapping[str, Tensor] | None = None,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> FusionOutput:
        check_names(self.modalities, feats, "the batch")
        for what, known in dict(available=available, levels=levels, alpha=alpha, energies=energies,
                                disagreements=disagreements, statistics=statistics).items():
            if known is not None:
                check_names(self.modalities, known, what)
        if self.training:
            refuse_recomputation("UDML")
        if self.reads_statistics and statistics is None:
            raise ValueError(
                "UDML reads the inputs' statistics: give forward statistics={m: input_statistics(x)}, or set "
                "reads=['variance'] and novelty=None")
        single = all(isinstance(feats[m], Tensor) for m in self.modalities)
        pyramid = self._pyramid(feats)
        if available is None:
            B = pyramid[self.modalities[0]][0].shape[0]
            available = {m: torch.ones(B, dtype=torch.bool) for m in self.modalities}
        given = self.modality_dropout(available)  # where it came from: the inner fusion looks at it once more
        finest = {m: pyramid[m][0] for m in self.modalities}
        available, left = on_device_of(finest, available), on_device_of(finest, given)
        # before any arithmetic: NaN x 0 is NaN
        pyramid = {
            m: tuple(where_there(expand_mask(available[m], x), x, 0.0) for x in pyramid[m]) for m in self.modalities}
        z, mus, log_variances = self._embed(pyramid, available)
        cells = Cells(self.grid(feats))
        here, told = cells.of(available), cells.of(levels)
        statistics = cells.statistics({m: statistics[m] for m in self.modalities}) if self.reads_statistics else None
        read = cells.pooled(log_variances) if "variance" in self.reads else log_variances
        s = self._quality(read, told, energies, here, statistics)
        novelty, worth = self._novelty(pyramid, mus, here, told, disagreements, statistics, single)
        level = self._read_by_weights(s, worth)
        alpha = self._alpha(alpha)
        weights = self._weights(level, alpha, cells.of(left))
        output = self._fused(z, weights, given, single, cells)
        losses = {**output.losses, **self._noise_loss(s, here, told),
                  **self._kl_loss(mus, log_variances, available, levels)}
        found = {"weight": weights, "noise": s, "level": level, "novelty": novelty, "dependency": alpha}
        found = {what: cells.means(values) for what, values in found.items()}
        per_sample = {
            f"fusion.{what}.{m}": values[m].expand(available[m].shape[0])
            for what, values in found.items() if values is not None for m in self.modalities}
        diagnostics = {**output.diagnostics, **self._diagnostics(found, available, left)}
        return FusionOutput(output.fused, losses, diagnostics, {**output.per_sample, **per_sample})

    def _pyramid(self, feats: Mapping[str, Tensor | Sequence[Tensor]]) -> dict[str, tuple[Tensor, ...]]:
        pyramid = {m: as_levels(m, feats[m], len(widths)) for m, widths in self.widths.items()}
        for m, widths in self.widths.items():
            for x, C in zip(pyramid[m], widths):
                check_width(m, x, C)
        return pyramid

    def _fused(self, feats: Mapping[str, Sequence[Tensor]], weights: Mapping[str, Tensor],
               available: Mapping[str, Tensor], single: bool, cells: Cells) -> FusionOutput:
        """The inner fusion of features that count for what their modality weighs."""
        counts = {
            m: tuple(self._factor(cells.over_positions(weights[m], x)) for x in feats[m]) for m in self.modalities}

        def handed(levels: Mapping[str, Sequence[Tensor]]) -> dict:
            return {m: x[0] if single else tuple(x) for m, x in levels.items()}

        if self.hands_weights:
            return self.inner(handed(feats), available, handed(counts))
        weighted = {m: [x * factor for x, factor in zip(feats[m], counts[m])] for m in self.modalities}
        return self.inner(handed(weighted), available)

    def _embed(
        self, pyramid: Mapping[str, Sequence[Tensor]], available: Mapping[str, Tensor]
    ) -> tuple[dict, dict, dict]:
        """(z, mu, log sigma^2) by modality; without an embedding the features and their own spread."""
        if not self.embed:
            spread = {m: tuple(_spread(x) for x in pyramid[m]) for m in self.modalities}
            return dict(pyramid), dict(pyramid), spread
        z, mus, log_variances = {}, {}, {}
        for m in self.modalities:
            pairs = [embed(x, available[m]) for embed, x in zip(self.embed[m], pyramid[m])]
            mus[m], log_variances[m] = (tuple(part) for part in zip(*pairs))
            z[m] = tuple(embed.sample(mu, log_v) for embed, (mu, log_v) in zip(self.embed[m], pairs))
        return z, mus, log_variances

    def _quality(self, log_variances, levels, energies, available, statistics) -> dict[str, Tensor] | None:
        if self.quality is None:
            return None
        if self.quality == "energy":
            if energies is None:
                raise ValueError("quality='energy' needs the energies of each modality's own head")
            return {m: energies[m].float() for m in self.modalities}
        if self.quality == "equal" or self.quality == "given" and levels is None and not self.dynamic:
            # given: noise has not begun, and nothing is weighted yet
            B, device = log_variances[self.modalities[0]][0].shape[0], self.progress.device
            return {m: torch.full((B,), self.clean_level, device=device) for m in self.modalities}
        if self.quality == "given":
            if levels is None:
                raise ValueError("quality='given' needs the true noise levels; inject noise in the preprocessor")
            return {m: levels[m].float().clamp(min=self.clean_level) for m in self.modalities}
        if self.quality == "variance":
            return {
                m: torch.stack([(0.5 * x.float()).exp().flatten(1).mean(1) for x in log_variances[m]]).mean(0)
                for m in self.modalities}
        s = {}
        for m in self.modalities:
            told = () if statistics is None else ((), statistics[m])
            s[m] = self.estimate[m](log_variances[m] if "variance" in self.reads else (), *told)
            if self.training and levels is not None and self.estimate[m].scale is not None:
                self.estimate[m].learn(statistics[m], available[m])
        return s

    def _novelty(
        self, pyramid, mus, available, levels, disagreements, statistics, single
    ) -> tuple[dict[str, Tensor] | None, dict[str, Tensor] | None]:
        """({m: novelty in standard deviations}, {m: the level that it is worth}), of several signals the largest."""
        known = levels if self.training else None
        found = []
        if self.known is not None:
            found.append(self.known(statistics, available, known))
        if self.novelty is not None:
            novelty = self._of_features(pyramid, mus, available, known, disagreements, single)
            found.append((novelty, self.novelty.level(novelty)))
        if not found:
            return None, None
        return tuple({m: torch.stack([part[m] for part in parts]).amax(0) for m in self.modalities}
                     for parts in zip(*found))

    def _read_by_weights(self, s, worth) -> dict[str, Tensor] | None:
        """{m: (B,)}, detached: the task's loss must not teach the estimator what is convenient. As released."""
        if s is None:
            return None
        level = {m: x.detach() for m, x in s.items()}
        if self.linear:
            level = {m: x.clamp(min=self.clean_level) for m, x in level.items()}
        return level if worth is None else {m: torch.maximum(level[m], worth[m]) for m in self.modalities}

    def _of_features(self, pyramid, mus, available, levels, disagreements, single) -> dict[str, Tensor]:
        values = {}
        if self.reads_disagreement:
            if disagreements is None:
                raise ValueError("novelty=['disagreement'] needs disagreements between the modalities' own heads")
            values["disagreement"] = disagreements
        if "reconstruction" in self.novelty.signals:
            values["reconstruction"] = self._residuals(mus, available, single)
        return self.novelty(pyramid, available, values, levels)

    def _residuals(self, mus, available, single: bool) -> dict[str, Tensor]:
        """{m: (B,)}: how badly the inner fusion reconstructs m at equal weights, a mean over levels."""
        still = {m: [x.detach() for x in mus[m]] for m in self.modalities}
        equal = {m: torch.ones_like(available[m]) for m in self.modalities}
        with evaluating(self.inner), fused_only(self.inner, only=False):
            found = self._fused(still, equal, available, single, Cells()).per_sample
        residuals = {}
        for m in self.modalities:
            name = f"fusion.recon_distance.{m}"
            terms = [x for key, x in found.items() if key == name or key.startswith(name + ".")]
            if not terms:
                raise ValueError(
                    "novelty=['reconstruction'] needs an inner fusion that reconstructs: SCFAE with recon_weight > 0")
            residuals[m] = torch.stack(terms).mean(0)
        return residuals

    def _alpha(self, alpha: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
        """{m: () or (B,)}: each sample's own, else the running one; None where neither counts."""
        if not self.per_sample:
            return None if self.dependency is None else self.dependency()
        if alpha is None and self.reads_alone:
            raise ValueError("dependency='per_sample' needs alpha, the size of each sample's prediction with m alone")
        return None if alpha is None else {m: alpha[m].detach() for m in self.modalities}

    def _weights(self, s: Mapping[str, Tensor] | None, alpha: Mapping[str, Tensor] | None,
                 available: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.dynamic:
            weights = {m: available[m].float() for m in self.modalities}
            if self.weigh is not None and self.weigh.curves:  # their parameters need a gradient on all ranks
                idle = sum(p.sum() for p in self.weigh.curves.parameters()) * 0
                weights = {m: w + idle for m, w in weights.items()}
            return weights
        if alpha is None:
            alpha = dict.fromkeys(self.modalities, torch.ones((), device=self.progress.device))
        return self.weigh(s, alpha, available)

    def _factor(self, weight: Tensor) -> Tensor:
        """What multiplies the features."""
        return 1 + weight if self.form == "residual" else weight

    def _noise_loss(self, s, available, levels) -> dict[str, Tensor]:
        if not self.training or not self.estimate:
            return {}
        if levels is None:  # the estimator's parameters still need a gradient on all ranks
            return {"fusion.loss_noise": sum(x.sum() for x in s.values()) * 0}
        # a softplus must stay above 0, and is released with clean samples at level 1, like the least noise
        least = -torch.inf if self.linear else self.clean_level
        errors = [noise_loss(s[m], levels[m].float().clamp(min=least), available[m]) for m in self.modalities]
        return {"fusion.loss_noise": self.noise_weight * torch.stack(errors).mean()}

    def _kl_loss(self, mus, log_variances, available, levels) -> dict[str, Tensor]:
        if not self.training or not self.kl_weight or not self.embed or levels is None:
            return {}
        terms = []
        for m in self.modalities:
            t = levels[m].float().clamp(min=self.clean_level)
            here, number = available[m], available[m].sum().clamp(min=1)
            for mu, log_v in zip(mus[m], log_variances[m]):
                terms.append(torch.where(here, kl_to_noise(mu, log_v, t), 0.0).sum() / number)
        return {"fusion.loss_kl": self.kl_weight * torch.stack(terms).mean()}

    def _diagnostics(self, found: Mapping[str, Mapping[str, Tensor] | None], available, left) -> dict[str, Tensor]:
        """Means over the samples that have the modality (weights: still have it); one number for all stays as it is."""
        means = {}
        for what in ("weight", "noise", "novelty", "dependency"):
            for m in self.modalities if found[what] is not None else ():
                value, here = found[what][m], (left if what == "weight" else available)[m]
                mean = value.clone() if value.ndim == 0 else torch.where(
                    here, value, 0.0).sum() / here.sum().clamp(min=1)
                means[f"fusion.{what}.{m}"] = mean
        return means


def _spread(x: Tensor) -> Tensor:
    """(B, C) log variance of each channel over positions; of vectors, of each value about its vector's mean."""
    if x.ndim == 2:
        return (x - x.mean(1, keepdim=True)).square().clamp(min=1e-6).log()
    channels = x if x.ndim == 3 else x.movedim(1, -1)
    return channels.flatten(1, -2).var(1, unbiased=False).clamp(min=1e-6).log()
