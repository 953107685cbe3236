"""Two-layer perceptron on the concatenation, matched in parameters where wanted."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from .concat import ConcatFusion
from .contract import FusionOutput
from .layers import ChannelLinear

__all__ = ["MLPFusion", "hidden_for"]


def hidden_for(params: int, in_channels: int, out_channels: int) -> int:
    """Hidden width of Linear -> GELU -> Linear whose parameter count comes nearest to ``params``.

    The count is h (in + out + 1) + out. At least 1.
    """
    return max(1, round((params - out_channels) / (in_channels + out_channels + 1)))


class MLPFusion(ConcatFusion):
    """z = W_2 GELU(W_1 [x_1; ...; x_M] + b_1) + b_2.

    Args:
        out_channels: D; None takes the widest modality's.
        hidden: hidden width; None takes the width of the concatenation.
        match_params: choose ``hidden`` so that the two linears have this many parameters, for
            comparisons at equal size (with an SCFAE block's count, for example).
        norm: ``layer`` normalises each modality first (with modality dropout, the strongest plain
            baseline that was measured); None does not.

    Shapes: feats {m: (B, C_m)} or any other rank of the contract -> fused (B, D).
    Raises: ValueError if both ``hidden`` and ``match_params`` are given.
    Source: baseline, no paper.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        in_channels: Mapping[str, int],
        *,
        out_channels: int | None = None,
        hidden: int | None = None,
        match_params: int | None = None,
        norm: str | None = None,
        **masking,
    ) -> None:
        super().__init__(modalities, in_channels, norm=norm, **masking)
        if hidden is not None and match_params is not None:
            raise ValueError(f"give hidden ({hidden}) or match_params ({match_params}), not both")
        total = sum(self.in_channels.values())
        self._out_channels = out_channels or max(self.in_channels.values())
        if match_params is not None:
            hidden = hidden_for(match_params, total, self._out_channels)
        self.expand = ChannelLinear(total, hidden or total)
        self.reduce = ChannelLinear(hidden or total, self._out_channels)

    def fuse(
        self, feats: Mapping[str, Tensor], available: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None
    ) -> FusionOutput:
        return FusionOutput(self.reduce(F.gelu(self.expand(self.concat(feats, available, weights)))))
