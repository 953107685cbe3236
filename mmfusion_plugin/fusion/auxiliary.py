"""SCFAE with another auxiliary loss in place of its reconstruction: what the paper compares it with. Plain torch.

The block is SCFAE's to the last layer; the losses read its shared and specific parts (Eq. 4). B usable samples, C and D
the widths of two parts; parts with positions are averaged over them first.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from .contract import FusionOutput, channel_axis
from .scfae import SCFAE

__all__ = ["ClubBound", "SCFAEAuxiliary", "contrastive_loss", "orthogonality_loss"]

FEWEST = 2  # samples: one has nothing to be told apart from
TINY = 1e-6


def contrastive_loss(x_BC: Tensor, y_BC: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE both ways: x_i should be more like y_i than like any other y_j, by cosine / temperature, in nats.

    Shapes: (B, C), (B, C) -> ().
    Source: van den Oord et al., arXiv:1807.03748; both ways as in CLIP (Radford et al., ICML 2021).
    """
    logits_BB = F.normalize(x_BC, dim=1) @ F.normalize(y_BC, dim=1).T / temperature
    target_B = torch.arange(x_BC.shape[0], device=x_BC.device)
    return (F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)) / 2


def orthogonality_loss(x_BC: Tensor, y_BD: Tensor) -> Tensor:
    """|X^T Y|_F^2 / B^2 of parts centred over the batch and scaled to unit length, between 0 and 1.

    MISA's difference loss; divided by B^2, it does not depend on the batch size.

    Shapes: (B, C), (B, D) -> ().
    Source: MISA, Hazarika et al., ACM MM 2020, difference loss.
    """
    X_BC, Y_BD = (F.normalize(z - z.mean(0), dim=1, eps=TINY) for z in (x_BC, y_BD))
    return (X_BC.T @ Y_BD).square().sum() / x_BC.shape[0] ** 2


class ClubBound(nn.Module):
    """Upper bound of the mutual information of two parts by a Gaussian q(y | x), in nats per channel of y.

    I(x; y) <= E log q(y_i | x_i) - E log q(y_j | x_i) while q is close to the true conditional, so two losses: the
    bound, which does not train q, and q's own negative log likelihood, which trains nothing else. Information is never
    negative: below 0 the difference shows that q has fallen behind, and counts as 0. Minimised further, encoders run
    away from q without end (six views, three seeds: accuracy 50 with everything there, chance with half of it).

    Shapes: x (B, C), y (B, D) -> (bound, fit), both ().
    Source: CLUB in its variational form, Cheng et al., ICML 2020.
    """

    def __init__(self, x_channels: int, y_channels: int) -> None:
        super().__init__()
        self.q = nn.Sequential(
            nn.Linear(x_channels, x_channels), nn.ReLU(), nn.Linear(x_channels, 2 * y_channels))

    def forward(self, x_BC: Tensor, y_BD: Tensor) -> tuple[Tensor, Tensor]:
        frozen = {name: p.detach() for name, p in self.q.named_parameters()}
        mean_BD, log_variance_BD = _halves(functional_call(self.q, frozen, (x_BC,)))
        together_B = _log_likelihood(y_BD, mean_BD, log_variance_BD)
        # the mean over j of a quadratic in y_j needs the first two moments of y alone
        first_D, second_D = y_BD.mean(0), y_BD.square().mean(0)
        apart_BD = second_D - 2 * mean_BD * first_D + mean_BD.square()
        apart_B = -(apart_BD * (-log_variance_BD).exp() + log_variance_BD + math.log(2 * math.pi)).mean(1) / 2
        fit = -_log_likelihood(y_BD.detach(), *_halves(self.q(x_BC.detach()))).mean()
        return (together_B - apart_B).mean().clamp(min=0), fit


def _halves(x_B2D: Tensor) -> tuple[Tensor, Tensor]:
    mean_BD, log_variance_BD = x_B2D.chunk(2, 1)
    return mean_BD, log_variance_BD.tanh() * 5  # variances of exp(-5) to exp(5): a likelihood that stays finite


def _log_likelihood(y_BD: Tensor, mean_BD: Tensor, log_variance_BD: Tensor) -> Tensor:
    squares_BD = (y_BD - mean_BD).square() * (-log_variance_BD).exp()
    return -(squares_BD + log_variance_BD + math.log(2 * math.pi)).mean(1) / 2


class SCFAEAuxiliary(SCFAE):
    """SCFAE's block with a contrastive, mutual-information or orthogonality loss instead of the reconstruction.

    For comparisons (SCFAE, Tables 6 to 8), not for use: the block computes its parts a second time for the loss.

    Args:
        auxiliary: ``contrastive``: shared parts of every two modalities agree (:func:`contrastive_loss`);
            ``mutual_information``: the shared part of each modality tells nothing of its specific part
            (:class:`ClubBound`, of normalised parts); ``orthogonality``: neither correlates with the other, nor do the
            specific parts of two modalities (:func:`orthogonality_loss`).
        auxiliary_weight: of the mean over pairs of parts.
        recon_weight: of the reconstruction beside it, 0 by default.
        options: see :class:`SCFAE`.

    Shapes: as :class:`SCFAE`.
    Losses: ``fusion.loss_<auxiliary>``; with ``mutual_information`` also ``fusion.loss_bound_fit``, which trains the
        bound's own networks alone. A pair counts samples in which both parts come from what is there: a shared part is
        its neighbour's. 0 where fewer than two are left.
    Raises: ValueError for any option outside its range.
    Source: Hazarika et al. 2020 (MISA) and Cheng et al. 2023 (VFD) as the paper's rows 2 and 3 of Table 6 name them.
    """

    pointwise = False  # the losses read means over positions

    def __init__(
        self,
        *args,
        auxiliary: str = "contrastive",
        auxiliary_weight: float = 1.0,
        recon_weight: float = 0.0,
        **options,
    ) -> None:
        super().__init__(*args, recon_weight=recon_weight, **options)
        if auxiliary not in AUXILIARY:
            raise ValueError(f"auxiliary must be one of {list(AUXILIARY)}, got {auxiliary!r}")
        if isinstance(auxiliary_weight, bool) or not (
                isinstance(auxiliary_weight, (int, float)) and 0 < auxiliary_weight < math.inf):
            raise ValueError(f"auxiliary_weight must be a number above 0, got {auxiliary_weight!r}")
        self.auxiliary = auxiliary
        self.auxiliary_weight = auxiliary_weight
        shared = {m: self.P_shared[m].out_features for m in self.modalities}
        specific = {m: self.P_specific[m].out_features for m in self.modalities}
        self.bounds = nn.ModuleDict(
            {m: ClubBound(shared[m], specific[m]) for m in self.modalities}
            if auxiliary == "mutual_information" else {})

    def fuse(
        self, feats: Mapping[str, Tensor], available: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None
    ) -> FusionOutput:
        output = super().fuse(feats, available, weights)
        if self.fused_only:
            return output
        parts = {
            m: {kind: _vectors(x) for kind, x in found.items()}
            for m, found in self.parts(feats, available, weights).items()}
        found = AUXILIARY[self.auxiliary](self, parts, available)
        losses = {f"fusion.loss_{self.auxiliary}": self.auxiliary_weight * found.pop("loss"),
                  **{f"fusion.loss_{name}": value for name, value in found.items()}}
        return FusionOutput(output.fused, {**output.losses, **losses}, output.diagnostics, output.per_sample)

    def _contrastive(self, parts: Mapping, available: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sources = {m: (available[self.neighbour[m]],) for m in self.modalities}
        terms = [
            _over_usable(contrastive_loss, parts[m]["shared"], parts[k]["shared"], *sources[m], *sources[k])
            for m, k in combinations(self.modalities, 2)]
        return {"loss": torch.stack(terms).mean()}

    def _orthogonality(self, parts: Mapping, available: Mapping[str, Tensor]) -> dict[str, Tensor]:
        terms = [
            _over_usable(orthogonality_loss, parts[m]["shared"], parts[m]["specific"],
                         available[m], available[self.neighbour[m]]) for m in self.modalities]
        terms += [
            _over_usable(orthogonality_loss, parts[m]["specific"], parts[k]["specific"], available[m], available[k])
            for m, k in combinations(self.modalities, 2)]
        return {"loss": torch.stack(terms).mean()}

    def _mutual_information(self, parts: Mapping, available: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pairs = []
        for m in self.modalities:
            bound = self.bounds[m]
            # information does not depend on scale, the bound does: growing parts must not lower it
            shared, specific = (F.layer_norm(x, x.shape[1:]) for x in (parts[m]["shared"], parts[m]["specific"]))
            pairs.append(_over_usable(
                lambda x, y, bound=bound: torch.stack(bound(x, y)), shared, specific,
                available[m], available[self.neighbour[m]]))
            # without a usable sample the bound's parameters still need a gradient: distributed training waits for it
            idle = sum((p * 0).sum() for p in bound.parameters())
            pairs[-1] = pairs[-1] + torch.stack([idle * 0, idle])
        loss, fit = torch.stack([pair.expand(2) for pair in pairs]).mean(0)
        return {"loss": loss, "bound_fit": fit}


AUXILIARY: dict[str, Callable] = {
    "contrastive": SCFAEAuxiliary._contrastive,
    "mutual_information": SCFAEAuxiliary._mutual_information,
    "orthogonality": SCFAEAuxiliary._orthogonality}


def _vectors(x: Tensor) -> Tensor:
    """(B, C) or with positions -> (B, C), in single precision at least."""
    axes = [axis for axis in range(1, x.ndim) if axis != channel_axis(x)]
    x = x.mean(axes) if axes else x
    return x if x.dtype == torch.float64 else x.float()


def _over_usable(loss: Callable, x_BC: Tensor, y_BD: Tensor, *masks_B: Tensor) -> Tensor:
    """``loss`` of the samples that all masks allow; 0, in the graph, for fewer than two."""
    usable_B = torch.stack(masks_B).all(0)
    if int(usable_B.sum()) < FEWEST:
        return (x_BC * 0).sum() + (y_BD * 0).sum()
    return loss(x_BC[usable_B], y_BD[usable_B])
