"""Tell a model how far training is."""
from __future__ import annotations

import logging

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner

from mmfusion_plugin.fusion.parts import parts_of

__all__ = ["FusionScheduleHook"]


@HOOKS.register_module()
class FusionScheduleHook(Hook):
    """Before each training step, the share of training done goes to every part that has ``set_progress``,
    in averaged weights (``EMAHook``), too.

    UDML's weights and the preprocessor's ``train_noise`` begin at shares of training. The share comes from the
    runner's counters: a resumed run goes on in the stage it was in.

    Args:
        by_epoch: move in whole epochs, so that every epoch is of one stage; needs an epoch-based loop.

    Raises: ValueError for ``by_epoch`` under a loop without epochs.
    """

    priority = "VERY_HIGH"

    def __init__(self, by_epoch: bool = False) -> None:
        self.by_epoch = by_epoch

    def before_train(self, runner: Runner) -> None:
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(
                "FusionScheduleHook.by_epoch=True needs train_cfg.type='EpochBasedTrainLoop', got an iteration-based "
                "loop; leave by_epoch out"
            )
        self._tell(runner)

        self._warn_of_silence(list(runner.model.modules()))

    def _warn_of_silence(self, parts: list) -> None:
        """UDML goes on with what it knows, as in fine-tuning on clean data; from scratch it learns nothing."""
        learning = [what for part in parts if (what := getattr(part, "learns_levels", None))]
        if learning and not any(getattr(part, "injects", False) for part in parts):
            print_log(
                f"{learning[0]} learns from noise of known level, and none is injected: set "
                "data_preprocessor.train_noise", "current", logging.WARNING)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self._tell(runner)

    def _tell(self, runner: Runner) -> None:
        done, whole = (runner.epoch, runner.max_epochs) if self.by_epoch else (runner.iter, runner.max_iters)
        # an average of buffers lags behind: averaged weights would be tested in an earlier stage
        averages = [hook.ema_model for hook in runner.hooks if hasattr(hook, "ema_model")]
        for part in parts_of(runner.model, *averages):
            if hasattr(type(part), "set_progress"):
                part.set_progress(min(done / whole, 1.0))
