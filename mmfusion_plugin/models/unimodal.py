"""What a model says of one modality at a time, for necks that weigh by it. Never a gradient, never a statistic."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmfusion_plugin.fusion import FusionOutput
from mmfusion_plugin.fusion.contract import on_device_of
from mmfusion_plugin.fusion.input_statistics import NUM_STATISTICS
from mmfusion_plugin.fusion.modes import evaluating, fused_only
from mmfusion_plugin.fusion.novelty import disagreement
from mmfusion_plugin.fusion.weighting import correct_probability

__all__ = [
    "Heads", "check_own_heads", "disagreements", "energies", "evaluating", "predictions_alone", "update_dependency",
    "update_gain",
]

Levels = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Heads:
    """A task's heads as functions.

    Args:
        fused: fused features -> logits (B, K) or (B, K, H, W).
        own: by modality, its encoder's levels -> logits of that modality's own head.
        modules: what they run, to be put into evaluation mode.
    """

    fused: Callable[[Levels], Tensor]
    own: Mapping[str, Callable[[Levels], Tensor]] = field(default_factory=dict)
    modules: Sequence[nn.Module] = ()


def predictions_alone(neck: nn.Module, feats: Mapping[str, Levels], heads: Heads) -> dict[str, Tensor]:
    """{m: logits} with every modality but m marked unavailable, from the encoders' features as they are.

    For samples that lack m, the rows say nothing: mask them.
    """
    logits = {}
    with evaluating(neck, *heads.modules), fused_only(neck):
        for m in neck.modalities:
            first = feats[m] if isinstance(feats[m], Tensor) else feats[m][0]
            B, device = len(first), first.device
            alone = {k: torch.full((B,), k == m) for k in neck.modalities}
            # one modality's weight is 1, whatever the noise, the quality and the dependency are
            known = {k: torch.ones(B, device=device) for k in neck.modalities}
            grid = neck.grid(feats) or ()
            blank = torch.zeros(B, NUM_STATISTICS, *grid, device=device)
            told = dict(levels=known, alpha=known, energies=known, disagreements=known,
                        statistics=dict.fromkeys(neck.modalities, blank))
            output: FusionOutput = neck(feats, alone, **told)
            logits[m] = heads.fused(output.fused)
    return logits


def update_dependency(
    neck: nn.Module, feats: Mapping[str, Levels], available: Mapping[str, Tensor], heads: Heads
) -> None:
    """Take this batch into the neck's dependency if it is due. Call once in each training step, on every rank."""
    due = getattr(neck, "dependency_due", None)
    if due is not None and due():
        neck.dependency.update(predictions_alone(neck, feats, heads), available)


def _own_logits(heads: Heads, m: str, feats: Mapping[str, Levels]) -> Tensor:
    """Logits (B, K, ...) of m's own head; one logit z says what 0 and z say of two classes."""
    logits = heads.own[m](feats[m])
    return logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], 1)


def energies(neck: nn.Module, feats: Mapping[str, Levels], heads: Heads) -> dict[str, Tensor]:
    """{m: (B,)}: -logsumexp over classes of m's own head, a mean over positions.

    Lower means surer. Source: energy score (Liu et al., NeurIPS 2020), as weight in QMF (Zhang et al., ICML 2023).
    """
    with evaluating(*heads.modules):
        confidence = {m: _own_logits(heads, m, feats).float().logsumexp(1) for m in neck.modalities}
    return {m: -x.flatten(1).mean(1) if x.ndim > 1 else -x for m, x in confidence.items()}


def disagreements(
    neck: nn.Module, feats: Mapping[str, Levels], available: Mapping[str, Tensor] | None, heads: Heads
) -> dict[str, Tensor]:
    """{m: (B,)}: how far m's own head is from the others' mean, see :func:`~mmfusion_plugin.fusion.novelty`."""
    with evaluating(*heads.modules):
        logits = {m: _own_logits(heads, m, feats) for m in neck.modalities}
    if available is None:
        available = {m: torch.ones(len(x), dtype=torch.bool) for m, x in logits.items()}
    return disagreement(logits, on_device_of(logits, available))


def update_gain(
    neck: nn.Module,
    feats: Mapping[str, Levels],
    available: Mapping[str, Tensor],
    levels: Mapping[str, Tensor] | None,
    output: FusionOutput,
    heads: Heads,
    labels: Tensor,
) -> None:
    """Tell a neck that weighs by expected gain how right each modality's own head was; in each training step.

    Nothing is told before noise levels are known: what the estimator says until then is no level.
    labels: (B,) or (B, H, W).
    """
    if levels is None or not getattr(neck, "reads_gain", False):
        return
    correct = {}
    with evaluating(*heads.modules):
        for m in neck.modalities:
            logits = _own_logits(heads, m, feats)
            correct[m] = correct_probability(logits, labels.to(logits.device))
    neck.update_gain(correct, output, on_device_of(correct, available), logits.shape[1])


def check_own_heads(neck: nn.Module, own: Sequence[str], key: str) -> None:
    """Raises ValueError if the neck reads own heads and a modality has none (``key`` in the config)."""
    asked = getattr(neck, "reads_own_heads", [])
    if asked and set(own) != set(neck.modalities):
        raise ValueError(
            f"model.neck.{asked[0]} reads the scores of every modality's own head; {key} names {sorted(own)}, "
            f"neck.modalities names {list(neck.modalities)}"
        )
