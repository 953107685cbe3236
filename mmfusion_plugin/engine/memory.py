"""Where tensors lie: what a processor's allocator does with large ones, and in which order weights are kept."""
from __future__ import annotations

import ctypes
import os
from contextlib import AbstractContextManager

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmfusion_plugin.fusion.modes import constant_weights

__all__ = ["ChannelsLastHook", "ConstantWeightsHook", "keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Let glibc hand out again what is freed, large blocks too, instead of returning them to the system.

    By default every tensor above 32 MiB is a mapping of its own, which the system fills with zeros page by page each
    time: 4 to 15 % of a training step of two ResNet-18 on 480x640 pictures. The process keeps its peak instead of
    giving back what it does not need at the moment.

    Returns: whether it took effect; not with a GPU, with another C library, or where the environment sets
        ``MALLOC_MMAP_MAX_``, ``MALLOC_MMAP_THRESHOLD_`` or ``MALLOC_TRIM_THRESHOLD_`` itself.
    """
    asked = any(f"MALLOC_{key}_" in os.environ for key in ("MMAP_MAX", "MMAP_THRESHOLD", "TRIM_THRESHOLD"))
    if asked or torch.cuda.is_available():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Before a run the weights of two-dimensional convolutions are laid out channels-last, and so are their outputs.

    On a processor a training step of two ResNet-18 takes 0.9 of the time; results differ by rounding. Checkpoints of
    either layout load into the other. Not for models that call ``view`` on what a convolution gave them.
    """

    priority = "VERY_HIGH"

    def before_run(self, runner: Runner) -> None:
        for parameter in runner.model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


@HOOKS.register_module()
class ConstantWeightsHook(Hook):
    """In a validation or test no weight changes, so fusion keeps what it makes of its own: see ``constant_weights``.

    The tools here register it by themselves.
    """

    def __init__(self) -> None:
        self._within: AbstractContextManager | None = None

    def before_val_epoch(self, runner: Runner) -> None:
        self._close()  # one that an exception ended
        # a hook that exchanges the weights (EMAHook) may come after this one: they are first looked at in a prediction
        self._within = constant_weights(runner.model)
        self._within.__enter__()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._close()

    before_test_epoch, after_test_epoch = before_val_epoch, after_val_epoch

    def before_train_epoch(self, runner: Runner) -> None:
        self._close()

    def _close(self) -> None:
        if self._within is not None:
            self._within.__exit__(None, None, None)
            self._within = None
