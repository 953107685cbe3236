"""Trainings that are killed, run out of disk or find damaged checkpoints, against unbroken ones."""
from __future__ import annotations

import resource
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.runner import EpochBasedTrainLoop

pytest.importorskip("mmaction")
pytest.importorskip("mmseg")
import trust_cases as cases

from mmfusion_plugin.engine.checkpoint import SafeCheckpointHook


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return cases.write_frames(tmp_path_factory.mktemp("frames"))


def trained(work_dir: Path, data: Path, task: str = "recognition", resume=False, expect=0, load_from=None,
            limits=lambda: None, die_at=None, **options) -> str:
    """One training in a process of its own; what it wrote. ``die_at``: kill it before that step."""
    log = work_dir / "out.txt"

    def work():
        if die_at is not None:
            cases.die_before(die_at)
        cases.train(cases.training(task, work_dir, data, log_level="INFO", **options), resume, load_from)

    code = cases.finish(cases.start(work, log, limits), patience=60)
    text = log.read_text()
    assert code == (-9 if die_at is not None else expect), text[-3000:]
    return text


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    """{(loop, workers): final state}"""
    found = {}
    for by_epoch in (True, False):
        work_dir = tmp_path_factory.mktemp("unbroken")
        trained(work_dir, data, by_epoch=by_epoch)
        found[by_epoch] = cases.final(work_dir)
    return found


@pytest.mark.parametrize(("by_epoch", "workers", "deaths"), [
    (True, 2, [2, 8]), (True, 0, [5, 10]), (False, 2, [7, 11])])
def test_a_killed_and_resumed_run_equals_the_unbroken_one(data, tmp_path, unbroken, by_epoch, workers, deaths):
    """UDML in each of its stages, saved within epochs, EMA, and noise from every generator."""
    for i, step in enumerate(deaths):
        trained(tmp_path, data, by_epoch=by_epoch, workers=workers, resume=i > 0, die_at=step)
    trained(tmp_path, data, by_epoch=by_epoch, workers=workers, resume=True)
    assert list(cases.differences(unbroken[by_epoch], cases.final(tmp_path))) == []


def test_validation_leaves_training_as_it_is(data, tmp_path, unbroken):
    trained(tmp_path, data, val_cfg=None, val_dataloader=None, val_evaluator=None)
    assert list(cases.differences(unbroken[True], cases.final(tmp_path))) == []


def test_a_checkpoint_with_a_new_best_score_goes_on_as_if_nothing_had_been_validated():
    hook, loader = SafeCheckpointHook(), torch.utils.data.DataLoader(range(4))
    hook._batches = SimpleNamespace(batch_size=1, sampler=None)
    runner = SimpleNamespace(model=torch.nn.Linear(1, 1), train_loop=SimpleNamespace(dataloader=loader))
    before = torch.get_rng_state()
    hook.before_val(runner)
    torch.rand(3)
    assert torch.equal(hook._resume_state(runner, dict(epoch=0, iter=0))["random"][0]["torch"], before)
    hook.after_val(runner)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_first_epoch_after_resuming_counts_its_batches_from_where_it_was():
    counted = []

    class Loop:
        def run_iter(self, idx, data_batch):
            counted.append(idx)

    hook = SafeCheckpointHook()
    hook._batches, hook._skipped, hook._restore = SimpleNamespace(endless=False), 3, lambda runner: None
    runner = SimpleNamespace(epoch=1, iter=13, train_loop=Loop())
    hook.before_train_epoch(runner)
    for idx in range(2):
        runner.train_loop.run_iter(idx, None)
    assert counted == [3, 4] and hook._batches.skip == 3 and hook._began == (1, 10)


def test_an_order_drawn_without_a_seed_is_that_of_the_checkpoint():
    loop = object.__new__(EpochBasedTrainLoop)
    loop._iter = loop._epoch = 0
    loop.dataloader = torch.utils.data.DataLoader(range(8), sampler=DefaultSampler(range(8), seed=1))
    hook = SafeCheckpointHook()
    hook._resumed = dict(sampler_seed=7, batches_done=0, batches_per_epoch=8)
    hook._take_over_data(SimpleNamespace(train_loop=loop, seed=0))
    assert loop.dataloader.batch_sampler.sampler.seed == 7


def test_mmengines_own_hook_fails_that_comparison(data, tmp_path):
    """The control: else the comparison might see nothing."""
    hook = dict(type="CheckpointHook")
    trained(tmp_path / "whole", data, by_epoch=False, hook=hook)
    trained(tmp_path / "broken", data, by_epoch=False, hook=hook, die_at=7)
    trained(tmp_path / "broken", data, by_epoch=False, hook=hook, resume=True)
    found = list(cases.differences(cases.final(tmp_path / "whole"), cases.final(tmp_path / "broken")))
    assert any(".state_dict" in where for where in found)


def test_segmentation_killed_within_its_validation_makes_up_for_it(data, tmp_path):
    hook = dict(by_epoch=True, interval=1, save_best="samples", rule="greater")
    options = dict(task="segmentation", hook=hook, steps=8)
    trained(tmp_path / "whole", data, **options)
    trained(tmp_path / "broken", data, die_at="validation", **options)
    assert not list((tmp_path / "broken").glob("best_*"))
    text = trained(tmp_path / "broken", data, resume=True, workers=2, **options)
    assert "the run ended before the validation that follows this checkpoint: now" in text
    assert [p.name for p in sorted((tmp_path / "broken").glob("best_*.pth"))] == ["best_samples_epoch_1.pth"]
    assert list(cases.differences(cases.final(tmp_path / "whole"), cases.final(tmp_path / "broken"))) == []


def test_resuming_passes_over_damaged_checkpoints_and_says_so(data, tmp_path, unbroken):
    trained(tmp_path, data, hook=dict(max_keep_ckpts=4), die_at=11)
    for number in (9, 6):
        path = tmp_path / f"iter_{number}.pth"
        path.write_bytes(path.read_bytes()[:-7])
    text = trained(tmp_path, data, resume=True)
    assert "iter_9.pth is damaged" in text and "iter_6.pth is damaged" in text
    assert "resuming from the newest good checkpoint instead" in text and "iter: 3" in text
    assert list(cases.differences(unbroken[True], cases.final(tmp_path))) == []
    for path in tmp_path.glob("iter_*.pth"):
        path.write_bytes(b"")
    text = trained(tmp_path, data, resume=True, expect=1)
    assert "none of the" in text and "can be resumed from" in text
    text = trained(tmp_path, data, resume=True, expect=1, load_from=str(tmp_path / "iter_12.pth"))
    assert "iter_12.pth is damaged" in text


def test_a_full_disk_leaves_the_last_checkpoint_and_its_pointer(data, tmp_path):
    trained(tmp_path, data, hook=dict(max_keep_ckpts=1, interval=3), die_at=4)
    size = (tmp_path / "iter_3.pth").stat().st_size

    def limits():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    text = trained(tmp_path, data, hook=dict(max_keep_ckpts=1, interval=3), resume=True, expect=1, limits=limits)
    assert "iter_6.pth could not be written" in text and "earlier checkpoints are untouched" in text
    assert Path((tmp_path / "last_checkpoint").read_text()).name == "iter_3.pth"
    assert [p.name for p in tmp_path.glob("*.pth*") if "sha256" not in p.name] == ["iter_3.pth"]
    trained(tmp_path, data, hook=dict(max_keep_ckpts=1, interval=3), resume=True)
    assert [p.name for p in tmp_path.glob("*.pth")] == ["iter_12.pth"]


@pytest.mark.parametrize(("batches", "said"), [
    (dict(batch_size=2), "now they are {'batches_per_epoch': 7, 'batch_size': 2"),
    (dict(batch_size=3, drop_last=True), "now they are {'batches_per_epoch': 4, 'batch_size': 3")])
def test_resuming_within_an_epoch_refuses_other_batches(data, tmp_path, batches, said):
    trained(tmp_path, data, die_at=4)
    loader = cases.training("recognition", tmp_path, data).train_dataloader
    text = trained(tmp_path, data, resume=True, expect=1, train_dataloader=loader | batches)
    assert "3 batches into an epoch of {'batches_per_epoch': 4, 'batch_size': 4, 'samples': 14" in text and said in text


@pytest.mark.parametrize("saved_by_epoch", [True, False])
def test_batches_may_change_at_the_end_of_an_epoch(data, tmp_path, saved_by_epoch):
    hook = dict(by_epoch=saved_by_epoch, interval=1 if saved_by_epoch else 2, max_keep_ckpts=-1)
    trained(tmp_path, data, hook=hook, die_at=4)
    loader = cases.training("recognition", tmp_path, data).train_dataloader
    options = dict(hook=hook, resume=True, train_dataloader=dict(loader, batch_size=2))
    trained(tmp_path, data, die_at=4 + 5, **options)  # within an epoch of 7 behind one of 4
    trained(tmp_path, data, **options)
    assert cases.final(tmp_path)["counters"] == dict(epoch=3 if saved_by_epoch else 2, iter=4 + 7 + 7)


def test_going_on_elsewhere_leaves_the_other_runs_best_checkpoint(data, tmp_path):
    hook = dict(by_epoch=True, interval=1, max_keep_ckpts=-1, save_best="samples", rule="greater")
    trained(tmp_path / "first", data, hook=hook, steps=8)
    before = sorted((tmp_path / "first").glob("*.pth"))
    loader = cases.training("recognition", tmp_path, data).val_dataloader
    better = loader | dict(dataset=loader.dataset | dict(number=20))
    trained(tmp_path / "fork", data, hook=hook, resume=True, load_from=str(before[-1]), val_dataloader=better)
    assert list((tmp_path / "fork").glob("best_*")) and sorted((tmp_path / "first").glob("*.pth")) == before


def test_random_numbers_depend_on_seed_epoch_and_number_alone():
    from mmfusion_plugin.engine.data_order import Place, SeededDataset

    class Draws:
        def __getitem__(self, index):
            return float(torch.rand(())), index

    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = SeededDataset(Draws(), 1)
    values = [one[Place(e, n, 0)][0] for e in range(3) for n in range(3)]
    assert len(set(values)) == 9 and values[4] == one[Place(1, 1, 0)][0]
    assert SeededDataset(Draws(), 2)[Place(1, 1, 0)][0] != values[4]
    assert torch.equal(torch.get_rng_state(), before)
