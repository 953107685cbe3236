"""A small encoder of images and spectrograms, for models that are to train on a CPU."""
from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

__all__ = ["SmallCNN"]


@MODELS.register_module()
class SmallCNN(BaseModule):
    """Stages of two 3x3 convolutions, each with batch normalisation and ReLU; the first one strides.

    The defaults have 0.29 M parameters and take 22 million multiply-adds for a 48x48 image (ResNet-18:
    11.2 M and 98 million), whose map is 6x6 (ResNet-18: 2x2).

    Args:
        in_channels: of the image or spectrogram.
        channels: width of each stage.
        strides: of each stage, one number or (height, width).
        out_indices: stages whose maps are returned, counted from 0; None: the last one.

    Shapes: (B, in_channels, H, W) -> tuple of (B, channels[i], H_i, W_i), H_i = ceil(H_(i-1) / stride_i).
    Raises: ValueError for impossible options.
    """

    def __init__(
        self,
        in_channels: int = 3,
        channels: Sequence[int] = (32, 64, 128),
        strides: Sequence[int | Sequence[int]] = (2, 2, 2),
        out_indices: Sequence[int] | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type="Kaiming", layer="Conv2d"))
        if not channels or len(strides) != len(channels):
            raise ValueError(
                f"SmallCNN.channels {list(channels)} and SmallCNN.strides {list(strides)} must have one value per stage"
            )
        self.out_indices = (len(channels) - 1,) if out_indices is None else tuple(out_indices)
        if not self.out_indices or not set(self.out_indices) <= set(range(len(channels))):
            raise ValueError(
                f"SmallCNN.out_indices is {list(self.out_indices)}, SmallCNN.channels gives the stages "
                f"{list(range(len(channels)))}"
            )
        widths = [in_channels, *channels]
        self.stages = nn.ModuleList(
            nn.Sequential(*_layer(C_in, C, stride), *_layer(C, C, 1))
            for C_in, C, stride in zip(widths, channels, strides)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps[i] for i in self.out_indices)


def _layer(in_channels: int, out_channels: int, stride: int | Sequence[int]) -> tuple[nn.Module, ...]:
    stride = stride if isinstance(stride, int) else tuple(stride)
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
    return conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
