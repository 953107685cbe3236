"""Shared and specific parts: what is collected, scored, drawn and masked."""
from __future__ import annotations

import json
import math

import pytest
import torch
from analysis import tiny
from running import run_tool

from mmfusion_plugin.analysis.conditions import evaluate_conditions
from mmfusion_plugin.analysis.embeddings import (
    branch_conditions,
    branches_markdown,
    collect_parts,
    linear_cka,
    scfae_block,
    separability,
    summarise_branches,
    tsne,
)


def test_a_recognizers_parts_are_the_blocks_own():
    pytest.importorskip("mmaction")
    model, loader, _ = tiny.recognition(missing=[(1, "audio")])
    parts, labels = collect_parts(model, loader, loader["dataset"])
    assert labels.tolist() == [i % 5 for i in range(10) if i != 1], "the incomplete sample is left out"
    data = model.data_preprocessor(loader["dataset"].batch, False)
    with torch.no_grad():
        vectors, _ = model.eval().extract_feat(data["inputs"], data_samples=data["data_samples"], test_mode=True)
        feats = {m: vectors[m] for m in ("visual", "audio")}
        expected = scfae_block(model).parts(feats)
    keep = [i for i in range(10) if i != 1]
    for (m, kind), x in parts.items():
        torch.testing.assert_close(x, expected[m][kind][keep])


def test_a_segmentors_parts_are_taken_at_labelled_places(tmp_path):
    pytest.importorskip("mmseg")
    model, loader, _ = tiny.segmentation(tmp_path)
    parts, labels = collect_parts(model, loader, loader["dataset"], level=0, positions=7)
    assert {x.shape for x in parts.values()} == {(28, 4)} and len(labels) == 28 and labels.max() < 3
    again, same = collect_parts(model, loader, loader["dataset"], level=0, positions=7)
    assert torch.equal(labels, same) and all(torch.equal(x, again[name]) for name, x in parts.items())
    with pytest.raises(ValueError, match="level 4: the neck has 4"):
        scfae_block(model, 4)


def test_udmls_inner_scfae_gets_its_weighted_features():
    pytest.importorskip("mmaction")
    from recognition.test_udml_recognizer import at, udml_cfg

    cfg = udml_cfg(dict(inner=dict(type="SCFAE", out_channels=12), dependency="per_sample"))
    model, loader, _ = tiny.recognition(cfg)
    at(model, 1.0)
    parts, _ = collect_parts(model, loader, loader["dataset"])
    assert scfae_block(model) is model.neck.udml.inner.levels[0]
    weightless, _ = collect_parts(at(model, 0.0), loader, loader["dataset"])
    assert not torch.equal(parts["audio", "specific"], weightless["audio", "specific"])
    plain, loader, _ = tiny.recognition(udml_cfg())
    with pytest.raises(ValueError, match="UDMLNeck of ConcatFusion blocks"):
        collect_parts(plain, loader, loader["dataset"])


def clouds(apart: float, number: int = 30):
    """Parts of two modalities, shared ones at one place, specific ones ``apart`` from it and from each other."""
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    labels = torch.arange(number) % 2
    centres = {("a", "shared"): 0.0, ("b", "shared"): 0.0, ("a", "specific"): apart, ("b", "specific"): -apart}
    return {name: c + 0.5 * torch.randn(number, 6) for name, c in centres.items()}, labels


def test_separability_tells_groups_apart():
    mixed, labels = clouds(0.0)
    found = separability(mixed, labels)
    assert all(abs(v) < 0.05 for v in (found["shared_by_modality"], found["parts"]))
    apart, _ = clouds(5.0)
    apart["a", "specific"] += 20 * labels[:, None]
    found = separability(apart, labels)
    assert abs(found["shared_by_modality"]) < 0.05 and found["parts"] > 0.4
    assert found["by_class"]["a specific"] > 0.9 > 0.1 > found["by_class"]["b specific"]
    assert len(found["cka"]) == 6
    apart["b", "specific"] = apart["b", "specific"][:, :4]
    assert separability(apart, labels)["parts"] is None, "no distance between spaces of different widths"
    with pytest.raises(ValueError, match="one class"):
        separability(mixed, labels * 0)


def test_cka_ignores_rotation_scale_and_width():
    torch.manual_seed(0)
    x = torch.randn(50, 4)
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    assert linear_cka(x, 3 * x @ rotation + 7) == pytest.approx(1)
    assert linear_cka(x, torch.randn(50, 9)) < 0.4 < linear_cka(x, torch.cat([x, 0.5 * torch.randn(50, 9)], 1))
    assert math.isnan(linear_cka(x, torch.ones(50, 2)))


def test_tsne_is_the_same_twice_and_keeps_clouds_apart():
    parts, _ = clouds(8.0)
    found = tsne(parts, seed=1)
    assert found == tsne(parts, seed=1) and found["perplexity"] == 30
    points, names = torch.tensor(found["points"]), found["names"]
    centre = {n: points[[i for i, k in enumerate(names) if k == n]].mean(0) for n in dict.fromkeys(names)}
    near = (centre["a shared"] - centre["b shared"]).norm()
    assert near < 0.3 * (centre["a specific"] - centre["b specific"]).norm()
    parts["b", "specific"] = parts["b", "specific"][:, :4]
    assert set(tsne(parts)["names"]) == {"a shared", "b shared"}


def test_masking_a_branch_is_the_blocks_own_option():
    pytest.importorskip("mmaction")
    model, loader, evaluator = tiny.recognition()
    asked = branch_conditions(["visual", "audio"])
    assert [c.name for c in asked][::3] == [f"{b}: visual + audio" for b in ("full", "shared", "specific")]
    outcomes = evaluate_conditions(model, loader, evaluator, asked)
    assert scfae_block(model).branch == "full"
    for branch in ("shared", "specific"):
        scfae_block(model).branch = branch
        expected = evaluate_conditions(model, loader, evaluator, asked[:3])
        for c in asked[:3]:
            masked = outcomes[c.name.replace("full", branch)]
            assert masked == expected[c.name] and masked["calibration_error"] != outcomes[c.name]["calibration_error"]
        scfae_block(model).branch = "full"
    record = dict(command="c", head_reads="post_and_input", **summarise_branches(outcomes, asked))
    assert "| shared only |" in branches_markdown(record) and "no masking touches" in branches_markdown(record)


def test_both_tools(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mmaction")
    pytest.importorskip("sklearn")
    config, checkpoint = tiny.trained_features(tmp_path, monkeypatch)
    run_tool(monkeypatch, "plot_embeddings", config, checkpoint, "--samples", 8)
    folder = tmp_path / "run" / "evidence"
    record = json.loads((folder / "embeddings.json").read_text())
    evenly = [0, 1, 3, 4, 6, 7, 9, 10]
    assert record["labels"] == [i % 3 for i in evenly] and len(record["tsne"]["points"]) == 24
    assert (folder / "embeddings.png").stat().st_size > 1000
    run_tool(monkeypatch, "evaluate_branches", config, checkpoint)
    record = json.loads((folder / "branches.json").read_text())
    assert len(record["rows"]) == 3 * 4 and record["metric"] == "acc/fused_top1"
    assert not (folder / "branches.partial").exists()
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, "evaluate_branches", config, checkpoint, "--metric", "nothing")
    assert "--metric 'nothing': test_evaluator reports" in capsys.readouterr().err
