"""What is known of a sample's modalities, from its metainfo to the neck, alike in both tasks.

Which of them it has (``available``), and how much noise was injected into each (``noise_level``).
"""
from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmfusion_plugin.fusion import FusionOutput
from mmfusion_plugin.fusion.dependency import response
from mmfusion_plugin.fusion.input_statistics import input_statistics

from .unimodal import Heads, disagreements, energies, predictions_alone

__all__ = [
    "availability", "check_neck", "check_test_missing", "fuse", "noise_levels", "remaining", "statistics_of",
]


def availability(modalities: Sequence[str], metas: Sequence[Mapping]) -> dict[str, Tensor]:
    """{m: (B,) bool} from the samples' ``available`` metainfo; what is not recorded is there.

    On the processor: what asks whether anything is left then waits for no accelerator. Blocks move it themselves.
    """
    return {
        m: torch.tensor([bool(meta.get("available", {}).get(m, True)) for meta in metas]) for m in modalities
    }


def noise_levels(
    modalities: Sequence[str], metas: Sequence[Mapping], device: torch.device | str
) -> dict[str, Tensor] | None:
    """{m: (B,)} from the samples' ``noise_level`` metainfo, 0 where a sample says nothing; None if none does."""
    if not any("noise_level" in meta for meta in metas):
        return None
    levels = {m: torch.tensor([float(meta.get("noise_level", {}).get(m, 0.0)) for meta in metas]) for m in modalities}
    return {m: x.to(device, non_blocking=True) for m, x in levels.items()}


def remaining(modalities: Sequence[str], recorded: Mapping[str, bool], hidden: Sequence[str], name: str) -> dict:
    """{m: bool} of one sample: what its files give, less what evaluation hides.

    Raises: ValueError naming the sample if nothing is left.
    """
    available = {m: bool(recorded.get(m, True)) and m not in hidden for m in modalities}
    if not any(available.values()):
        there = [m for m in modalities if recorded.get(m, True)]
        raise ValueError(
            f"sample {name} has no modality left: its files give {there}, and data_preprocessor.test_missing hides "
            f"{list(hidden)}"
        )
    return available


def check_test_missing(modalities: Sequence[str], test_missing: Sequence[str]) -> None:
    """Raises ValueError unless ``data_preprocessor.test_missing`` lists some, but not all, of ``modalities``."""
    if isinstance(test_missing, str):
        raise ValueError(
            f"data_preprocessor.test_missing must be a list such as [{test_missing!r}], got {test_missing!r}"
        )
    unknown = sorted(set(test_missing) - set(modalities))
    if unknown:
        raise ValueError(f"data_preprocessor.test_missing names {unknown}, modalities names {list(modalities)}")
    if set(test_missing) == set(modalities):
        raise ValueError(
            f"data_preprocessor.test_missing names every modality ({list(modalities)}); leave at least one"
        )


def check_neck(neck: nn.Module | None) -> None:
    """Raises ValueError unless ``neck`` takes features by modality and their availability."""
    try:
        inspect.signature(neck.forward).bind({}, None)
    except (AttributeError, TypeError):
        raise ValueError(
            f"model.neck is {None if neck is None else type(neck).__name__}, which takes no features by modality; "
            "use one of the fusion necks (SCFAE, ConcatFusion, ...)"
        ) from None


def statistics_of(neck: nn.Module, streams: Mapping[str, Tensor], feats: Mapping) -> dict[str, Tensor] | None:
    """{m: (B, 29)} of the encoders' normalised inputs, or (B, 29, h, w), for a neck that reads them; else None.

    ``feats``: what the encoders give, whose coarsest grid is that of a neck that weighs positions.
    """
    if not getattr(neck, "reads_statistics", False):
        return None
    return {m: input_statistics(x, neck.grid(feats)) for m, x in streams.items()}


def fuse(
    neck: nn.Module, feats: Mapping, available: Mapping | None, levels: Mapping | None, heads: Heads,
    statistics: Mapping[str, Tensor] | None = None,
) -> FusionOutput:
    """The neck's output; ``levels``, ``statistics`` and what ``heads`` say of a modality go to necks that read them.

    Raises: ValueError unless the neck gives a FusionOutput.
    """
    known = {"levels": levels} if "levels" in inspect.signature(neck.forward).parameters else {}
    if getattr(neck, "reads_statistics", False):
        known["statistics"] = statistics
    if getattr(neck, "reads_energies", False):
        known["energies"] = energies(neck, feats, heads)
    if getattr(neck, "reads_disagreement", False):
        known["disagreements"] = disagreements(neck, feats, available, heads)
    if getattr(neck, "reads_alone", False):
        known["alpha"] = {m: response(x) for m, x in predictions_alone(neck, feats, heads).items()}
    output = neck(feats, available, **known)
    if not isinstance(output, FusionOutput):
        raise ValueError(
            f"model.neck {type(neck).__name__} returns {type(output).__name__}; "
            "use one of the fusion necks (SCFAE, ConcatFusion, ...)"
        )
    return output
