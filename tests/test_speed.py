"""tools/benchmarks/speed.py at toy length: what it lists and fits, never how fast anything was."""
from __future__ import annotations

import importlib
import json

import pytest
import torch

pytest.importorskip("mmaction")
pytest.importorskip("mmseg")


@pytest.fixture
def speed(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "tools" / "benchmarks"))
    return importlib.import_module("speed")


def test_blocks_beside_their_floors(speed, tmp_path, capsys):
    out = tmp_path / "speed.json"
    speed.main(["blocks", "--rows", "SCFAE", "UDML(concat)", "--shapes", "4:16", "1x3x4:16", "--threads", "1",
                "--passes", "forward", "step", "constant", "--rounds", "1", "--seconds", "0", "--json", str(out)])
    records = json.loads(out.read_text())["records"]
    assert [(r["row"], r["shape"], r["run"]) for r in records] == [
        (row, shape, run) for shape in ("4:16", "1x3x4:16") for row in ("SCFAE", "UDML(concat)")
        for run in ("forward", "step", "constant")]
    assert all(r["milliseconds"] > 0 and r["ratio"] > 0 and r["peak_bytes"] > 0 for r in records)
    # a SCFAE block of two modalities: per modality two SwiGLUs of 3, expand, shared, specific; one readout; and per
    # modality a reconstruction, which a prediction does without
    assert [sum(r["floor_by"].values()) for r in records[:3]] == [19, 21, 19]
    assert "| SCFAE | 1x3x4:16 | 1 | step |" in capsys.readouterr().out


def test_the_floor_lists_the_blocks_own_products(speed):
    case = speed.BlockCase(speed.BLOCKS["concat"], dict(a=6, b=4), (1, 2, 3), torch.device("cpu"))
    (product, weight), = speed.products(case.block, case.forward)
    assert (product.rows, product.inputs, product.outputs, product.grid) == (6, 10, 6, (1, 2, 3, 10))
    assert weight is case.block.project.weight
    before = weight.detach().clone()
    floor = speed.Floor([(product, weight)], list(case.block.parameters()), dtype=torch.float32,
                        device=torch.device("cpu"), step=True, rounds=1)
    floor.step()
    assert torch.equal(weight, before)  # made-up gradients move copies alone


@pytest.mark.parametrize("constant", [False, True])
def test_constant_weights_last_as_long_as_the_case(speed, constant):
    case = speed.BlockCase(speed.BLOCKS["SCFAE"], dict(a=6, b=4), (2,), torch.device("cpu"), constant=constant)
    case.forward()
    assert (case.block.kept is not None) == (case.block.readout.kept is not None) == constant
    whole = speed.ModelCase("segmentation", "SCFAE light", 1, (64, 64), torch.device("cpu"), constant=constant)
    assert any(getattr(part, "kept", None) is not None for part in whole.model.modules()) == constant


def test_a_line_is_found_and_what_is_none_is_seen(speed):
    a, b, off = speed.fit([1, 2, 4], [5.0, 7.0, 11.0])
    assert (round(a, 6), round(b, 6), round(off, 6)) == (3, 2, 0)
    assert speed.fit([1, 2, 4], [1.0, 4.0, 16.0])[2] > 0.3


@pytest.mark.parametrize("words", [["--shapes", "32"], ["--rows", "nothing"], ["--modalities", "1"], ["--graphs"]])
def test_what_cannot_be_timed_is_refused(speed, words):
    with pytest.raises(speed.launch.UsageError):
        speed.main(["blocks", *words])
