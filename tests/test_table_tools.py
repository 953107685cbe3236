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


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_a_training_of_its_own_on_the_data_that_is_named(name, repository, monkeypatch):
    """Two rows of one setting would be one training under two names."""
    monkeypatch.syspath_prepend(str(repository / "tools" / "benchmarks"))
    tool = f"{name.split()[0]}_table"
    monkeypatch.delitem(sys.modules, tool, raising=False)
    jobs = TABLES[name](importlib.import_module(tool))
    first = [job for job in jobs if job.seed == 0]
    assert [(job.row, job.seed) for job in jobs] == [(job.row, seed) for seed in (0, 1) for job in first]
    assert len({job.row for job in first}) == len({job.settings() for job in first}) == len(first)
    for job in first:
        cfg = job.load_config()
        loaders = (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
        assert [loader.dataset.data_root for loader in loaders] == ["DATA"] * 3
        withheld = {m for missing in job.evaluations.values() for m in missing}
        assert withheld <= set(cfg.model.neck.get("modalities", ())), job.row
