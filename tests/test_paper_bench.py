"""The paper bench at toy length: what its commands train, ask and print."""
from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace

import pytest

pytest.importorskip("mmaction")
pytest.importorskip("mmseg")
import torch
from mmengine.registry import MODELS
from test_table_job import paths  # noqa: F401  a fixture: six views in the layout of the real file

from mmfusion_plugin.analysis import Column, Job, render, render_columns, train_and_evaluate
from mmfusion_plugin.analysis.examination import gradient_summary


@pytest.fixture
def tool(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "tools" / "benchmarks"))
    return importlib.import_module


def shortened(job: Job, **more) -> Job:
    short = {"train_cfg.max_epochs": 1, "train_cfg.val_begin": 1, "param_scheduler.0.end": 1}
    return replace(job, overrides={**job.overrides, **short, **more})


# --- SCFAE's tables ------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [
    "handwritten6", "cmu-mosi", "digit-clips", "cwfid", "nyuv2-half", "nyuv2", "crema-d", "kinetics-sound"])
def test_tables_share_trainings_and_every_row_is_one_of_its_own(tool, data):
    tables = tool("scfae_tables")
    jobs = tables.jobs("all", data, "DATA", (0, 1))
    rows = [job.row for job in jobs if job.seed == 0]
    assert rows == [job.row for job in jobs if job.seed == 1]
    jobs = jobs[: len(rows)]
    assert len(set(rows)) == len({job.settings() for job in jobs}) == len(rows)
    for table in tables.TABLES:
        assert all(job in jobs for job in tables.jobs(table, data, "DATA", [0]))
        assert set(tables.rows_of(table, tables.TASKS[data])) <= set(rows)
    for job in jobs:
        model = job.load_config().model
        neck = model.neck
        assert MODELS.build(neck) is not None
        head = model.get("decode_head") or model.cls_head
        assert neck.out_channels == head.in_channels, job.row
        if neck.type != "SingleModality":
            assert neck.modality_dropout == tables.TASKS[data].dropout, job.row
            assert {m for missing in job.evaluations.values() for m in missing} <= set(neck.modalities)


def test_a_training_is_asked_for_all_tables_and_they_are_drawn(tool, paths, tmp_path):  # noqa: F811
    tables = tool("scfae_tables")
    jobs = {job.row: job for job in tables.jobs("all", "handwritten6", "DATA", [0], interval=3)}
    records = []
    for row in ("SCFAE, head reads Z alone", "pix alone"):
        job = shortened(replace(jobs[row], paths=paths))
        found = train_and_evaluate(job, tmp_path / row, examine=tables.examine)
        records.append(dict(found, row=row, seed=0, settings=job.settings()))
    plain, alone = records
    assert set(plain["probes"]) == set(tables.TASKS["handwritten6"].widths) and set(alone["probes"]) == {"pix"}
    assert set(plain["branches"]) == {"full", "shared", "specific"} and alone["branches"] == {}
    assert plain["branches"]["full"][" + ".join(plain["probes"])] == plain["metrics"]["complete"][tables.METRIC]
    assert "pix/recon" in plain["gradients"]["cosine"]
    assert plain["gradients"]["analyses"]["mor"] == 3 and alone["gradients"] == {}, "7 steps, every third"
    text = tables.draw(("6", "7", "14"), "handwritten6", records)
    difference = 100 * (plain["probes"]["pix"] - alone["probes"]["pix"])
    assert f"{difference:+.1f}" in text and text.count("| SCFAE, head reads Z alone |") == 3


def test_pictures_are_asked_for_the_same_tables_in_miou(tool, tmp_path):
    tables = tool("scfae_tables")
    jobs = {job.row: job for job in tables.jobs("all", "nyuv2-half", str(eight_bit_frames(tmp_path)), [0], interval=1)}
    records = []
    for row in ("SCFAE", "depth alone"):
        job = jobs[row]
        record = train_and_evaluate(two_steps(job), tmp_path / row, examine=tables.examine)
        records.append(dict(record, row=row, seed=0, settings=job.settings()))
    fused, alone = records
    assert set(fused["probes"]) == {"rgb", "depth"} and set(alone["probes"]) == {"depth"}
    assert fused["branches"]["full"]["rgb + depth"] == pytest.approx(fused["metrics"]["complete"]["mIoU"] / 100)
    assert fused["gradients"]["analyses"] == {"rgb": 2, "depth": 2}
    text = tables.draw(tables.TABLES, "nyuv2-half", records)
    assert "mIoU (%) on the test part" in text and f"| SCFAE | {fused['metrics']['complete']['mIoU']:.1f} |" in text


def eight_bit_frames(folder):
    """Two frames in the layout of nyuv2_half."""
    import cv2
    from segmentation.scene import write_frames

    frames = write_frames(folder / "frames", ("1", "2"), (64, 64), classes=40)
    for path in (frames / "Depth").glob("*.png"):
        cv2.imwrite(str(path), (cv2.imread(str(path), -1) % 200 + 20).astype("uint8"))
    return frames


def two_steps(job: Job, evaluations=("complete", )) -> Job:
    short = {"train_cfg.max_iters": 2, "train_dataloader.batch_size": 2, "param_scheduler.0.end": 1,
             "param_scheduler.1.begin": 1, "param_scheduler.1.end": 2, "train_dataloader.num_workers": 0,
             "train_dataloader.persistent_workers": False,
             "train_dataloader.dataset.pipeline": {"3": dict(crop_size=(64, 64))},
             "model.data_preprocessor.size": (64, 64)}
    return replace(job, overrides={**job.overrides, **short},
                   evaluations={name: job.evaluations[name] for name in evaluations})


def test_gradients_are_summed_up_over_a_training():
    found = gradient_summary({
        "gradient/norm_output/a": [(0, 1.0), (5, 3.0)], "gradient/cosine_output/a/recon": [(0, -0.5), (5, 0.25)],
        "gradient/ratio_output/a/recon": [(0, 900.0), (5, 0.5), (9, 0.25)],
        "gradient/negative_output/a/recon": [(0, 1.0)], "gradient/norm_parameters/a": [(0, 7.0)], "loss": [(0, 2.0)]})
    assert found == dict(norm={"a": 2.0}, analyses={"a": 2}, cosine={"a/recon": -0.125}, negative={"a/recon": 0.5},
                         ratio={"a/recon": 0.5})


def test_table_13_counts_the_papers_block(tool):
    costs = tool("scfae_costs")
    record = costs.cost_rows(1, dict(visual=(1, 3, 3, 32, 32), audio=(1, 1, 1, 32, 32)))
    found = {row["part"]: row for row in record["rows"]}
    assert found["SCFAE only"]["parameters"] == 24_136_700 and len(found) == 7
    # the paper's 0.024 less two reconstructions of 1024 to 512, which a prediction leaves out
    assert found["SCFAE only"]["multiply_adds"] == pytest.approx(0.0241e9 - 2 * 1024 * 512, rel=0.003)
    assert all(row["milliseconds"] > 0 and row["peak_bytes"] > 0 for row in record["rows"])
    assert "| SCFAE only | 24.14 | 0.023 |" in costs.costs_markdown(record)


# --- columns -------------------------------------------------------------------------------------


def test_columns_have_their_own_digits_signs_and_bold_rows():
    records = [
        dict(row=row, seed=seed, settings=row, parameters=2_000, neck_parameters=500, score=score, cosine=cosine)
        for row, seed, score, cosine in (
            ("a", 0, 1.0, -0.5), ("a", 1, 3.0, 0.5), ("b", 0, 9.0, None), ("b", 1, 9.5, None))]
    columns = [Column("score", lambda r: r["score"], signed=True),
               Column("cosine", lambda r: r["cosine"], 3, best=False)]
    lines = render_columns(records, columns, ["b", "a", "absent"]).splitlines()
    assert lines[0] == "|  | score | cosine | n | parameters (neck), thousands |"
    assert lines[2:] == [f"| b | **+9.2 ± {math.sqrt(0.125):.1f}** | - | 2 | 2 (0) |",
                         f"| a | +2.0 ± {math.sqrt(2):.1f} | 0.000 ± {math.sqrt(0.5):.3f} | 2 | 2 (0) |"]
    with pytest.raises(ValueError, match="row 'a' holds a seed twice"):
        render_columns([*records, records[0]], columns, ["a"])


# --- the data that papers use, where somebody has them -------------------------------------------


@pytest.mark.parametrize("data", ["nyuv2", "crema-d", "kinetics-sound"])
def test_the_papers_data_have_their_tables_and_every_row_is_one_of_its_own(tool, data):
    official, udml = tool("official_table"), tool("udml_table")
    task = udml.TASKS[data]
    fusions = official.jobs(data, "DATA", [0])
    dynamic = [*udml.jobs(task, "DATA", [0]), *udml.ablations(task, "DATA", [0])]
    numbers = (18, 15) if data == "nyuv2" else (39, 13)
    for jobs, number in zip((fusions, dynamic), numbers):
        assert len(jobs) == len({job.row for job in jobs}) == len({job.settings() for job in jobs}) == number
    assert set(task.paper) <= {job.row for job in dynamic}
    found = {job.row: job.load_config() for job in dynamic}
    necks = {row: cfg.model.neck for row, cfg in found.items()}
    asked = {row: neck.get("quality", "estimated") for row, neck in necks.items()}
    assert (asked["static"], asked["PE dynamic"], asked["QMF-like"]) == (None, "variance", "energy")
    assert asked["UDML released"] == "estimated" and necks["UDML released"].preset == "released"
    assert necks["UDML(SCFAE)"].inner.type == "SCFAE"
    for job in (*fusions, *dynamic):
        cfg = job.load_config()
        assert MODELS.build({**cfg.model.neck, **_tiny(cfg.model.neck)}) is not None, job.row
        for name, asked in job.evaluations.items():
            for m, noise in (asked["noise"] if isinstance(asked, dict) else {}).items():
                trained = found["static"].model.data_preprocessor.train_noise.noise[m]
                assert noise["type"] == "occlusion" or noise["scale"] == trained.scale, (job.row, name)


@pytest.mark.parametrize("data, shipped", [("nyuv2", 0.125), ("crema-d", 0.25), ("kinetics-sound", 0.25)])
def test_scfae_is_as_wide_as_its_row_says(tool, data, shipped):
    """The shipped configs are narrow; the literal form never is."""
    official = {job.row: job.load_config().model.neck for job in tool("official_table").jobs(data, "DATA", [0])}
    own = {job.row: job.load_config().model.neck for job in tool("scfae_tables").jobs("all", data, "DATA", [0])}
    assert own["SCFAE"].width == shipped and own["SCFAE literal"].width is None
    assert official["SCFAE literal"].width is None
    assert official["SCFAE"].width == (shipped if data == "nyuv2" else None)
    if data != "nyuv2":
        assert official["SCFAE, width 1/4, dropout"].width == shipped


def _tiny(neck):
    """Widths that build at once."""
    widths = neck.in_channels if neck.type == "SingleModality" else next(iter(neck.in_channels.values()))
    tiny = 8 if isinstance(widths, int) else [8] * len(widths)
    if neck.type == "SingleModality":
        return dict(in_channels=tiny, out_channels=tiny)
    small = dict(in_channels=dict.fromkeys(neck.in_channels, tiny))
    if neck.type == "UDML":
        return dict(small, inner=dict(neck.inner, out_channels=tiny))
    return dict(small, out_channels=tiny, **({"match_params": 3000} if "match_params" in neck else {}))


@pytest.fixture
def crema(tmp_path):
    """Four clips in the layout of CREMA-D."""
    import numpy as np

    pytest.importorskip("av")
    from mmfusion_plugin.recognition.media import write_clip, write_wav

    root = tmp_path / "crema-d"
    for folder in ("VideoFlash", "AudioWAV"):
        (root / folder).mkdir(parents=True)
    emotions = ("ANG", "SAD", "NEU", "HAP")
    for i in range(len(emotions)):
        write_clip(root / "VideoFlash" / f"{i}.mp4", [np.full((32, 32, 3), 60 * k, np.uint8) for k in range(4)], 6)
        write_wav(root / "AudioWAV" / f"{i}.wav", 0.3 * np.sin(np.arange(8000) * 0.1 * (i + 1)), 8000)
    for part in ("train", "test"):
        (root / f"usual_{part}.txt").write_text("".join(
            f"{i}.mp4 {emotion}\n" for i, emotion in enumerate(emotions)))
    return root


def two_epochs(job: Job, evaluations) -> Job:
    loader = {f"{part}_dataloader.{key}": value for part in ("train", "val", "test")
              for key, value in (("num_workers", 0), ("persistent_workers", False), ("batch_size", 2))}
    return replace(job, overrides={**job.overrides, **loader, "train_cfg.max_epochs": 2, "train_cfg.val_interval": 2},
                   evaluations={name: job.evaluations[name] for name in evaluations})


def test_a_row_of_udmls_table_trains_on_crema_d_and_the_papers_figure_stands_beside_it(tool, crema, tmp_path):
    udml = tool("udml_table")
    task = udml.TASKS["crema-d"]
    job = next(job for job in udml.jobs(task, str(crema), [0]) if job.row == "PE dynamic")
    record = train_and_evaluate(two_epochs(job, ("clean", "audio occluded", "visual 14")), tmp_path / "run")
    assert record["iterations"] == 4 and len(record["metrics"]) == 3
    records = [dict(record, row="PE dynamic", seed=seed, settings=job.settings()) for seed in (0, 1)]
    table = render(records, ["clean"], None, task.metric, task.scale, udml.paper(task)).splitlines()
    assert table[0].startswith("|  | clean | clean, in the paper | s per run |") and "| 65.8 |" in table[2]


@pytest.mark.parametrize(("row", "evaluations"), [
    ("visual only", ["complete"]), ("SCFAE, received, dropout", ["complete", "without audio"])])
def test_rows_of_the_table_of_fusions_train_on_crema_d(tool, crema, tmp_path, row, evaluations):
    job = next(job for job in tool("official_table").jobs("crema-d", str(crema), [0]) if job.row == row)
    record = train_and_evaluate(two_epochs(job, evaluations), tmp_path / "run")
    assert record["iterations"] == 4 and list(record["metrics"]) == evaluations


# --- choosing a preset ---------------------------------------------------------------------------


def test_a_table_lists_its_rows_configs_options_and_seeds(tool, repository, capsys, monkeypatch, tmp_path):
    (tmp_path / "val.npz").touch()
    done = (repository / "results" / "cmu_mosi.jsonl").read_text().splitlines()
    out = tmp_path / "some.jsonl"
    out.write_text("\n".join(line for line in done if json.loads(line)["row"] != "sum") + "\n")
    monkeypatch.setattr("sys.argv", ["features_table.py", "cmu-mosi", "--list-rows", "--data-root", str(tmp_path),
                                     "--out", str(out)])
    assert tool("features_table").main() == 0
    lines = {line.split(" | ")[0].strip("| "): line for line in capsys.readouterr().out.splitlines()}
    assert "scfae_cmu-mosi.py" in lines["SCFAE, width 1/4, dropout"] and "neck.width=0.25" in lines[
        "SCFAE, width 1/4, dropout"]
    assert lines["SCFAE, width 1/4, dropout"].endswith("| 0 1 2 |") and lines["sum"].endswith("| - |")


def test_a_distance_is_in_the_larger_spread_and_no_smaller_than_the_floor(tool):
    ranking = tool("preset_ranking")
    scores = dict(good=dict(c=[10.0, 10.0]), noisy=dict(c=[6.0, 10.0]), poor=dict(c=[8.0, 8.0]))
    found = ranking.distances(scores, ["c"], floor=0.5)
    assert found["good"]["c"] == 0
    assert found["noisy"]["c"] == pytest.approx(2 / math.sqrt(8)) and found["poor"]["c"] == pytest.approx(2 / 0.5)
    lines = ranking.ranking({"one": found, "two": {"poor": {"d": 0.0}, "good": {"d": 1.5}}})
    assert [(row, worst, near) for row, worst, _, near, _ in lines] == [("good", 1.5, 1), ("poor", 4.0, 1)]
    heads = ranking.ranking({"one": {"a": {"c": 3.0}, "a, heads": {"c": 0.5}}, "two": {"a": {"d": 1.0}}})
    assert [(row, worst) for row, worst, *_ in heads] == [("a", 1.0)]


@pytest.mark.slow
def test_the_committed_results_are_ranked(tool, repository, capsys, monkeypatch):
    ranking = tool("preset_ranking")
    monkeypatch.setattr("sys.argv", ["preset_ranking.py", "--results", str(repository / "results")])
    assert ranking.main() == 0
    assert "concat, MLP + LN, dropout" in capsys.readouterr().out.split("smallest worst distance first")[1]


@pytest.mark.parametrize("data", ["handwritten6", "digit-clips"])
def test_the_search_reads_no_test_row_and_no_seed_of_a_table(tool, data, monkeypatch, capsys):
    search = tool("scfae_search")
    jobs = search.jobs(data, "DATA", search.SEEDS)
    assert min(job.seed for job in jobs) >= 100
    jobs = jobs[: len(jobs) // 2]
    assert len({job.settings() for job in jobs}) == len({job.row for job in jobs}) == len(jobs)
    for job in jobs:
        cfg = job.load_config()
        train, test = cfg.train_dataloader.dataset, cfg.test_dataloader.dataset
        if data == "digit-clips":
            assert (train.ann_file, test.ann_file) == ("train.txt", "val.txt")
        else:
            assert train.split == test.split == "train"
            assert (train.fold.part, test.fold.part) == ("train", "validation")
        assert MODELS.build(cfg.model.neck) is not None, job.row
    monkeypatch.setattr("sys.argv", ["scfae_search.py", data, "--seeds", "0"])
    assert search.main() == 2 and "100 and up" in capsys.readouterr().err


def test_the_searched_forms_are_what_they_are_named(tool):
    from mmfusion_plugin.fusion import SCFAE

    forms = tool("scfae_forms")
    names, widths = ["a", "b", "c"], dict(a=6, b=8, c=10)
    torch.manual_seed(0)
    feats = {m: torch.randn(5, C) for m, C in widths.items()}
    plain, gated = SCFAE(names, widths), forms.GatedExchange(names, widths)
    gated.load_state_dict(plain.state_dict(), strict=False)
    assert not torch.equal(gated(feats).fused, plain(feats).fused)
    for layer in gated.P_gate.values():
        torch.nn.init.zeros_(layer.weight)
    assert torch.allclose(gated(feats).fused, plain(feats).fused, atol=1e-6), "an even gate is the plain exchange"



# --- nyuv2_half on a GPU -------------------------------------------------------------------------


def test_the_gpu_table_differs_in_the_neck_alone_and_trains_an_mit_b2(tool, tmp_path):
    table = tool("nyuv2_half_table")
    frames = eight_bit_frames(tmp_path)
    jobs = table.jobs(str(frames), [0], epochs=200, loaders=0)
    assert len(jobs) == len({job.settings() for job in jobs}) == 15
    configs = {job.row: job.load_config() for job in jobs}
    for encoder in table.ENCODERS:
        rest = []
        for row, cfg in configs.items():
            if row.endswith(f", {encoder}"):
                assert MODELS.build(cfg.model.neck).out_channels == cfg.model.decode_head.in_channels
                rest.append({**cfg.to_dict(), "model": {k: v for k, v in cfg.model.to_dict().items() if k != "neck"}})
        assert all(part == rest[0] for part in rest)
        assert rest[0]["train_cfg"]["max_iters"] == 15_000
    job = next(job for job in jobs if job.row == "UDML(SCFAE), mitb2")
    record = train_and_evaluate(two_steps(job, ("complete", "depth 11")), tmp_path / "run")
    assert record["iterations"] == 2 and set(record["metrics"]) == {"complete", "depth 11"}
    assert record["parameters"] > 5e7 and torch.isfinite(torch.tensor(record["metrics"]["complete"]["mAcc"]))
