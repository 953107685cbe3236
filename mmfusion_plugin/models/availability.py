"""Which modalities a sample has: from the pipeline's metainfo to the neck's masks, alike in both tasks."""
from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmfusion_plugin.fusion import FusionOutput

__all__ = ["availability", "check_neck", "check_output", "check_test_missing", "remaining"]


def availability(modalities: Sequence[str], metas: Sequence[Mapping], device: torch.device | str) -> dict[str, Tensor]:
    """{m: (B,) bool} from the samples' ``available`` metainfo; what is not recorded is there."""
    return {
        m: torch.tensor([bool(meta.get("available", {}).get(m, True)) for meta in metas], device=device)
        for m in modalities
    }


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


def check_output(neck: nn.Module, output: object) -> FusionOutput:
    """``output``. Raises ValueError unless the neck gave a FusionOutput."""
    if not isinstance(output, FusionOutput):
        raise ValueError(
            f"model.neck {type(neck).__name__} returns {type(output).__name__}; "
            "use one of the fusion necks (SCFAE, ConcatFusion, ...)"
        )
    return output
