"""The ten checks of tools/benchmarks/trust.py with the least counts; its own, reduced and full, are larger."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

pytest.importorskip("mmaction")
pytest.importorskip("mmseg")
pytest.importorskip("hypothesis")
import trust
import trust_fuzz
import trust_inputs
import trust_runs
from mmengine.logging import MMLogger
from trust_cases import NECKS, Row

from mmfusion_plugin.fusion import FUSIONS

CHECKS: dict[str, Callable[[Path], Iterable[Row]]] = {
    "1-killed": lambda folder: trust_runs.resumed_equals_unbroken(folder, 1),
    "2-saves": lambda folder: trust_runs.killed_while_saving(folder, 4),
    "3-damaged": lambda folder: trust_inputs.damaged_checkpoints(folder, 20),
    "4-not-finite": lambda folder: trust_inputs.not_finite(3),
    "5-broken": trust_runs.broken_samples,
    "6-equal": trust_runs.equal_runs,
    "7-precision": lambda folder: trust_inputs.precisions(),
    "8-hostile": trust_inputs.hostile_files,
    "9-fuzz": lambda folder: trust_fuzz.fuzzed_files(folder, 20),
    # so few steps show a leak of batches, not one of a megabyte in a thousand steps
    "10-memory": lambda folder: trust_runs.memory(folder, 400, limit=20.0),
}


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """mmengine tells about each weight of each model."""
    MMLogger.get_instance("trust", log_level="ERROR")


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_check_holds(check, tmp_path):
    rows = list(check(tmp_path / "check"))
    assert rows and [row for row in rows if not row.holds] == []


def test_the_checks_know_every_neck():
    # SCFAEAuxiliary is SCFAE with another loss, for comparisons alone
    assert set(NECKS) == {*FUSIONS, "UDML"} - {"SCFAEAuxiliary"}


def test_the_command_finds_every_check(tmp_path):
    """Each is a generator: called, nothing of it has run."""
    for check in trust.CHECKS.values():
        assert iter(check(trust.Counts(), tmp_path))


def test_a_check_that_does_not_hold_is_seen(tmp_path, monkeypatch):
    """The control: the same check with a loader that runs pickles."""
    from mmengine.runner.checkpoint import CheckpointLoader

    monkeypatch.setitem(CheckpointLoader._schemes, "", lambda path, map_location=None: {"meta": {}})
    assert not next(iter(trust_inputs.hostile_files(tmp_path / "check"))).holds
