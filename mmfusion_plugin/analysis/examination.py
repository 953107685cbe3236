"""All that the paper bench asks of one trained model, so that tables that read the same trainings share them."""
from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmfusion_plugin.fusion import SCFAE

from . import conditions, embeddings, features, probing
from .evidence import as_share
from .training_logs import read_logs

__all__ = ["examine", "gradient_summary"]


def examine(runner: Any, folder: str | Path) -> dict[str, Any]:
    """Ask a model that ``runner`` has just trained, logging to ``folder``.

    Returns: ``probes`` {m: accuracy of a linear probe on m's frozen encoder, test set} (Table 6); ``gradients``, see
        :func:`gradient_summary` (Table 7; {} without GradientAnalysisHook); ``branches`` {branch: {set of modalities:
        metric}} (Table 14; {} for a neck without SCFAE; beyond three modalities the complete set alone). Shares of 1.
    """
    cfg, model = runner.cfg, runner.model
    train = features.without_augmentation(cfg)
    sets = [conditions.build_dataset(loader) for loader in (train, cfg.test_dataloader)]
    alone = getattr(model.neck, "modality", None)
    classes = (getattr(model, "decode_head", None) or model.cls_head).num_classes
    probes = probing.probe_encoders(
        model, train, sets[0], cfg.test_dataloader, sets[1], classes, None if alone is None else [alone])
    return dict(
        probes={m: found["accuracy"] if found["mIoU"] is None else found["mIoU"] for m, found in probes.items()},
        gradients=gradient_summary(read_logs(folder)),
        branches=_branches(cfg, model))


def _branches(cfg: Any, model: Any) -> dict[str, dict[str, float]]:
    levels = getattr(model.neck, "levels", ())
    if not any(isinstance(level, SCFAE) for level in levels):
        return {}
    asked = embeddings.branch_conditions(list(model.neck.modalities))
    if len(model.neck.modalities) > 3:
        asked = [condition for condition in asked if not condition.missing]
    outcomes = conditions.evaluate_conditions(model, cfg.test_dataloader, cfg.test_evaluator, asked)
    found = embeddings.summarise_branches(outcomes, asked)
    branches: dict[str, dict[str, float]] = {}
    for row in found["rows"]:
        value = as_share(found["metric"], row["metrics"][found["metric"]])
        branches.setdefault(row["branch"], {})[row["modalities"]] = value
    return branches


def gradient_summary(curves: Mapping[str, list[tuple[int, float]]]) -> dict[str, dict[str, float]]:
    """Means over the analyses of a training at the encoders' outputs, from what GradientAnalysisHook logged.

    Returns: ``norm`` {m: mean}, ``cosine`` {"m/term": mean}, ``ratio`` {"m/term": median, as the first steps' quotients
        are huge: the task's gradient is still small}, ``negative`` {"m/term": share of negative cosines}, ``analyses``
        {m: how many}.
    """
    found: dict[str, dict[str, float]] = {}
    for name, points in curves.items():
        what, _, rest = name.removeprefix("gradient/").partition("_output/")
        if not name.startswith("gradient/") or not rest or what == "negative":
            continue
        values = [value for _, value in points]
        found.setdefault(what, {})[rest] = (statistics.median if what == "ratio" else statistics.fmean)(values)
        if what == "cosine":
            found.setdefault("negative", {})[rest] = statistics.fmean(value < 0 for value in values)
        if what == "norm":
            found.setdefault("analyses", {})[rest] = len(values)
    return found
