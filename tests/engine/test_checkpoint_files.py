"""Checkpoints on disk: whole or absent, checked, searched, and never run."""
from __future__ import annotations

import hashlib
import io
import os
import pickle
import random
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from mmengine.runner.checkpoint import CheckpointLoader

from mmfusion_plugin.engine import checkpoint_files as files
from mmfusion_plugin.engine.checkpoint_files import CheckpointError


def write(path: Path, value: float = 1.0) -> Path:
    torch.save(dict(state_dict=dict(w=torch.full((50,), value)), meta=dict(iter=1)), f"{path}.partial")
    files.commit(path)
    return path


class Touch:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_committed_file_has_the_checksum_that_sha256sum_checks(tmp_path):
    path = write(tmp_path / "a.pth")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth", "a.pth.sha256"]
    done = subprocess.run(["sha256sum", "-c", "a.pth.sha256"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files.verify(path)


@pytest.mark.parametrize("step", range(12))
def test_whatever_stops_a_replacement_a_whole_file_with_its_checksum_is_left(tmp_path, monkeypatch, step):
    """The process dies at every call that changes the disk, one after the other."""
    path = write(tmp_path / "a.pth", 1.0)
    torch.save(dict(state_dict=dict(w=torch.full((50,), 2.0))), f"{path}.partial")

    class Killed(BaseException):
        pass

    calls = iter(range(100))
    for module, name in ((os, "replace"), (files, "_flush"), (Path, "write_text")):
        real = getattr(module, name)

        def dying(*args, real=real, **kwargs):
            if next(calls) == step:
                raise Killed
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, dying)
    try:
        files.commit(path)
        finished = True
    except Killed:
        finished = False
    monkeypatch.undo()
    assert finished == (step > 10)
    value = float(files.load_from_local(str(path))["state_dict"]["w"][0])
    assert value in (1.0, 2.0) and (value == 2.0 or not finished)


def test_every_truncation_and_bit_flip_is_found_and_named(tmp_path):
    path = write(tmp_path / "a.pth")
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(30):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        for damaged in (bytes(data), whole[: rng.randrange(len(whole))]):
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"a\.pth is damaged: its sha256"):
                files.load_from_local(str(path))


def test_without_a_checksum_the_archives_own_hold(tmp_path):
    path = write(tmp_path / "a.pth")
    files.sidecar(path).unlink()
    files.verify(path)
    whole = path.read_bytes()
    at = whole.index(torch.full((50,), 1.0).numpy().tobytes())
    path.write_bytes(whole[:at] + b"\x01" + whole[at + 1:])
    with pytest.raises(CheckpointError, match="checksum of .* does not hold"):
        files.verify(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"a\.pth is damaged"):
        files.verify(path)
    path.write_bytes(whole)
    files.sidecar(path).write_text("nonsense")
    with pytest.raises(CheckpointError, match="holds no sha256"):
        files.verify(path)


def test_the_newest_good_one_is_found_and_the_others_are_named(tmp_path):
    for number in (2, 10, 9):
        write(tmp_path / f"iter_{number}.pth")
    write(tmp_path / "best_acc_iter_99.pth")
    files.point_to(tmp_path, tmp_path / "iter_10.pth")
    paths = files.candidates(tmp_path, tmp_path, "iter_{}.pth")
    assert [path.name for path in paths] == ["iter_10.pth", "iter_9.pth", "iter_2.pth"]
    assert files.newest_good(paths) == (tmp_path / "iter_10.pth", [])
    for number in (10, 9):
        (tmp_path / f"iter_{number}.pth").write_bytes(b"half")
    found, wrong = files.newest_good(paths)
    assert found == tmp_path / "iter_2.pth" and ["iter_10" in wrong[0], "iter_9" in wrong[1]] == [True, True]
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    found, wrong = files.newest_good(files.candidates(moved, moved, "iter_{}.pth"))
    assert found == moved / "iter_2.pth" and "no such checkpoint" in wrong[0]
    assert files.candidates(tmp_path / "none", tmp_path / "none", "iter_{}.pth") == []
    write(moved / "iter_000011.pth")
    assert [p.name for p in files.candidates(moved, moved, "iter_{:06d}.pth")][2] == "iter_000011.pth"
    assert [p.name for p in files.candidates(moved, moved, "iter_2.pth")][2:] == ["iter_2.pth"]


@pytest.mark.parametrize("left", [b"", b"\0" * 40, b"x" * 5000, b"/y" * 5000, b"\xff\xfe/iter_3.pth", b"."])
def test_a_pointer_of_any_bytes_leaves_the_checkpoints_beside_it_to_be_found(tmp_path, left):
    path = write(tmp_path / "iter_2.pth")
    (tmp_path / files.POINTER).write_bytes(left)
    found, wrong = files.newest_good(files.candidates(tmp_path, tmp_path, "iter_{}.pth"))
    assert found == path and all("no such checkpoint" in reason for reason in wrong)


def test_mmengine_loads_through_this_and_runs_nothing(tmp_path, monkeypatch):
    mark, path = tmp_path / "ran", tmp_path / "bad.pth"
    # with it, torch.load's default is to run pickles
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for hostile in (dict(state_dict=Touch(mark)), Touch(mark)):
        torch.save(hostile, path)
        with pytest.raises(CheckpointError, match=r"bad\.pth cannot be loaded as weights .*system.*would run code"):
            CheckpointLoader.load_checkpoint(str(path), map_location="cpu")
        path.write_bytes(pickle.dumps(hostile))
        with pytest.raises(CheckpointError, match=r"bad\.pth"):
            CheckpointLoader.load_checkpoint(str(path), map_location="cpu")
    assert not mark.exists()


def test_text_that_mmengine_would_run_when_it_resumes_is_taken_out(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(dict(meta=dict(config="raise SystemExit('executed')", iter=3), state_dict={}), path)
    assert CheckpointLoader.load_checkpoint(str(path), map_location="cpu")["meta"] == dict(iter=3)


def test_an_archive_that_unpacks_to_much_more_is_refused(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (8 << 20))
    files.sidecar(path).write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  bomb.pth\n")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"^\S*bomb\.pth: \d+ bytes would unpack to 8388608"):
            files.load_from_local(str(path))
        files.sidecar(path).unlink(missing_ok=True)


def test_what_torch_wrote_before_1_6_loads(tmp_path):
    path, buffer = tmp_path / "old.pth", io.BytesIO()
    torch.save(dict(w=torch.ones(2)), buffer, _use_new_zipfile_serialization=False)
    path.write_bytes(buffer.getvalue())
    assert files.load_from_local(str(path))["w"].tolist() == [1, 1]
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        files.load_from_local(str(tmp_path / "none.pth"))
