"""Optimiser wrappers that leave the weights alone where a loss or a gradient is not finite."""
from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn

from mmfusion_plugin.fusion.copies import Copies
from mmfusion_plugin.fusion.parts import parts_of

from .one_group import OneGroup

__all__ = ["GuardedAmpOptimWrapper", "GuardedOptimWrapper", "NonFiniteError"]

GUARD = "guard"  # in the state dict
DTYPES = ("bfloat16", "float16")


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or a gradient that is not finite."""


@OPTIM_WRAPPERS.register_module()
class GuardedOptimWrapper(OptimWrapper):
    """mmengine's OptimWrapper, with its arguments, that skips a step whose loss or gradient is NaN or infinite.

    The check comes before clipping and before the optimiser, so weights and its state stay as they are; buffers that
    the forward pass has made non-finite (BatchNorm's statistics) get their value of before the step. All ranks skip
    together. Skipped steps are counted, in all and in a row, logged, and kept in checkpoints. It costs one
    synchronisation with the device in each step.

    Args:
        patience: skipped steps in a row after which training stops.
        args, kwargs: as of OptimWrapper.

    Raises: NonFiniteError when ``patience`` is used up; ValueError for a patience below 1.
    """

    def __init__(self, *args, patience: int = 20, **kwargs) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"optim_wrapper.patience must be a positive integer, got {patience!r}")
        super().__init__(*args, **kwargs)
        self._as_one_group = OneGroup(self.optimizer)
        self.patience = patience
        self.skipped = self.in_a_row = 0
        self._losses: list[Tensor] = []
        self._model: nn.Module | None = None
        self._before: list[tuple[dict[str, Tensor | None], str, Tensor]] = []  # where, by which name, with what value

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        self._model = model
        if not self._losses:  # the first of the batches that make this step
            places = [(part._buffers, name) for part in parts_of(model) if part._buffers
                      for name, x in part._buffers.items() if x is not None and _may_be_statistics(x)]
            values = Copies([where[name].detach() for where, name in places]).made()
            self._before = [(*place, value) for place, value in zip(places, values)]
        with super().optim_context(model):
            yield

    def backward(self, loss: Tensor, **kwargs) -> None:
        self._losses.append(loss.detach())
        super().backward(loss, **kwargs)

    def step(self, **kwargs) -> None:
        if self._is_finite():
            if self.clip_grad_kwargs:  # outside: in another order the norms add up to another last bit
                self._clip_grad()
            with self._as_one_group():
                self.optimizer.step(**kwargs)

    def state_dict(self) -> dict:
        return super().state_dict() | {GUARD: dict(skipped=self.skipped, in_a_row=self.in_a_row)}

    def load_state_dict(self, state_dict: dict) -> None:
        counts = state_dict.pop(GUARD, {})  # absent from what another wrapper has saved
        self.skipped, self.in_a_row = counts.get("skipped", 0), counts.get("in_a_row", 0)
        super().load_state_dict(state_dict)

    def _is_finite(self) -> bool:
        """Whether the step may be made, the same on all ranks; if not, count, log and put buffers back."""
        losses, self._losses = self._losses, []
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        sound = torch.ones((), device=gradients[0].device if gradients else None)
        for loss in losses:
            sound = sound * torch.isfinite(loss).all()
        if gradients:
            sound = sound * _all_finite(gradients)
        all_reduce(sound, op="min")
        if sound.item():
            self.in_a_row = 0
            return True
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        reason = self._reason(losses)
        self._put_back()
        self.message_hub.update_info("skipped_steps", self.skipped)
        print_log(f"optimiser step skipped ({self.skipped} in all, {self.in_a_row} in a row): {reason}",
                  logger="current", level=logging.WARNING)
        if self.in_a_row >= self.patience:
            raise NonFiniteError(
                f"{self.in_a_row} steps in a row had a loss or gradient that is not finite (the last: {reason}). The "
                "weights are those of the last good step. Look for bad inputs, lower optim_wrapper.optimizer.lr, set "
                f"optim_wrapper.clip_grad, or raise optim_wrapper.patience (now {self.patience})"
            )
        return False

    def _reason(self, losses: list[Tensor]) -> str:
        bad = [float(loss) for loss in losses if not torch.isfinite(loss).all()]
        if bad:
            return f"the loss is {bad[0]}"
        names = [name for name, p in (self._model.named_parameters() if self._model is not None else ())
                 if p.grad is not None and not torch.isfinite(p.grad).all()]
        return f"the gradient of {len(names)} parameters is not finite, first {names[0]}" if names else (
            "not finite on another rank, or in a parameter outside the model")

    @torch.no_grad()
    def _put_back(self) -> None:
        for where, name, value in self._before:
            # the forward pass may have taken it away, or put another in its place
            now = where[name] if name in where else None
            if now is not None and now.shape == value.shape and not torch.isfinite(now).all():
                now.copy_(value)


def _may_be_statistics(x: Tensor) -> bool:
    return x.is_floating_point() and x.itemsize > 1  # eight bits hold weights, and know no arithmetic


def _all_finite(gradients: list[Tensor]) -> Tensor:
    # On a processor the largest value takes 15 times as long as the 2-norm (torch 2.13). That is finite only where
    # all gradients are; it may overflow where they are, so only its yes counts.
    if gradients[0].device.type == "cpu":
        norm = _norm(gradients, 2.0)
        if torch.isfinite(norm):
            return torch.ones(())
    return torch.isfinite(_norm(gradients, float("inf")))


def _norm(tensors: list[Tensor], order: float) -> Tensor:
    first = tensors[0]
    if any(x.dtype != first.dtype or x.device != first.device for x in tensors):
        return nn.utils.get_total_norm(tensors, order)
    # get_total_norm brings each tensor's norm to the first one's device, where it is: two milliseconds for 365
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors, order)), order)


@OPTIM_WRAPPERS.register_module()
class GuardedAmpOptimWrapper(GuardedOptimWrapper):
    """Automatic mixed precision with the guard; in place of mmengine's AmpOptimWrapper, which refuses the CPU.

    Args:
        dtype: ``bfloat16`` (default; GPU or CPU) or ``float16`` (GPU).
        loss_scale: for float16: ``dynamic``, a fixed scale, or arguments of ``torch.amp.GradScaler``. A step whose
            scaled gradients overflow is skipped and counted as any other; the scale then shrinks.
        args, kwargs: as of GuardedOptimWrapper.

    Raises: ValueError for another dtype, float16 on a CPU, or a loss_scale that is none.
    """

    def __init__(self, *args, dtype: str = "bfloat16", loss_scale: str | float | Mapping = "dynamic", **kwargs) -> None:
        super().__init__(*args, **kwargs)
        device = get_device()
        if dtype not in DTYPES:
            raise ValueError(f"optim_wrapper.dtype must be one of {list(DTYPES)}, got {dtype!r}")
        if dtype == "float16" and device == "cpu":
            raise ValueError("optim_wrapper.dtype='float16' needs a GPU; on a CPU take dtype='bfloat16'")
        self.device_type, self.cast_dtype = device, getattr(torch, dtype)
        self._fixed_scale = float(loss_scale) if isinstance(loss_scale, (int, float)) else None
        if isinstance(loss_scale, Mapping):
            options = dict(loss_scale)
        elif self._fixed_scale is not None:
            options = dict(init_scale=self._fixed_scale)
        elif loss_scale == "dynamic":
            options = {}
        else:
            raise ValueError(f"optim_wrapper.loss_scale must be 'dynamic', a number or a dict, got {loss_scale!r}")
        # bfloat16 has float32's range and needs no scale: the scaler then hands everything through
        self.loss_scaler = torch.amp.GradScaler(device, enabled=dtype == "float16", **options)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast(self.device_type, dtype=self.cast_dtype):
            yield

    def backward(self, loss: Tensor, **kwargs) -> None:
        self._losses.append(loss.detach())
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs) -> None:
        self.loss_scaler.unscale_(self.optimizer)
        if self._is_finite():
            if self.clip_grad_kwargs:
                self._clip_grad()
            with self._as_one_group():
                self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update(self._fixed_scale)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | dict(loss_scaler=self.loss_scaler.state_dict())

    def load_state_dict(self, state_dict: dict) -> None:
        scaler = state_dict.pop("loss_scaler", None)
        if scaler:
            self.loss_scaler.load_state_dict(scaler)
        super().load_state_dict(state_dict)
