"""The page of a work directory: every section with its input, and the command where there is none."""
from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from running import run_tool

from mmfusion_plugin.analysis.evidence import write_evidence
from mmfusion_plugin.analysis.report import plot_confusion, write_report
from mmfusion_plugin.analysis.training_logs import read_logs


class Page(HTMLParser):
    """{section: text}, pictures by section, and whatever would be fetched."""

    def __init__(self, text):
        super().__init__()
        self.sections, self.pictures, self.fetched, self.place = {}, {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "section":
            self.place = attrs["id"]
        if tag == "img":
            self.pictures.setdefault(self.place, []).append(attrs["src"][:22])
        self.fetched += [attrs[key] for key in ("src", "href") if attrs.get(key) and not
                         attrs[key].startswith(("data:", "#"))]

    def handle_data(self, data):
        if self.place:
            self.sections[self.place] = self.sections.get(self.place, "") + data


def log(folder, time, lines):
    path = folder / time / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_an_empty_folder_says_which_commands_make_the_rest(tmp_path, monkeypatch):
    page = Page(write_report(tmp_path).read_text())
    tools = {"learning-curves": "train", "subsets-of-modalities": "evaluate_missing",
             "encoder-damage": "encoder_damage",
             "noise-accuracy-and-weights-over-severity": "evaluate_noise", "cost": "model_cost",
             "shared-and-specific-parts": "plot_embeddings", "branch-masking": "evaluate_branches",
             "predictions-worst-first": "show_predictions", "classes": "evaluate_missing",
             "gradients-at-the-encoders": "GradientAnalysisHook"}
    for place, tool in tools.items():
        assert "Not there yet" in page.sections[place] and tool in page.sections[place], place
    assert not page.pictures and not page.fetched
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, "report", tmp_path / "nowhere")


def test_a_full_folder_shows_everything_and_fetches_nothing(tmp_path):
    (tmp_path / "iter_2.pth").touch()
    (tmp_path / "my.py").write_text("x = '<b>'\n")
    names = {"loss": 1.0, "loss_cls": 0.5, "acc/fused_top1": 0.3, "gradient/cosine_output/a/recon": -0.1,
             "gradient/norm_output/a": 2.0, "gradient/negative_output/a/recon": 1.0, "fusion.weight.a": 1.2, "lr": 0.1}
    log(tmp_path, "1", [dict(names, step=1), dict(names, step=2)])
    log(tmp_path, "2", [dict(loss=7.0, step=2)])
    assert read_logs(tmp_path)["loss"] == [(1, 1.0), (2, 7.0)], "a resumed run replaces what was lost"
    made = dict(config="c", checkpoint="k", seed=3, key="x")
    outcome = dict(metrics={"acc/fused_top1": 0.5}, samples=4, calibration_error=0.1, confusion=[[1, 1], [0, 2]],
                   weights={})
    mean = outcome["metrics"]
    write_evidence(tmp_path / "evidence", "missing", dict(
        made, command="python missing", metric="acc/fused_top1", fill="zeros", classes=["cat", "dog"], mean=mean,
        mean_incomplete=mean, rows=[dict(name=n, modalities=n.split(" + "), **outcome) for n in ("a + b", "a")],
    ), "# <i>words</i>\n\n|  | v |\n| --- | --- |\n| a | 50.0 |\n\n`python missing`")
    rows = [dict(name=f"{t} {i}", target=t, type=k, severity=i, strengths=dict(a=2.0 * i) if i else {},
                 units=dict(a="pixels") if i else {}, levels={}, **outcome)
            for t, k, i in (("clean", "clean", 0), ("a", "blur", 1), ("a", "blur", 2))]
    write_evidence(tmp_path / "evidence", "noise", dict(
        made, command="python noise", metric="acc/fused_top1", rows=rows, noise_seed=11), "noise")
    write_evidence(tmp_path / "evidence", "cost", dict(made, command="python cost"), "| part |\n| --- |\n| neck |")
    text = write_report(tmp_path).read_text()
    page = Page(text)
    assert page.fetched == [] and not re.search(r"url\(|@import|<script|<link", text)
    for place in ("learning-curves", "weights-and-predicted-noise-during-training", "gradients-at-the-encoders",
                  "subsets-of-modalities", "noise-accuracy-and-weights-over-severity", "classes"):
        assert page.pictures[place] == ["data:image/png;base64,"], place
    assert "<i>" not in text and "&lt;i&gt;words" in text and "50.0" in page.sections["subsets-of-modalities"]
    assert re.search(r"<tr><th( class=words)?></th><th>v</th></tr>", text), "an empty corner is a column, too"
    assert "neck" in page.sections["cost"] and "x = '<b>'" in page.sections["commands-and-seeds"]
    for word in ("python missing", "python noise", "11"):
        assert word in page.sections["commands-and-seeds"]
    assert "iter_2.pth" in page.sections["encoder-damage"], "the command names what is there"


def test_two_trainings_of_one_folder_make_no_common_curve(tmp_path):
    log(tmp_path, "1", [dict(loss=9.0, old=1.0, step=i) for i in (10, 20, 30)])
    log(tmp_path, "2", [dict(loss=1.0, step=i) for i in (10, 20)])
    log(tmp_path, "3", [dict(loss=2.0, step=20), dict(mIoU=50.0, step=1)])
    assert read_logs(tmp_path) == dict(loss=[(10, 1.0), (20, 2.0)], mIoU=[(1, 50.0)])


def test_files_that_are_no_evidence_or_no_page_are_named(tmp_path, monkeypatch, capsys):
    def refused(*words):
        with pytest.raises(SystemExit) as stop:
            run_tool(monkeypatch, "report", *words)
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "is a folder" in refused(tmp_path, "--out", tmp_path)
    write_evidence(tmp_path / "evidence", "missing", {}, "")
    assert "missing.json is no record" in refused(tmp_path)


def test_commands_on_the_page_can_be_pasted(tmp_path):
    work_dir = tmp_path / "my run"
    work_dir.mkdir()
    (work_dir / "iter_2.pth").touch()
    assert f"evaluate_branches.py CONFIG '{work_dir}/iter_2.pth'" in Page(
        write_report(work_dir).read_text()).sections["branch-masking"]


def test_classes_are_bars_of_iou_or_a_matrix(tmp_path):
    import cv2

    confusion = torch.randint(0, 9, (4, 4)).tolist()
    dense, flat = (cv2.imread(str(plot_confusion(confusion, list("abcd"), tmp_path / f"{d}.png", d)))
                   for d in (True, False))
    assert dense.shape[1] > dense.shape[0] and abs(flat.shape[1] - flat.shape[0]) < 0.4 * flat.shape[0]
