"""One self-contained HTML page of a work directory: what was trained, what was asked of it, what came out."""
from __future__ import annotations

import base64
import html
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import embeddings, missing, noise_response, probing, robustness
from .calibration import class_iou
from .evidence import COLOURS, FOLDER, figure_panels, read_evidence, save_figure
from .training_logs import Series, read_logs

__all__ = ["plot_confusion", "plot_curves", "write_report"]

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 68rem; margin: 2rem auto;
       padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.25rem; margin-top: 2.6rem;
     border-bottom: 2px solid #0072B2; padding-bottom: .2rem; }
nav a { margin-right: 1rem; white-space: nowrap; } a { color: #0072B2; }
nav .absent { color: #6b6b6b; }
figure { margin: 1rem 0; overflow-x: auto; } img { max-width: 100%; height: auto; }
figcaption, .source { font-size: .85rem; color: #555; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; margin: 1rem 0; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child, .words { text-align: left; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
tbody tr:hover { background: #f3f7fa; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
code, pre { font: .85rem/1.45 ui-monospace, monospace; background: #f4f4f4; border-radius: 4px; }
code { padding: .1rem .3rem; overflow-wrap: anywhere; } pre { padding: .7rem; overflow-x: auto; }
.absent-note { background: #fff7e6; border-left: 4px solid #E69F00; padding: .6rem .9rem; }
@media print { nav { display: none; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""
PEAK = 8  # times what 95 % of a curve's points reach
PALETTE = "Colours: Okabe and Ito's palette and cividis, which common colour blindnesses keep apart."
NUMBER = re.compile(r"[*]*[+-]?[0-9.]+(e[+-]?[0-9]+)?( ± [0-9.]+)?[*]*|-|nan|")  # cells set to the right


@dataclass
class _Section:
    """A heading and what stands below it; ``command`` makes what is not there yet."""

    title: str
    command: str
    body: list[str] = field(default_factory=list)

    @property
    def place(self) -> str:
        return re.sub("[^a-z]+", "-", self.title.lower()).strip("-")


def write_report(work_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write ``report.html`` (pictures inline, no network) and the pictures as PNG files beside the evidence.

    Args:
        work_dir: of a training: logs in ``*/vis_data``, evidence in ``evidence/``.
        out: the page (default: ``report.html`` in the work dir).

    Returns: the page. A section whose input is absent says which command makes it.
    Raises: FileNotFoundError if there is no such folder; ValueError for a file that is no record, and if ``out`` is a
        folder.
    """
    work_dir = Path(work_dir)
    out = work_dir / "report.html" if out is None else Path(out)
    if not work_dir.is_dir():
        raise FileNotFoundError(f"no such work dir: {work_dir}")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder, expected a file such as {out / 'report.html'}")
    folder = work_dir / FOLDER
    config = next(iter(sorted(work_dir.glob("*.py"))), None)
    checkpoint = _latest_checkpoint(work_dir)
    trained, weights, there = (
        shlex.quote(str(path)) for path in (config or "CONFIG", checkpoint or "CHECKPOINT", folder))
    words = f"{trained} {weights}"
    scalars = read_logs(work_dir)
    sections = [_curves(scalars, folder, trained), _training_noise(work_dir, folder), _gradients(scalars, folder)]
    pictured: list[tuple[str, str, str, Callable]] = [
        ("Subsets of modalities", "missing", f"python tools/evaluate_missing.py {words}", missing.plot_subsets),
        ("Noise: accuracy and weights over severity", "noise", f"python tools/evaluate_noise.py {words}",
         robustness.plot_noise_curves),
        ("Encoder damage", "encoder_damage",
         f"python tools/encoder_damage.py {words} --reference MODALITY=CONFIG:CHECKPOINT", probing.plot_damage),
        ("Shared and specific parts", "embeddings", f"python tools/plot_embeddings.py {words}",
         embeddings.plot_embeddings)]
    records: dict[str, Mapping[str, Any]] = {}
    for title, name, command, plot in pictured:
        section, record = _Section(title, command), read_evidence(folder, name)
        if record is not None:
            records[name] = record
            section.body = [_picture(plot(record, folder / f"{name}.png"), title), _text(folder / f"{name}.md")]
        sections.append(section)
    for title, name, command in (
            ("Branch masking", "branches", f"python tools/evaluate_branches.py {words}"),
            ("Cost", "cost", f"python tools/benchmarks/model_cost.py {trained} --out {there}")):
        record = read_evidence(folder, name)
        records.update({} if record is None else {name: record})
        sections.append(_Section(title, command, [] if record is None else [_text(folder / f"{name}.md")]))
    at = next(i for i, s in enumerate(sections) if s.title.startswith("Encoder"))
    sections[at:at] = [_classes(records.get("missing"), folder, words), _worst(work_dir, words, there)]
    sections.append(_provenance(records, config))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(_page(work_dir.resolve().name, sections))
    return out


# --- training ------------------------------------------------------------------------------------


def plot_curves(curves: Series, out: str | Path) -> Path:
    """A panel for each number over the steps."""
    figure, axes = figure_panels(len(curves), width=3.6, height=2.5)
    for axis, (name, points) in zip(axes, curves.items()):
        axis.plot(*zip(*points), marker="o" if len(points) < 20 else None, markersize=3, linewidth=1.3)
        axis.set_title(name, fontsize=9)
        values = [value for _, value in points]
        usual = sorted(map(abs, values))[int(0.95 * (len(values) - 1))]
        if max(values) > PEAK * usual > 0:  # one step would flatten all the others
            step, peak = max(points, key=lambda point: point[1])
            axis.set_ylim(min(0.0, *values), 1.3 * usual)
            axis.annotate(f"{peak:.3g} at {step}", (0.98, 0.92), xycoords="axes fraction", ha="right", fontsize=8)
        # validation of an epoch-based run is logged by epoch
        axis.set_xlabel("step" if "loss" in name else "step, or epoch of an epoch-based run", fontsize=8)
        axis.tick_params(labelsize=8)
    return save_figure(figure, out)


def _curves(scalars: Series, folder: Path, trained: str) -> _Section:
    section = _Section("Learning curves", f"python tools/train.py {trained}")
    losses = {n: p for n, p in scalars.items() if "loss" in n and not n.startswith("gradient/")}
    metrics = {n: p for n, p in scalars.items() if n.startswith("acc/") or n in ("mIoU", "mAcc", "aAcc")}
    if losses:
        once = {n: p[0] for n, p in metrics.items() if len(p) == 1}  # one point is no curve
        several = {n: p for n, p in {**losses, **metrics}.items() if n not in once}
        ordered = dict(sorted(several.items(), key=lambda item: (item[0] != "loss", item[0] in metrics)))
        picture = plot_curves(ordered, folder / "learning_curves.png")
        section.body = [_picture(picture, "Every loss and metric by step")]
        if once:
            said = ", ".join(f"{name} {value:.4g} ({step})" for name, (step, value) in sorted(once.items()))
            section.body.append(f"<p>Evaluated once (step, or epoch of an epoch-based run): {html.escape(said)}.</p>")
    return section


def _training_noise(work_dir: Path, folder: Path) -> _Section:
    section = _Section(
        "Weights and predicted noise during training", "python tools/train.py CONFIG   # with model.neck.type='UDML'")
    try:
        curves = noise_response.training_curves(work_dir)
    except (FileNotFoundError, ValueError):  # no log, or another neck: the section says so
        return section
    section.body = [_picture(noise_response.plot_training(curves, folder / "noise_training.png"), section.title)]
    return section


def _gradients(scalars: Series, folder: Path) -> _Section:
    section = _Section(
        "Gradients at the encoders",
        "custom_hooks = [dict(type='GradientAnalysisHook', interval=100)]   # in the config, then train")
    found: dict[tuple[str, str], dict[str, list]] = {}
    for name, points in scalars.items():
        match = re.fullmatch(r"gradient/(cosine|negative|norm|ratio)_output/(.+)", name)
        if match:
            found.setdefault(("gradient", match[1]), {})[match[2]] = points
    if not found:
        return section
    titles = dict(cosine="cosine of task and auxiliary gradient", negative="share of negative cosines so far",
                  norm="norm of the task's gradient", ratio="auxiliary gradient's norm over the task's")
    figure, axes = figure_panels(len(found), columns=2, width=5.2)
    # a modality is a colour and a marker, a loss a kind of line
    names = [name.partition("/") for _, lines in sorted(found.items()) for name in lines]
    modalities = list(dict.fromkeys(m for m, _, _ in names))
    terms = list(dict.fromkeys(term for _, _, term in names if term))
    for axis, ((_, what), lines) in zip(axes, sorted(found.items())):
        for name, points in lines.items():
            m, _, term = name.partition("/")
            i, k = modalities.index(m), terms.index(term) if term else 0
            axis.plot(*zip(*points), color=COLOURS[i % len(COLOURS)], marker="osD^vP*"[i % 7], markersize=3,
                      linestyle=("-", "--", ":", "-.")[k % 4], label=name)
        if what == "cosine":
            axis.axhline(0, color="grey", linewidth=0.8)
        if what == "ratio":
            axis.set_yscale("log")  # in the first steps the task's gradient is still small
        axis.set(title=titles[what], xlabel="step")
        axis.title.set_fontsize(9)
        axis.legend(fontsize=7, ncol=3, loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False, handlelength=3)
    section.body = [_picture(save_figure(figure, folder / "gradients.png"), "At each encoder's output")]
    return section


# --- classes and pictures ------------------------------------------------------------------------


def plot_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str], out: str | Path, dense: bool) -> Path:
    """Rows are labels, in shares of their samples; ``dense`` draws the IoU of each class instead."""
    K = len(confusion)
    if dense:
        values = [100 * v for v in class_iou(confusion)]
        ranked = sorted((k for k in range(K) if values[k] == values[k]), key=lambda k: values[k])
        figure, (axis,) = figure_panels(1, width=6, height=0.26 * len(ranked) + 1.2)
        axis.barh(range(len(ranked)), [values[k] for k in ranked], color=COLOURS[0])
        for i, k in enumerate(ranked):
            axis.text(values[k], i, f" {values[k]:.1f}", va="center", fontsize=8)
        axis.set_yticks(range(len(ranked)), [classes[k] for k in ranked], fontsize=8)
        axis.set(xlabel="IoU (%), classes that occur", xlim=(0, 110))
        axis.invert_yaxis()
        return save_figure(figure, out)
    size = max(4.0, 0.36 * K + 1.6)
    figure, (axis,) = figure_panels(1, width=size + 0.8, height=size)
    shares = [[100 * v / max(1, sum(row)) for v in row] for row in confusion]
    picture = axis.imshow(shares, cmap="cividis", vmin=0, vmax=100)
    if K <= 20:
        for i, row in enumerate(shares):
            for j, value in enumerate(row):
                if value >= 0.5:
                    axis.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7,
                              color="white" if value < 55 else "black")
    axis.set_xticks(range(K), classes, rotation=90, fontsize=7)
    axis.set_yticks(range(K), classes, fontsize=7)
    axis.set(xlabel="predicted", ylabel="label")
    figure.colorbar(picture, ax=axis, label="% of the label's samples", shrink=0.8)
    return save_figure(figure, out)


def _classes(record: Mapping[str, Any] | None, folder: Path, words: str) -> _Section:
    section = _Section("Classes", f"python tools/evaluate_missing.py {words}")
    confusion = None if record is None else record["rows"][0]["confusion"]
    if confusion is not None:
        dense = "mIoU" in record["rows"][0]["metrics"]
        names = record.get("classes") or [str(k) for k in range(len(confusion))]
        caption = ("IoU of each class, worst first" if dense else "Confusion") + ", all modalities"
        section.body = [_picture(plot_confusion(confusion, names, folder / "classes.png", dense), caption)]
    return section


def _worst(work_dir: Path, words: str, there: str) -> _Section:
    section = _Section("Predictions, worst first",
                       f"python tools/show_predictions.py {words} --out {there}   # segmentation")
    found = [p for where in (work_dir / FOLDER, work_dir / "pictures")
             for name in ("worst_first*.png", "spread*.png") for p in sorted(where.glob(name))]
    section.body = [_picture(path, path.stem.replace("_", " ")) for path in found]
    return section


# --- page ----------------------------------------------------------------------------------------


def _provenance(records: Mapping[str, Mapping[str, Any]], config: Path | None) -> _Section:
    section = _Section("Commands and seeds", "any of the commands above")
    rows = [f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(record.get('seed')))}</td><td>"
            f"{html.escape(str(record.get('noise_seed', record.get('probe_seed', record.get('plot_seed', '-')))))}</td>"
            f"<td style='text-align:left'><code>{html.escape(record['command'])}</code></td></tr>"
            for name, record in records.items()]
    if rows:
        section.body.append(
            "<div class='scroll'><table><thead><tr><th>evidence</th><th>seed of the training</th><th>seed of the "
            "evaluation</th><th class=words>command</th></tr></thead><tbody>" + "".join(rows)
            + "</tbody></table></div>")
    if config is not None:
        section.body.append(f"<details><summary>Config as trained: {html.escape(config.name)}</summary><pre>"
                            f"{html.escape(config.read_text())}</pre></details>")
    return section


def _page(name: str, sections: Sequence[_Section]) -> str:
    links = " ".join(
        f"<a href='#{s.place}'{'' if s.body else ' class=absent'}>{html.escape(s.title)}</a>" for s in sections)
    bodies = []
    for s in sections:
        body = s.body or [
            f"<p class='absent-note'>Not there yet. It is made by<br><code>{html.escape(s.command)}</code></p>"]
        bodies.append(f"<section id='{s.place}'><h2>{html.escape(s.title)}</h2>{''.join(body)}</section>")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(name)}</title><style>{STYLE}</style></head><body><h1>{html.escape(name)}</h1>"
        f"<p class='source'>{PALETTE}</p><nav>{links}</nav>{''.join(bodies)}</body></html>\n")


def _picture(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    text = html.escape(caption)
    return f"<figure><img alt='{text}' src='data:image/png;base64,{data}'><figcaption>{text}</figcaption></figure>"


def _text(path: Path) -> str:
    """Our own markdown as HTML: paragraphs, tables, and lines that are one command."""
    if not path.is_file():
        return ""
    blocks = []
    for block in path.read_text().strip().split("\n\n"):
        lines = block.splitlines()
        if lines[0].startswith("|"):
            cells = [[html.escape(cell.strip()) for cell in line.strip()[1:-1].split("|")] for line in lines]
            columns = list(zip(*cells[2:]))
            kinds = ["" if all(NUMBER.fullmatch(c) for c in column) else " class=words" for column in columns]
            kinds += [""] * (len(cells[0]) - len(kinds))
            head = "".join(f"<th{kind}>{cell}</th>" for kind, cell in zip(kinds, cells[0]))
            rows = "".join("<tr>" + "".join(f"<td{k}>{c}</td>" for k, c in zip(kinds, row)) + "</tr>"
                           for row in cells[2:])
            table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
            blocks.append(f"<div class='scroll'>{table}</div>")
        elif block.startswith("`") and block.endswith("`"):
            blocks.append(f"<pre>{html.escape(block.strip('`'))}</pre>")
        else:
            blocks.append(f"<p class='source'>{html.escape(block)}</p>")
    return "".join(blocks)


def _latest_checkpoint(work_dir: Path) -> Path | None:
    found = sorted(work_dir.glob("*.pth"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None
