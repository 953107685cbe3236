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
