"""Checkpoints that survive a kill, a full disk and a flipped bit, and from which training goes on bit for bit."""
from __future__ import annotations

import bisect
import os
import shutil
from collections import deque
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, broadcast_object_list, get_rank, get_world_size, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from . import checkpoint_files as files
from .data_order import NumberedBatches, ResumedBatches, random_states, restore_random_states, seeded_loader

__all__ = ["SafeCheckpointHook"]

MIB = 1 << 20
STATE = "resume_state"  # in the checkpoint, beside mmengine's own


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, with its arguments, made safe against interruptions and exact in resuming.

    - A checkpoint is written beside its target, flushed, renamed, and gets a checksum (``NAME.sha256``). Only then
      ``last_checkpoint`` names it, and only then older ones are deleted, best ones too.
    - Resuming without a name takes the newest checkpoint that is whole, and says which ones it passed over.
    - A checkpoint holds the random states and buffers of all ranks, and the position within the epoch. A resumed run
      equals the unbroken one bit for bit, where the device computes alike twice: weights, optimiser, EMA, buffers. A
      validation that a kill cut short is made up for.
    - Each training sample draws its random numbers (python, numpy, torch) from seed, epoch and its number in the
      epoch. So results do not depend on ``num_workers``, and differ from those of runs without this hook.

    Not kept: gradients between the steps of ``accumulative_counts`` (mmengine warns), the patience of an
    EarlyStoppingHook, generators that a transform holds itself.

    Args:
        args, kwargs: as of CheckpointHook; ``out_dir`` has to be a local folder. ``by_epoch=False`` with an
            epoch-based loop saves within epochs.

    Raises: ValueError for a remote folder, another loop than mmengine's two, an own strategy (FSDP, DeepSpeed: keep
        CheckpointHook), or a change of the batches when resuming within an epoch; CheckpointError if every checkpoint
        is damaged; OSError, naming file and free space, if a checkpoint cannot be written: what was there stays.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._resumed: dict | None = None
        self._state: dict | None = None  # of the checkpoint that is being written
        self._before_validation: dict | None = None
        self._validation_due = False
        self._batches: NumberedBatches | None = None
        self._skipped = 0
        self._began = -1, 0  # the running epoch, and the iteration of its first batch

    # --- which checkpoint to go on from

    def before_run(self, runner: Runner) -> None:
        if hasattr(runner, "strategy"):
            raise ValueError(
                "default_hooks.checkpoint.type='SafeCheckpointHook' works with runner_type='Runner'; with "
                "FlexibleRunner the strategy writes checkpoints: take type='CheckpointHook'"
            )
        if not runner._resume or runner._load_from is not None:
            return
        answer: list[Any] = [None, [], None]
        if is_main_process():
            paths = files.candidates(runner.work_dir, self._folder(runner), self.filename_tmpl)
            found, wrong = files.newest_good(paths)
            answer = [None if found is None else str(found), wrong, len(paths)]
        broadcast_object_list(answer)
        found, wrong, number = answer
        if found is None and number:
            raise files.CheckpointError(
                f"none of the {number} checkpoints in {runner.work_dir} can be resumed from: {'; '.join(wrong)}"
            )
        if found is None:
            runner.logger.warning(f"nothing to resume from in {runner.work_dir}: training starts from its beginning")
            return
        for reason in wrong:
            runner.logger.warning(f"passed over: {reason}")
        if wrong:
            runner.logger.warning(f"resuming from the newest good checkpoint instead: {found}")
        runner._load_from = found

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not runner._resume:
            return
        self._resumed = checkpoint.get(STATE)
        if self._resumed is None:
            runner.logger.warning(
                "the checkpoint holds no random states, as best ones and those of another hook: training goes on, but "
                "not exactly as an unbroken run"
            )
        elif len(self._resumed["random"]) != get_world_size():
            runner.logger.warning(
                f"the checkpoint was written by {len(self._resumed['random'])} processes, now there are "
                f"{get_world_size()}: training goes on, but not exactly as an unbroken run"
            )

    # --- from there, exactly as before

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if not isinstance(self.file_backend, LocalBackend):
            raise ValueError(
                f"default_hooks.checkpoint.out_dir={self.out_dir!r}: SafeCheckpointHook renames files, which only a "
                "local folder can; take type='CheckpointHook' for other storage"
            )
        if is_main_process():
            self._sweep()
        self._take_over_data(runner)
        if self._resumed is None:
            return
        self.last_ckpt = runner.message_hub.runtime_info.get("last_ckpt")
        if not self._skipped:
            self._restore(runner)
        if self._resumed["validation_due"] and runner.val_loop is not None:
            runner.logger.info("the run ended before the validation that follows this checkpoint: now")
            runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        self._batches.epoch = runner.epoch
        self._began = runner.epoch, 0 if self._batches.endless else runner.iter - self._skipped
        if not self._skipped:
            return
        loop, skipped = runner.train_loop, self._skipped
        self._skipped, self._batches.skip = 0, skipped
        # the loop counts the batches of an epoch from 0, hooks go by that number
        loop.run_iter = lambda idx, data_batch: type(loop).run_iter(loop, idx + skipped, data_batch)
        self._restore(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        runner.train_loop.__dict__.pop("run_iter", None)
        super().after_train_epoch(runner)

    def before_val(self, runner: Runner) -> None:
        self._before_validation = random_states()

    def after_val(self, runner: Runner) -> None:
        # training draws the same whether or not there is a validation
        if self._before_validation is not None:
            restore_random_states(self._before_validation)
        self._before_validation = None

    def _take_over_data(self, runner: Runner) -> None:
        loop = runner.train_loop
        endless = isinstance(loop, IterBasedTrainLoop)
        if not endless and not isinstance(loop, EpochBasedTrainLoop):
            raise ValueError(
                "SafeCheckpointHook works with train_cfg.type='EpochBasedTrainLoop' or 'IterBasedTrainLoop', got "
                f"{type(loop).__name__}; take type='CheckpointHook'"
            )
        if isinstance(loop.dataloader.batch_sampler, NumberedBatches):  # a second train() of one runner
            loader = loop.dataloader
        else:
            loader = seeded_loader(loop.dataloader, runner.seed, endless)
        sampler = loader.batch_sampler.sampler
        if self._resumed is not None and hasattr(sampler, "seed") and self._resumed["sampler_seed"] is not None:
            sampler.seed = self._resumed["sampler_seed"]  # without randomness.seed, each start draws another one
        self._batches = loader.batch_sampler
        if endless:
            loop.dataloader_iterator = None  # mmengine's has begun to prefetch
            loop.dataloader = loader
            loop.dataloader_iterator = ResumedBatches(loader, loop.iter)
            return
        loop.dataloader = loader
        if self._resumed is not None:
            self._skipped = self._batches_done(loop)

    def _batches_done(self, loop: EpochBasedTrainLoop) -> int:
        """Batches to skip: what its epoch has had; all of them where it had ended the epoch."""
        then, now = self._resumed, self._layout(loop)
        # absent from checkpoints of before 2026-11-26
        done = then.get("batches_done", loop.iter - loop.epoch * then["batches_per_epoch"])
        if done in (0, then["batches_per_epoch"]):
            return done and now["batches_per_epoch"]
        then = {key: then.get(key, value) for key, value in now.items()}
        if then != now:
            raise ValueError(
                f"the checkpoint was written after iteration {loop.iter}, {done} batches into an epoch of {then}; now "
                f"they are {now}. Resume with train_dataloader.batch_size, data and number of processes of then, or "
                "from a checkpoint at the end of an epoch"
            )
        return done

    def _layout(self, loop: EpochBasedTrainLoop | IterBasedTrainLoop) -> dict[str, int | None]:
        """What has to be the same for a place in an epoch to be the same."""
        return dict(batches_per_epoch=len(loop.dataloader), batch_size=self._batches.batch_size,
                    samples=len(loop.dataloader.dataset), processes=get_world_size())

    @torch.no_grad()
    def _restore(self, runner: Runner) -> None:
        if len(self._resumed["random"]) != get_world_size():
            return  # said when it was loaded
        restore_random_states(self._resumed["random"][get_rank()])
        if self._resumed["buffers"] is not None:
            own = dict(_bare(runner.model).named_buffers())
            for name, stored in self._resumed["buffers"][get_rank()].items():
                own[name].copy_(stored)

    # --- writing

    def _save_checkpoint(self, runner: Runner) -> None:
        self._validation_due = self._validation_follows(runner)
        super()._save_checkpoint(runner)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = []
        if self.max_keep_ckpts > 0:
            ids = [known for known in self.keep_ckpt_ids if known != step] + [step]
            outdated = ids[: -self.max_keep_ckpts]
            # With those to be deleted: a run killed before it has deleted them does so when it resumes.
            runner.message_hub.update_info("keep_ckpt_ids", ids)
            self.keep_ckpt_ids = deque(ids[len(outdated):], self.max_keep_ckpts)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = os.path.join(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        self._state = self._resume_state(runner, meta)
        try:
            self._write(runner, name, save_optimizer=self.save_optimizer, meta=meta, by_epoch=self.by_epoch,
                        save_param_scheduler=self.save_param_scheduler, **self.args)
        finally:
            self._state = None
        if is_main_process():
            files.point_to(runner.work_dir, self.last_ckpt)
            for known in outdated:
                files.remove(Path(self.out_dir) / self.filename_tmpl.format(known))
        if self.max_keep_ckpts > 0:
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        if "auto" in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        several = len(self.key_indicators) > 1
        hub, done = runner.message_hub, runner.epoch if self.by_epoch else runner.iter
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        improved, outdated = False, []
        for key, rule in zip(self.key_indicators, self.rules):
            if key not in metrics:
                raise ValueError(
                    f"default_hooks.checkpoint.save_best names {key!r}, the evaluation gives {sorted(metrics)}"
                )
            ending = f"_{key}" if several else ""
            best = hub.runtime_info.get(f"best_score{ending}", self.init_value_map[rule])
            if metrics[key] is None or not self.is_better_than[key](metrics[key], best):
                continue
            improved = True
            name = f"best_{key}_{self.filename_tmpl.format(done)}".replace("/", "_")
            path, previous = os.path.join(self.out_dir, name), hub.runtime_info.get(f"best_ckpt{ending}")
            hub.update_info(f"best_score{ending}", metrics[key])
            hub.update_info(f"best_ckpt{ending}", path)
            if several:
                self.best_ckpt_path_dict[key] = path
            else:
                self.best_ckpt_path = path
            self._write(runner, name, save_optimizer=False, save_param_scheduler=False, meta=dict(meta), by_epoch=False)
            runner.logger.info(f"best {key} so far, {metrics[key]:0.4f}: {name}")
            # a resumed checkpoint of another run names that run's best one
            if previous and previous != path and Path(previous).parent.resolve() == Path(self.out_dir).resolve():
                outdated.append(previous)
        if improved and self.last_ckpt is not None:
            # once more, with the new best score; before the old best is gone, which the earlier one names
            self._validation_due = False
            self._save_checkpoint_with_step(runner, done, meta)
        if is_main_process():
            for path in outdated:
                files.remove(path)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self._state is not None:
            checkpoint[STATE] = self._state

    def _write(self, runner: Runner, name: str, **options) -> None:
        path = Path(self.out_dir) / name
        try:
            runner.save_checkpoint(self.out_dir, name + files.PARTIAL, backend_args=self.backend_args, **options)
            if is_main_process():
                files.commit(path)
        except OSError as error:
            Path(f"{path}{files.PARTIAL}").unlink(missing_ok=True)
            free = shutil.disk_usage(self.out_dir).free // MIB if os.path.isdir(self.out_dir) else 0
            raise OSError(
                error.errno,
                f"the checkpoint {path} could not be written ({error.strerror or error}; {free} MiB are free there); "
                "earlier checkpoints are untouched: make room, or set default_hooks.checkpoint.out_dir, and resume"
            ) from error

    def _resume_state(self, runner: Runner, meta: dict) -> dict:
        epoch, first = self._began
        own = self._before_validation or random_states()
        # BatchNorm's statistics are each rank's own; mmengine saves rank 0's
        buffers = {name: x.detach().cpu().clone() for name, x in _bare(runner.model).named_buffers()}
        return dict(
            random=all_gather_object(own), buffers=all_gather_object(buffers) if get_world_size() > 1 else None,
            validation_due=self._validation_due,
            batches_done=meta["iter"] - first if meta["epoch"] == epoch else 0, **self._layout(runner.train_loop),
            sampler_seed=getattr(self._batches.sampler, "seed", None))

    def _validation_follows(self, runner: Runner) -> bool:
        """Whether the loop validates between this checkpoint and the next training step.

        Within an epoch, and at its last iteration, an epoch-based loop comes to its validation by itself.
        """
        loop = runner.train_loop
        by_iteration = isinstance(loop, IterBasedTrainLoop)
        if runner.val_loop is None or self.by_epoch == by_iteration:
            return False
        done, whole = (loop.iter + 1, loop.max_iters) if by_iteration else (loop.epoch + 1, loop.max_epochs)
        interval = loop.dynamic_intervals[bisect.bisect(loop.dynamic_milestones, done + 1) - 1]
        return done >= loop.val_begin and (done % interval == 0 or done == whole)

    def _folder(self, runner: Runner) -> str:
        """Where checkpoints are, before ``before_train`` has made that ``out_dir``."""
        if self.out_dir is None or self.out_dir == runner.work_dir:
            return runner.work_dir
        return os.path.join(self.out_dir, os.path.basename(runner.work_dir.rstrip(os.sep)))

    def _sweep(self) -> None:
        """Delete what a killed run has left half written, and checksums of deleted checkpoints."""
        ending = Path(self.filename_tmpl).suffix
        for pattern in (f"*{ending}{files.PARTIAL}", f"*{ending}{files.SIDECAR}{files.PARTIAL}"):
            for path in Path(self.out_dir).glob(pattern):
                path.unlink(missing_ok=True)
        for path in Path(self.out_dir).glob(f"*{ending}{files.SIDECAR}"):
            if not path.with_suffix("").exists():
                path.unlink(missing_ok=True)


def _bare(model: torch.nn.Module) -> torch.nn.Module:
    """The model within DistributedDataParallel."""
    return model.module if is_model_wrapper(model) else model
