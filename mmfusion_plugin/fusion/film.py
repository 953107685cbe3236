"""Feature-wise linear modulation between modalities (Perez et al., 2018)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .block import FusionBlock
from .contract import FusionOutput, channel_axis, expand_mask, where_there
from .layers import ChannelLinear, InputNorm, channels_last

__all__ = ["FiLMFusion"]


class FiLMFusion(FusionBlock):
    """z = sum_m W_m (x_m * prod_c (1 + gamma_mc) + sum_c beta_mc), gamma and beta linear in x_c.

    Every modality m is modulated by each other available one c. A missing conditioning modality
    leaves its target untouched (gamma = beta = 0); a missing target adds nothing to the sum.

    Args:
        out_channels: D; None takes the widest modality's.
        condition: the only modality that conditions; it is then not summed itself unless nothing
            else is available. None is the symmetric form.
        norm: ``layer`` normalises each modality first; None does not.

    Shapes: feats {m: (B, C_m)} or any other rank of the contract -> fused (B, D).
    Raises: ValueError if ``condition`` is no modality.
    Source: Perez et al., FiLM: Visual Reasoning with a General Conditioning Layer, AAAI 2018.
    """

    pointwise = True

    def __init__(
        self,
        modalities: Sequence[str],
        in_channels: Mapping[str, int],
        *,
        out_channels: int | None = None,
        condition: str | None = None,
        norm: str | None = None,
        **masking,
    ) -> None:
        super().__init__(modalities, in_channels, **masking)
        if condition is not None and condition not in self.modalities:
            raise ValueError(f"condition must be one of {list(self.modalities)} or None, got {condition!r}")
        self.condition = condition
        self._out_channels = out_channels or max(self.in_channels.values())
        self.norm = InputNorm(self.in_channels, norm)
        self.film = nn.ModuleDict(
            {
                m: nn.ModuleDict(
                    {c: ChannelLinear(self.in_channels[c], 2 * self.in_channels[m]) for c in self._conditions(m)}
                )
                for m in self.modalities
            }
        )
        self.project = nn.ModuleDict(
            {m: ChannelLinear(C, self._out_channels) for m, C in self.in_channels.items()}
        )

    @property
    def out_channels(self) -> int:
        return self._out_channels

    def fuse(
        self, feats: Mapping[str, Tensor], available: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None
    ) -> FusionOutput:
        feats = {m: channels_last(x) for m, x in self.norm(feats, available, weights).items()}
        total = 0.0
        for m in self.modalities:
            counts = expand_mask(self._summed(m, available), feats[m])
            total = total + where_there(counts, self.project[m](self._modulate(m, feats, available)), 0.0)
        return FusionOutput(total)

    def _conditions(self, m: str) -> list[str]:
        if self.condition is None:
            return [c for c in self.modalities if c != m]
        return [] if m == self.condition else [self.condition]

    def _summed(self, m: str, available: Mapping[str, Tensor]) -> Tensor:
        if m != self.condition:
            return available[m]
        others = torch.stack([available[c] for c in self.modalities if c != m]).any(0)
        return available[m] & ~others

    def _modulate(self, m: str, feats: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Tensor:
        scale, shift = 1.0, 0.0
        for c, linear in self.film[m].items():
            mask = expand_mask(available[c], feats[c])
            gamma, beta = where_there(mask, linear(feats[c]), 0.0).chunk(2, channel_axis(feats[c]))
            scale = scale * (1 + gamma)
            shift = shift + beta
        return feats[m] * scale + shift
