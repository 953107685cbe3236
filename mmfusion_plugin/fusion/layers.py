"""Layers that act on channels at each position, for vectors, sequences, maps and clips alike."""
from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from .contract import all_there, channel_axis, expand_mask, plain_eager, weighted, where_there
from .kept import Kept, forget_where_gradients

__all__ = ["ChannelBatchNorm", "ChannelLinear", "ChannelNorm", "InputNorm", "SwiGLU", "channels_last", "linear_of_rows",
           "make_norm"]


def channels_last(x: Tensor) -> Tensor:
    """The same tensor with channels contiguous in memory: every layer here is fastest so."""
    if x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if x.ndim == 5:
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x


# The product that torch.compile's own CPU backend calls; None in a torch without oneDNN.
ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
# The order in which it reads a weight; it would bring the weight into it at every call of more than one row.
LAY_OUT = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None) if ONEDNN is not None else None
# A call of oneDNN's takes 15 microseconds, torch's own 3. It pays from so many multiply-adds on, for weights that come
# from memory (with two threads a few rows of MKL's take 1.5 to 2 times as long) and for so many rows, to however few
# channels (torch adds their bias slowly).
MANY_PRODUCTS, MANY_WEIGHTS, MANY_ROWS = 4_000_000, 150_000, 2048
# columns from which oneDNN's gradient of the weight is the faster one, by up to a quarter; with several threads also
# that of many rows, as a convolution's, by up to a third
WIDE = 1024
MANY_VALUES = 1_000_000  # from which a sum over rows has time to lose


class RowsProduct(torch.autograd.Function):
    """F.linear on rows by oneDNN, on a processor: 1.05 to 2 times MKL's speed on AMD (torch 2.13), equal on Intel.

    Shapes: x (N, C), weight (D, C), bias (D,) or None -> (N, D).
    """

    # a separate setup_context would have torch read this signature again at every call: a seventh of a small step
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous()  # oneDNN would copy a part of wider rows itself, and once more for the gradient
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        # oneDNN's product has no second derivative, and of one row its gradients take twice as long
        plain = torch.is_grad_enabled() or len(x) == 1
        if not plain:
            gradient = gradient.contiguous()  # of a map it may lie the other way: once, not in every product
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ weight if plain else _onednn(gradient, weight.t())
        if ctx.needs_input_grad[1]:
            of_weight = gradient.t() @ x if plain else _gradient_of_weight(x, gradient)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(0) if plain else _sum_of_rows(gradient)
        return of_x, of_weight, of_bias


def _gradient_of_weight(x: Tensor, gradient: Tensor) -> Tensor:
    """Shapes: (N, C), (N, D) -> (D, C), both rows one after the other in memory."""
    (rows, C), D = x.shape, gradient.shape[1]
    if torch.get_num_threads() > 1 and rows >= MANY_ROWS:
        if D > C:  # an eighth of the time less with the wider side as the input
            return conv2d_weight(_as_map(gradient), (C, D, 1, 1), _as_map(x)).flatten(1).t().contiguous()
        return conv2d_weight(_as_map(x), (D, C, 1, 1), _as_map(gradient)).flatten(1)
    if C >= WIDE:
        # a part of wider rows, read across, would send oneDNN to its reference code: 1000 times as long
        return _onednn(gradient.t(), x.t())
    return gradient.t() @ x


def _sum_of_rows(x: Tensor) -> Tensor:
    """x.sum(0) of (N, C), one row after the other in memory.

    torch adds 32 columns at a time and the rest one by one; with eight rows as one, fewer are left over: 0.6 of the
    time for the 341 of a SwiGLU at 128 channels.
    """
    N, C = x.shape
    if C % 32 and N % 8 == 0 and x.numel() >= MANY_VALUES:
        return x.view(N // 8, 8 * C).sum(0).view(8, C).sum(0)
    return x.sum(0)


def _as_map(rows: Tensor) -> Tensor:
    """(N, C) -> (1, C, 1, N), channels last in memory."""
    return rows.view(1, 1, *rows.shape).permute(0, 3, 1, 2)


def _onednn_serves(x: Tensor, weight: Tensor) -> bool:
    """Whether the product of ``x`` may leave torch's own path: plain float32 on a processor, and nobody looking.

    Compilers, exporters, counters and quantisers must see a linear or a convolution.
    """
    return (
        ONEDNN is not None
        and x.device.type == "cpu"
        and plain_eager(x)
        and x.dtype == weight.dtype == torch.float32
        and _onednn_pays(x.numel() // weight.shape[1], weight.numel())
        and type(weight) in (Tensor, nn.Parameter)
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )


def _onednn_pays(rows: int, weights: int) -> bool:
    return rows >= MANY_ROWS or weights >= MANY_WEIGHTS or rows * weights >= MANY_PRODUCTS


def _linear_serves(x: Tensor) -> bool:
    """Whether a map's product on a GPU is that of a linear on its channels-last view: torch adds the bias within it.

    On an H100 0.55 to 0.95 of a convolution's time, forward and in a step, unless convolutions alone may use TF32, as
    torch has it by default: then 1.05 to 1.3.
    """
    if x.device.type != "cuda" or not plain_eager(x):
        return False
    other_dtype = torch.is_autocast_enabled("cuda") or x.dtype != torch.float32
    return other_dtype or not _convolutions_alone_use_tf32()


def _convolutions_alone_use_tf32() -> bool:
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(cublas, "fp32_precision"):  # torch 2.9; the older switches raise once this one was used
        return cudnn.conv.fp32_precision == "tf32" and cublas.fp32_precision != "tf32"
    return cudnn.allow_tf32 and not cublas.allow_tf32


class ChannelLinear(nn.Linear):
    """``nn.Linear`` over the channel axis, wherever that axis is; a 1x1 convolution on maps.

    ``layer(x, activation, times)`` is activation(layer(x)) * times, the activation inside the product where nothing
    asks for a gradient and oneDNN is there.

    Shapes: (B, C), (B, T, C), (B, C, H, W) or (B, C, T, H, W) -> the same with ``out_features``
        channels, which is ``times``' shape too. The weight is (out, in) for every rank: one state dict serves them all.
    """

    kept: Kept | None = None  # see modes.constant_weights

    # Maps elsewhere: a convolution, not F.linear on the channels-last view (free, too). NCHW memory costs 3-40 %
    # against channels-last. On a processor with one thread torch leaves a 1x1 convolution of less than 16 maps to
    # a loop over MKL, at half of oneDNN's speed: hence the rows.
    def forward(self, x: Tensor, activation: str | None = None, times: Tensor | None = None) -> Tensor:
        forget_where_gradients(self.kept)
        if _onednn_serves(x, self.weight):
            return self._by_rows(x, activation, times)
        return _finish(self._product(x), activation, times)

    def _product(self, x: Tensor) -> Tensor:
        if x.ndim > 3 and _linear_serves(x):
            return F.linear(x.movedim(1, -1), self.weight, self.bias).movedim(-1, 1)
        if x.ndim == 4:
            return F.conv2d(x, self.weight[:, :, None, None], self.bias)
        if x.ndim == 5:
            return F.conv3d(x, self.weight[:, :, None, None, None], self.bias)
        return F.linear(x, self.weight, self.bias)

    def _by_rows(self, x: Tensor, activation: str | None, times: Tensor | None) -> Tensor:
        rows, axis = x, channel_axis(x)
        if x.ndim > 2:
            x = x.movedim(axis, -1)  # on channels-last memory a view, and so are the rows
            rows = x.reshape(-1, self.in_features)
        # pruning and parametrisations make a weight anew at every call
        kept = self.kept if isinstance(self.weight, nn.Parameter) else None
        y = _by_onednn(rows, self.weight, self.bias, activation, kept)
        if x.ndim > 2:
            y = y.view(*x.shape[:-1], -1).movedim(-1, axis)
        if torch.is_grad_enabled():
            return _finish(y, activation, times)
        # in place, on what is still in the cache: half the time of oneDNN's own product with a second operand
        return y if times is None else y.mul_(times)


def linear_of_rows(x: Tensor, weight: Tensor, bias: Tensor | None, kept: Kept | None = None) -> Tensor:
    """``F.linear`` by its fastest call. Shapes: x (N, C), weight (D, C), bias (D,) -> (N, D)."""
    return _by_onednn(x, weight, bias, kept=kept) if _onednn_serves(x, weight) else F.linear(x, weight, bias)


def _by_onednn(rows: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None,
               kept: Kept | None = None) -> Tensor:
    """The product; activated where no gradient is asked for."""
    if torch.is_grad_enabled():
        return RowsProduct.apply(rows, weight, bias)
    keeps = kept is not None and LAY_OUT is not None and not torch.compiler.is_compiling()
    if keeps and len(rows) > 1 and not weight.is_inference():
        weight = kept.of([weight], lambda: LAY_OUT(weight))
    return _onednn(rows, weight, bias, activation)


ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu}
FUSED = {None: "none", "silu": "swish", "gelu": "gelu"}


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    if torch.compiler.is_compiling():  # it takes up a part of what runs eagerly, and knows oneDNN's own order alone
        return _finish(F.linear(x, weight, bias), activation, None)
    return ONEDNN(x, weight, bias, FUSED[activation], [], "none" if activation == "gelu" else "")


def _finish(y: Tensor, activation: str | None, times: Tensor | None) -> Tensor:
    y = y if activation is None else ACTIVATIONS[activation](y)
    return y if times is None else y * times


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position. Shapes: any rank of the contract, unchanged."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 4:  # channels are the last axis already: two views and their gradients less
            return super().forward(x)
        # on channels-last memory both movedims are views
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ChannelBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation of each channel over batch and positions.

    In training over those samples alone that are there; fewer than two values have no spread, and the running
    statistics normalise them.

    Shapes: any rank of the contract, available (B,) bool or None for "all there" -> unchanged.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim not in (2, 3, 4, 5):
            raise ValueError(f"expected 2 to 5 axes, got {tuple(x.shape)}")

    def forward(self, x: Tensor, available: Tensor | None = None) -> Tensor:
        return self._normed(x.mT, available).mT if x.ndim == 3 else self._normed(x, available)

    def _normed(self, x: Tensor, available: Tensor | None) -> Tensor:
        single = x.numel() == x.shape[1]
        if not self.training or not single and (available is None or all_there(available)):
            return super().forward(x)
        if available is None:
            available = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
        return self._over(x, available)

    def _over(self, x: Tensor, available: Tensor) -> Tensor:
        """By arithmetic: nothing is waited for, and no shape depends on the mask."""
        axes = [axis for axis in range(x.ndim) if axis != 1]
        mask, values = expand_mask(available, x), torch.where(expand_mask(available, x), x, 0.0).float()
        number = available.sum() * (x[0, 0].numel() if x.ndim > 2 else 1)
        enough = number > 1
        mean_C = values.sum(axes) / number.clamp(min=1)
        shape = [1, -1, *[1] * (x.ndim - 2)]
        variance_C = torch.where(mask, values - mean_C.view(shape), 0.0).square().sum(axes) / number.clamp(min=1)
        with torch.no_grad():
            share = torch.where(enough, self.momentum, 0.0)
            unbiased_C = variance_C * number / (number - 1).clamp(min=1)
            self.running_mean.lerp_(mean_C.to(self.running_mean), share.to(self.running_mean))
            self.running_var.lerp_(unbiased_C.to(self.running_var), share.to(self.running_var))
            self.num_batches_tracked += enough
        mean_C = torch.where(enough, mean_C, self.running_mean.float())
        scale_C = (torch.where(enough, variance_C, self.running_var.float()) + self.eps).rsqrt() * self.weight.float()
        y = (x.float() - mean_C.view(shape)) * scale_C.view(shape) + self.bias.float().view(shape)
        return y.to(x.dtype)


def make_norm(norm: str | None, channels: int) -> nn.Module:
    """``layer`` or None (identity). Raises ValueError otherwise."""
    if norm is None:
        return nn.Identity()
    if norm == "layer":
        return ChannelNorm(channels)
    raise ValueError(f"norm must be 'layer' or None, got {norm!r}")


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), hidden width floor(8 d / 3), three linears with bias.

    Shapes: any rank with ``channels`` channels, unchanged.
    Source: SCFAE, Table 12 (8 d^2 + 19/3 d parameters).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 8 * channels // 3
        self.gate = ChannelLinear(channels, hidden)
        self.up = ChannelLinear(channels, hidden)
        self.down = ChannelLinear(hidden, channels)

    def hidden(self, x: Tensor) -> Tensor:
        """What ``down`` reads, 8 d / 3 channels."""
        return self.up(x, times=self.gate(x, "silu"))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.hidden(x))


class InputNorm(nn.Module):
    """Normalise each modality's channels; what stands in for a missing one stays as it is.

    A norm would turn the zeros of a missing modality into its bias, which is a signal.

    Args:
        channels: width by modality.
        norm: ``layer``, or None, which changes nothing.

    Shapes: feats {m: any rank of the contract}, available {m: (B,)} bool, weights (see :class:`FusionBlock`), which
        multiply what is normalised -> feats, same shapes.
    """

    def __init__(self, channels: Mapping[str, int], norm: str | None) -> None:
        super().__init__()
        self.norm = nn.ModuleDict({m: make_norm(norm, C) for m, C in channels.items()})
        self.active = norm is not None

    def forward(
        self, feats: Mapping[str, Tensor], available: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        if self.active:
            feats = {
                m: where_there(expand_mask(available[m], x), self.norm[m](channels_last(x)), x)
                for m, x in feats.items()
            }
        return dict(feats) if weights is None else {
            m: weighted(x, weights[m], available[m]) for m, x in feats.items()}
