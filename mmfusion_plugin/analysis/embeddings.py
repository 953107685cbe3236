"""SCFAE's shared and specific parts: where samples lie (t-SNE), how far groups are apart, what each branch is worth."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmfusion_plugin.fusion import SCFAE
from mmfusion_plugin.fusion.contract import channel_axis

from .conditions import Condition, in_order
from .evidence import COLOURS, as_share, choose_metric, figure_panels, markdown_table, save_figure
from .features import caught, label_of, pick_positions
from .missing import left_out, subset_conditions

__all__ = [
    "SCORES", "Parts", "branch_conditions", "branches_markdown", "collect_parts", "embeddings_markdown", "linear_cka",
    "plot_embeddings", "scfae_block", "separability", "summarise_branches", "tsne",
]

KINDS = ("shared", "specific")
LEGEND = 15  # classes that a legend still names
MARKERS = dict(shared="o", specific="s")
SCORES = (
    "Silhouette (Rousseeuw 1987) in the parts' own space, Euclidean: (b - a) / max(a, b) averaged over samples, a the "
    "mean distance to the sample's own group, b to the nearest other group; 1 apart, 0 mixed, below 0 in the wrong "
    "group. Linear CKA (Kornblith et al., ICML 2019) between two parts of the same samples: 1 equal up to rotation and "
    "scale, 0 unrelated; it takes parts of different widths. "
    "The shared part of m is what m receives from the next modality of the ring (Eq. 4).")
Parts = dict[tuple[str, str], Tensor]


def scfae_block(model: nn.Module, level: int = -1) -> SCFAE:
    """The SCFAE block of one level of the neck (UDML's inner fusion included).

    Raises: ValueError if there is none.
    """
    neck = getattr(model, "neck", None)
    levels = list(getattr(neck, "levels", ()))
    if levels and not -len(levels) <= level < len(levels):
        raise ValueError(f"level {level}: the neck has {len(levels)}")
    if not levels or not isinstance(levels[level], SCFAE):
        blocks = f" of {type(levels[level]).__name__} blocks" if levels else ""
        raise ValueError(f"shared and specific parts are SCFAE's; model.neck is {type(neck).__name__}{blocks}")
    return levels[level]


# N samples or positions, w width of a part
def collect_parts(
    model: nn.Module, loader: Mapping[str, Any], dataset: Dataset, *, level: int = -1, positions: int = 10,
    seed: int = 0, report: Callable[[int, int], None] | None = None
) -> tuple[Parts, Tensor]:
    """({(modality, ``shared`` or ``specific``): (N, w)}, (N,) labels) in the order of the data.

    A clip is one sample (the mean over views and positions); of a picture, up to ``positions`` labelled places of the
    level's grid are taken, drawn from (seed, place in the data). Samples that lack a modality are left out.

    Raises: ValueError for a neck without SCFAE, or if no sample is complete.
    """
    block = scfae_block(model, level)
    found: dict[tuple[str, str], list[Tensor]] = {(m, k): [] for m in block.modalities for k in KINDS}
    labels, done = [], 0
    model.eval()
    for batch in in_order(loader, dataset):
        data = model.data_preprocessor(batch, False)
        samples = data["data_samples"]
        with caught(block) as calls, torch.no_grad():
            model.fusion_output(data["inputs"], samples)
            parts = block.parts(*calls[-1])
        for b, sample in enumerate(samples):
            if not all(sample.metainfo.get("available", {}).get(m, True) for m in block.modalities):
                continue
            label, places = label_of(sample), None
            for m, k in found:
                x = parts[m][k]
                views = len(x) // len(samples)
                x = x[b * views : (b + 1) * views].cpu().float()
                if label.ndim == 1:
                    found[m, k].append(x.mean([a for a in range(x.ndim) if a != channel_axis(x)])[None])
                    continue
                if places is None:
                    places, chosen = pick_positions(label, x.shape[-2:], positions, done + b, seed)
                found[m, k].append(x[0].flatten(1)[:, places].T)
            labels.append(label if label.ndim == 1 else chosen)
        done += len(samples)
        if report is not None:
            report(done, len(dataset))
    if not labels:
        raise ValueError("no sample has every modality")
    return {name: torch.cat(x) for name, x in found.items()}, torch.cat(labels).long()


def separability(parts: Parts, labels: Tensor) -> dict[str, Any]:
    """How far groups are apart, see ``SCORES``.

    Returns: ``shared_by_modality``: silhouette of modalities among shared parts (near 0: pulled together);
        ``parts``: of {shared of all, specific of each modality}, None where widths differ; ``by_class`` {"m shared":
        silhouette of classes}; ``cka`` {"m shared, n specific": value} for every pair.
    Raises: ValueError without scikit-learn, or for fewer than two classes.
    """
    silhouette = _sklearn("metrics").silhouette_score
    if len(labels.unique()) < 2:
        raise ValueError("the samples are of one class; separability needs two or more")
    modalities = list(dict.fromkeys(m for m, _ in parts))
    shared = [parts[m, "shared"] for m in modalities]
    groups = torch.arange(len(modalities)).repeat_interleave(len(labels))
    by_part = None
    if len({x.shape[1] for x in parts.values()}) == 1:
        every = torch.cat([*shared, *(parts[m, "specific"] for m in modalities)])
        by_part = silhouette(every.numpy(), torch.cat([torch.zeros(len(groups)), 1 + groups]).numpy())
    return dict(
        shared_by_modality=float(silhouette(torch.cat(shared).numpy(), groups.numpy())),
        parts=None if by_part is None else float(by_part),
        by_class={f"{m} {k}": float(silhouette(x.numpy(), labels.numpy())) for (m, k), x in parts.items()},
        cka={f"{' '.join(a)}, {' '.join(b)}": linear_cka(parts[a], parts[b]) for a, b in combinations(parts, 2)})


def linear_cka(x_NC: Tensor, y_ND: Tensor) -> float:
    """Linear centred kernel alignment; NaN where either is constant."""
    x, y = (z.double() - z.double().mean(0) for z in (x_NC, y_ND))
    size = (x.T @ x).norm() * (y.T @ y).norm()
    return float((x.T @ y).square().sum() / size) if size > 0 else math.nan


def tsne(parts: Parts, seed: int = 0, perplexity: float = 30.0) -> dict[str, Any]:
    """t-SNE (scikit-learn): of all parts together where they are equally wide, else of the shared ones alone.

    Returns: dict(points=[[x, y]], names=[part of each point]), names as ``m shared``.
    Raises: ValueError without scikit-learn or for fewer than four points.
    """
    together = len({x.shape[1] for x in parts.values()}) == 1
    chosen = {name: x for name, x in parts.items() if together or name[1] == "shared"}
    points = torch.cat(list(chosen.values()))
    if len(points) < 4:
        raise ValueError(f"t-SNE of {len(points)} points says nothing; take more samples")
    perplexity = min(perplexity, (len(points) - 1) / 3)
    model = _sklearn("manifold").TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    places = model.fit_transform(points.numpy())
    names = [" ".join(name) for name, x in chosen.items() for _ in range(len(x))]
    return dict(points=[[round(float(v), 3) for v in p] for p in places], names=names, perplexity=perplexity)


def _sklearn(module: str) -> Any:
    if find_spec("sklearn") is None:
        raise ValueError("t-SNE and silhouettes need scikit-learn: pip install scikit-learn, or mmfusion_plugin[plots]")
    import importlib

    return importlib.import_module(f"sklearn.{module}")


def plot_embeddings(record: Mapping[str, Any], out: str | Path) -> Path:
    """Left: which part a point is; then for each kind the same points by class, a number at each class's median."""
    from matplotlib import colormaps

    places, names = torch.tensor(record["tsne"]["points"]), record["tsne"]["names"]
    parts = list(dict.fromkeys(names))
    modalities = list(dict.fromkeys(name.rsplit(" ", 1)[0] for name in parts))
    labels = torch.tensor(record["labels"]).repeat(len(parts))
    kinds = [k for k in KINDS if any(name.endswith(k) for name in parts)]
    figure, axes = figure_panels(1 + len(kinds), width=4.6, height=4.4)
    for name in parts:
        m, k = name.rsplit(" ", 1)
        here = torch.tensor([n == name for n in names])
        axes[0].scatter(*places[here].T, s=9, marker=MARKERS[k], alpha=0.6, linewidths=0, label=name,
                        color=COLOURS[(modalities.index(m) + (0 if k == "shared" else 3)) % len(COLOURS)])
    axes[0].set_title("part")
    axes[0].legend(fontsize=8, markerscale=2, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncol=2, frameon=False)
    classes = sorted(set(labels.tolist()))
    # without cividis' upper end: pale yellow is lost on white
    shade = {c: colormaps["cividis"](0.85 * i / max(1, len(classes) - 1)) for i, c in enumerate(classes)}
    near = 0.05 * float((places.max(0).values - places.min(0).values).max())
    for axis, k in zip(axes[1:], kinds):
        here = torch.tensor([n.endswith(k) for n in names])
        axis.scatter(*places[here].T, s=9, c=[shade[c] for c in labels[here].tolist()], alpha=0.7, linewidths=0)
        spots: list[tuple[float, float, list[str]]] = []
        for name in parts:
            if not name.endswith(k):
                continue
            for c in classes:
                members = here & (labels == c) & torch.tensor([n == name for n in names])
                if members.any():
                    _add_spot(spots, *places[members].median(0).values.tolist(), str(c), near)
        for x, y, texts in spots:
            axis.text(x, y, ", ".join(texts), fontsize=8, ha="center", va="center", bbox=dict(
                boxstyle="round,pad=0.15", facecolor="white", edgecolor="none", alpha=0.8))
        axis.set(title=f"{k} parts by class (number at the median)", xlim=axes[0].get_xlim(), ylim=axes[0].get_ylim())
    if len(classes) <= LEGEND:
        named = record.get("classes") or []
        for c in classes:
            axes[1].scatter([], [], s=18, color=shade[c], label=f"{c} {named[c]}" if c < len(named) else str(c))
        axes[1].legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncol=5, frameon=False)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    return save_figure(figure, out)


def _add_spot(spots: list[tuple[float, float, list[str]]], x: float, y: float, text: str, near: float) -> None:
    """Join ``text`` to a spot that it would cover, or open a new one."""
    for there_x, there_y, texts in spots:
        if abs(x - there_x) < near * (1 + len(texts)) / 2 and abs(y - there_y) < near:
            texts.append(text)
            return
    spots.append((x, y, [text]))


def embeddings_markdown(record: Mapping[str, Any]) -> str:
    """Scores, what they mean and what made them."""
    found = record["separability"]
    rows = [["modality, among shared parts", f"{found['shared_by_modality']:.3f}"],
            ["shared of all and specific of each",
             "widths differ" if found["parts"] is None else f"{found['parts']:.3f}"],
            *([f"class, {name}", f"{value:.3f}"] for name, value in found["by_class"].items())]
    cka = [[pair, f"{value:.3f}"] for pair, value in found["cka"].items()]
    return (
        f"Parts of {len(record['labels'])} samples or positions (level {record['level']} of the neck), seed "
        f"{record['plot_seed']}, t-SNE of perplexity {record['tsne']['perplexity']:g}.\n\n"
        + markdown_table(["groups", "silhouette"], rows) + "\n\n" + markdown_table(["parts", "linear CKA"], cka)
        + f"\n\n{SCORES}\n\n`{record['command']}`\n")


# --- branch masking ------------------------------------------------------------------------------


def branch_conditions(modalities: Sequence[str]) -> list[Condition]:
    """Both branches, shared alone, specific alone: each with all modalities and with each one alone (Table 14)."""
    subsets = subset_conditions(modalities, [1])
    return [Condition(f"{branch or 'full'}: {c.name}", c.missing, branch=branch)
            for branch in (None, *KINDS) for c in subsets]


def summarise_branches(
    outcomes: Mapping[str, Mapping[str, Any]], conditions: Sequence[Condition], metric: str | None = None
) -> dict[str, Any]:
    """``metric`` shown and ``rows``: branch, modalities, metrics, samples."""
    shown = choose_metric(list(outcomes[conditions[0].name]["metrics"]), metric)
    rows = []
    for c in conditions:
        branch, _, subset = c.name.partition(": ")
        found = outcomes[c.name]
        rows.append(dict(branch=branch, modalities=subset, metrics=found["metrics"], samples=found["samples"]))
    return dict(metric=shown, rows=rows)


def branches_markdown(record: Mapping[str, Any]) -> str:
    """A row per branch, a column per set of modalities."""
    metric, rows = record["metric"], record["rows"]
    subsets = list(dict.fromkeys(row["modalities"] for row in rows))
    cells = {(row["branch"], row["modalities"]): 100 * as_share(metric, row["metrics"][metric]) for row in rows}
    table = [[branch if branch == "full" else f"{branch} only", *(f"{cells[branch, s]:.1f}" for s in subsets)]
             for branch in dict.fromkeys(row["branch"] for row in rows)]
    # records of earlier versions, which counted every sample, do not tell their number
    note = left_out({row["modalities"]: row.get("samples", 0) for row in rows})
    note += (" The head also reads the encoders' outputs (head_reads='post_and_input'), which no masking touches."
            if record["head_reads"] == "post_and_input" else "")
    return (f"{metric} (%) with one branch of Z zeroed in evaluation; head_reads={record['head_reads']}.{note}\n\n"
            + markdown_table(["", *subsets], table) + f"\n\n`{record['command']}`\n")
