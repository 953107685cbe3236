"""The commands that make tables: what they would train, before anybody waits an hour for it."""
from __future__ import annotations

import importlib
import sys

import pytest

pytest.importorskip("mmaction")
pytest.importorskip("mmseg")

TABLES = {
    "cwfid": lambda tool: tool.jobs("DATA", (0, 1), None, True, True),
    "digit_clips": lambda tool: tool.jobs("DATA", (0, 1)),
    "features handwritten6": lambda tool: tool.jobs("handwritten6", "DATA", (0, 1)),
    "features cmu-mosi": lambda tool: tool.jobs("cmu-mosi", "DATA", (0, 1)),
}


@pytest.fixture(params=TABLES)
def first(request, repository, monkeypatch):
    """The table's jobs of seed 0."""
    monkeypatch.syspath_prepend(str(repository / "tools" / "benchmarks"))
    tool = f"{request.param.split()[0]}_table"
    monkeypatch.delitem(sys.modules, tool, raising=False)
    jobs = TABLES[request.param](importlib.import_module(tool))
    first = [job for job in jobs if job.seed == 0]
    assert [(job.row, job.seed) for job in jobs] == [(job.row, seed) for seed in (0, 1) for job in first]
    return first


def test_every_row_is_a_training_of_its_own_on_the_data_that_is_named(first):
    """Two rows of one setting would be one training under two names."""
    assert len({job.row for job in first}) == len({job.settings() for job in first}) == len(first)
    for job in first:
        cfg = job.load_config()
        loaders = (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
        assert [loader.dataset.data_root for loader in loaders] == ["DATA"] * 3
        withheld = {m for missing in job.evaluations.values() for m in missing}
        assert withheld <= set(cfg.model.neck.get("modalities", ())), job.row


def test_the_large_mlp_is_as_large_as_scfae(first):
    from mmengine.registry import MODELS

    found = {job.row: job for job in first}
    if "concat, large MLP + LN" in found:
        sizes = [sum(p.numel() for p in MODELS.build(found[row].load_config().model.neck).parameters())
                 for row in ("concat, large MLP + LN", "SCFAE")]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.005)
    else:
        assert any(job.config.endswith("_cwfid.py") for job in first), "its SCFAE is light: no MLP beside it"


def udml_jobs(tools, task):
    tool = tools["udml_table"]
    return [*tool.jobs(tool.TASKS[task], "DATA", [0]), *tool.ablations(tool.TASKS[task], "DATA", [0])]


PUBLISHED = {
    "cwfid": lambda tools: [*tools["cwfid_table"].jobs("DATA", [0], None, True, True),
                            *tools["light_form_curve"].jobs("DATA", [0])],
    "digit_clips": lambda tools: tools["digit_clips_table"].jobs("DATA", [0]),
    "handwritten6": lambda tools: tools["features_table"].jobs("handwritten6", "DATA", [0]),
    "cmu_mosi": lambda tools: tools["features_table"].jobs("cmu-mosi", "DATA", [0]),
    "scfae_handwritten6": lambda tools: tools["scfae_tables"].jobs("all", "handwritten6", "DATA", [0]),
    "scfae_cmu_mosi": lambda tools: tools["scfae_tables"].jobs("all", "cmu-mosi", "DATA", [0]),
    "scfae_search_handwritten6": lambda tools: tools["scfae_search"].jobs("handwritten6", "DATA", [100]),
    "udml_cwfid": lambda tools: udml_jobs(tools, "cwfid"),
    "udml_digit_clips": lambda tools: udml_jobs(tools, "digit-clips"),
    "udml_nyuv2_half": lambda tools: udml_jobs(tools, "nyuv2-half"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_results_are_those_of_the_configs_as_they_are(name, repository, monkeypatch):
    """A changed config makes every row of its table another training: the table would have to be run again."""
    from mmfusion_plugin.analysis import read_results

    monkeypatch.syspath_prepend(str(repository / "tools" / "benchmarks"))
    tools = {tool: importlib.import_module(tool) for tool in (
        "cwfid_table", "digit_clips_table", "features_table", "light_form_curve", "scfae_search", "scfae_tables",
        "udml_table")}
    stored = read_results(repository / "results" / f"{name}.jsonl")
    known = {job.settings(): job.row for job in PUBLISHED[name](tools)}
    assert stored and [f"{record['row']} {record['seed']}" for record in stored
                       if known.get(record["settings"]) != record["row"]] == []
