from __future__ import annotations

import argparse
import io
import json
import os
import signal
import time
from pathlib import Path

import pytest

from mmfusion_plugin.analysis import Job, add_table_arguments, read_results, render, run_table, run_table_tool
from mmfusion_plugin.analysis.table_runs import TableError


def write_config(folder: Path, **more: object) -> str:
    path = folder / "config.py"
    path.write_text("\n".join(f"{k} = {v!r}" for k, v in dict(lr=0.1, data_root="here", **more).items()))
    return str(path)


def job(folder: Path, row: str = "a", seed: int = 0, **overrides: object) -> Job:
    return Job(row, write_config(folder), seed, overrides)


def fake(job: Job, folder: Path) -> dict:
    """Counts its calls in a file per job; does what the row's name says."""
    print(f"training {job.row}")
    assert not list(folder.iterdir()), "what a killed run logged is not this run's"
    (folder / "log").touch()
    with open(f"{folder}.calls", "a") as file:
        file.write("x")
    if job.row == "raises":
        raise RuntimeError("no such sensor")
    if job.row == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.row == "unwritable":
        return dict(metrics=object())
    return dict(metrics=dict(complete=dict(mIoU=50.0 + job.seed)), pid=os.getpid())


def run(jobs: list[Job], results: Path, **options: object):
    # fork: the children need no second import of mmsegmentation
    return run_table(jobs, results, fake, start_method="fork", out=io.StringIO(), **options)


def calls(results: Path) -> int:
    return sum(len(path.read_text()) for path in results.parent.glob("*_runs/*.calls"))


def test_a_second_call_trains_only_what_is_new(tmp_path):
    results = tmp_path / "table.jsonl"
    first = run([job(tmp_path, "a", seed) for seed in (0, 1)], results)
    second = run([job(tmp_path, "a", seed) for seed in (0, 1, 2)], results)
    assert (len(first.trained), len(second.trained), len(second.skipped)) == (2, 1, 2)
    assert calls(results) == 3
    assert sorted(r["metrics"]["complete"]["mIoU"] for r in read_results(results)) == [50.0, 51.0, 52.0]


def test_a_torn_last_line_is_trained_again_and_the_file_stays_whole(tmp_path):
    results = tmp_path / "table.jsonl"
    jobs = [job(tmp_path, "a", seed) for seed in (0, 1)]
    run(jobs, results, workers=1)
    text = results.read_text()
    results.write_text(text[:-20])
    assert len(run(jobs, results).trained) == 1
    assert {r["seed"] for r in map(json.loads, results.read_text().splitlines())} == {0, 1}


def test_failures_are_recorded_not_retried_and_do_not_stop_the_others(tmp_path):
    results = tmp_path / "table.jsonl"
    rows = ["raises", "dies", "unwritable", "a", "b"]
    jobs = [job(tmp_path, row, name=row) for row in rows]
    summary = run(jobs, results, workers=2)
    assert {r["row"] for r in read_results(results)} == {"a", "b"}
    failures = {r["row"]: r["error"] for r in read_results(tmp_path / "table.failures.jsonl")}
    assert set(failures) == {"raises", "dies", "unwritable"}
    assert "no such sensor" in failures["raises"] and "exit code -9" in failures["dies"]
    assert len(summary.failed) == 3

    before = calls(results)
    again = run(jobs, results)
    assert (calls(results), len(again.failed), len(again.skipped)) == (before, 3, 2)
    assert len(run(jobs, results, retry_failed=True).failed) == 3
    assert calls(results) == before + 3


def test_output_goes_to_a_log_per_job(tmp_path):
    results = tmp_path / "table.jsonl"
    run([job(tmp_path, "raises")], results)
    (log,) = (tmp_path / "table_runs").glob("*.log")
    assert "training raises" in log.read_text() and "no such sensor" in log.read_text()


def test_one_worker_process_serves_many_jobs(tmp_path):
    results = tmp_path / "table.jsonl"
    run([job(tmp_path, "a", seed) for seed in range(4)], results, workers=1)
    assert len({r["pid"] for r in read_results(results)}) == 1


def test_the_key_follows_settings_and_seed_but_not_the_data_root(tmp_path):
    here = write_config(tmp_path)
    base = Job("a", here)
    assert Job("another name", here, paths=dict(data_root="there")).key() == base.key()
    assert Job("a", here, overrides=dict(lr=0.2)).settings() != base.settings()
    assert Job("a", here, channels_last=True).settings() != base.settings()
    assert Job("a", here, evaluations={"complete": [], "without x": ["x"]}).settings() != base.settings()
    other = Job("a", here, seed=1)
    assert other.key() != base.key() and other.settings() == base.settings()


def test_a_changed_config_file_is_trained_again(tmp_path):
    results = tmp_path / "table.jsonl"
    run([job(tmp_path)], results)
    (tmp_path / "config.py").write_text("lr = 0.3")
    assert len(run_table([Job("a", str(tmp_path / "config.py"))], results, fake, start_method="fork",
                         out=io.StringIO()).trained) == 1


def test_jobs_that_repeat_each_other_are_refused(tmp_path):
    with pytest.raises(ValueError, match="repeat"):
        run([job(tmp_path, "a"), job(tmp_path, "b")], tmp_path / "table.jsonl")


def test_two_runs_of_one_file_are_refused(tmp_path):
    import fcntl

    results = tmp_path / "table.jsonl"
    with open(results, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TableError, match="another run"):
            run([job(tmp_path)], results)


def test_a_broken_line_is_named(tmp_path):
    results = tmp_path / "table.jsonl"
    results.write_text('{"key": "a"}\nnonsense\n')
    with pytest.raises(ValueError, match="line 2"):
        read_results(results)


@pytest.mark.parametrize("content", [
    "my notes", "my notes\nwithout end", '{"row": "no key"}', '{"key": "a"}\nmy notes', '{"key": "a"}\nmy notes\n'])
def test_a_file_of_something_else_stays_as_it_is(tmp_path, content):
    results = tmp_path / "notes.txt"
    results.write_text(content)
    with pytest.raises(TableError, match=r"notes\.txt.*another file"):
        run([job(tmp_path)], results)
    assert results.read_text() == content


def test_a_record_that_lacks_its_end_alone_is_kept(tmp_path):
    results = tmp_path / "table.jsonl"
    run([job(tmp_path)], results)
    results.write_text(results.read_text().rstrip())
    assert len(read_results(results)) == 1
    assert len(run([job(tmp_path), job(tmp_path, seed=1)], results).skipped) == 1
    assert [r["seed"] for r in map(json.loads, results.read_text().splitlines())] == [0, 1]


@pytest.mark.parametrize(("words", "said"), [(["--workers", "0"], "--workers 0: at least 1"), ([], "jobs repeat")])
def test_what_a_table_command_cannot_do_is_a_line(tmp_path, capsys, words, said):
    parser = argparse.ArgumentParser()
    add_table_arguments(parser, "here", str(tmp_path / "table.jsonl"), "anything")
    args = parser.parse_args([*words, "--seeds", "0", "0", "--data-root", str(tmp_path)])
    (tmp_path / "list.txt").touch()
    assert run_table_tool(args, [job(tmp_path, seed=seed) for seed in args.seeds], [], "", reads="list.txt") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_what_is_there_is_listed_and_printed_without_the_data(tmp_path, capsys):
    results = tmp_path / "table.jsonl"
    run([job(tmp_path)], results)
    parser = argparse.ArgumentParser()
    add_table_arguments(parser, "nowhere", str(results), "anything")

    def tool(*words: str) -> tuple[int, str, str]:
        args = parser.parse_args(words)
        code = run_table_tool(
            args, [job(tmp_path)], [], "", draw=lambda found: f"{len(found)} rows", reads="list.txt")
        return code, *capsys.readouterr()

    code, _, error = tool("--render")
    assert (code, error) == (2, "no list.txt in --data-root nowhere; see Data in README.md\n")
    assert tool("--render-only")[:2] == (0, "1 rows\n\n\nBold: within one standard deviation of the column's best.\n")
    code, listed, _ = tool("--list-rows")
    assert code == 0 and job(tmp_path).row in listed


def sleep(job: Job, folder: Path) -> dict:
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(60)
    return {}


def test_workers_die_with_a_killed_runner(tmp_path):
    results = tmp_path / "table.jsonl"
    runner = os.fork()
    if runner == 0:
        run_table([job(tmp_path)], results, sleep, start_method="fork", out=io.StringIO())
        os._exit(0)

    def wait_for(condition) -> bool:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.05)
        return False

    pids = lambda: [p.read_text() for p in (tmp_path / "table_runs").glob("*/pid") if p.read_text()]  # noqa: E731
    assert wait_for(pids)
    worker = int(pids()[0])
    os.kill(runner, signal.SIGKILL)
    os.waitpid(runner, 0)
    assert wait_for(lambda: not _runs(worker))


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def record(row: str, seed: int, settings: str = "s", **scores: float) -> dict:
    return dict(row=row, seed=seed, settings=settings, parameters=2_000_000, neck_parameters=500_000,
                train_seconds=10.0, evaluation_seconds=2.0,
                metrics={name: dict(mIoU=score) for name, score in scores.items()})


def test_the_table_shows_mean_and_sample_deviation_and_marks_the_best():
    # means 62, 61 and 50; sample deviations 2, 1 and 0
    records = [record("best", s, complete=v) for s, v in enumerate((60, 62, 64))]
    records += [record("close", s, complete=v, missing=v) for s, v in enumerate((60, 61, 62))]
    records += [record("far", s, complete=50) for s in range(2)]
    lines = render(records, ["complete", "missing"], ["far", "best", "close"]).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| far", "| best", "| close"]
    assert lines[2] == "| far | 50.0 ± 0.0 | - | 12 | 2 | 2.00 (0.50) |"
    assert lines[3].startswith("| best | **62.0 ± 2.0** | - | 12 | 3 |")
    assert lines[4].startswith("| close | **61.0 ± 1.0** | **61.0 ± 1.0** | 12 | 3 |")


def test_a_table_of_small_models_counts_parameters_in_thousands():
    small = {**record("a", 0, complete=50), "parameters": 59_400, "neck_parameters": 8_256}
    lines = render([small], ["complete"]).splitlines()
    assert "thousands" in lines[0] and "| 59 (8) |" in lines[2]
    large = {**record("b", 0, complete=50), "parameters": 2_000_000, "neck_parameters": 500_000}
    assert "| 0.06 (0.01) |" in render([small, large], ["complete"]), "one unit for all rows"


def test_the_table_refuses_mixed_settings_and_doubled_seeds():
    with pytest.raises(ValueError, match="mixes"):
        render([record("a", 0, "s", complete=1), record("a", 1, "t", complete=1)], ["complete"])
    with pytest.raises(ValueError, match="twice"):
        render([record("a", 0, complete=1), record("a", 0, complete=1)], ["complete"])
