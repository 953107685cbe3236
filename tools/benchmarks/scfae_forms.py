"""Forms of SCFAE that were searched and are not shipped: necks for scfae_search.py alone."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmfusion_plugin.fusion import SCFAE
from mmfusion_plugin.fusion.contract import channel_axis
from mmfusion_plugin.fusion.layers import ChannelLinear
from mmfusion_plugin.models import FusionNeck

__all__ = ["GatedExchangeSCFAE", "GatedOtherSCFAE", "OtherReconstructionSCFAE"]


class GatedExchange(SCFAE):
    """Each modality decides channel by channel, from its specific part, how much it takes of its neighbour's part.

    The gate is 2 sigmoid(.), with a bias of zero: it starts near the plain exchange, and may amplify or shut.
    Shapes, losses: as SCFAE.
    """

    def __init__(self, modalities: Sequence[str], in_channels: Mapping[str, int], **options) -> None:
        super().__init__(modalities, in_channels, **options)
        self.P_gate = nn.ModuleDict({
            m: ChannelLinear(self.P_specific[m].out_features, self.P_shared[m].out_features) for m in self.modalities})
        for layer in self.P_gate.values():
            nn.init.zeros_(layer.bias)

    def _exchange(self, V: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        return {
            m: dict(part, shared=part["shared"] * 2 * self.P_gate[m](part["specific"]).sigmoid())
            for m, part in super()._exchange(V, available).items()}


class OtherReconstruction(SCFAE):
    """V_m is reconstructed from the shared part that came from its neighbour alone.

    Counted where both are there: a missing neighbour sent nothing to reconstruct from. Shapes, losses: as SCFAE.
    """

    def _reconstruction(
        self, m: str, Z: Mapping[str, Tensor], Z_post: Mapping[str, Tensor], available: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        specific = self.P_specific[m].out_features
        own, received = Z[m].split([specific, Z[m].shape[channel_axis(Z[m])] - specific], channel_axis(Z[m]))
        alone = self.post[m](torch.cat([torch.zeros_like(own), received], channel_axis(own)))
        return self.P_recon[m](alone), available[m] & available[self.neighbour[m]]


class GatedOther(GatedExchange, OtherReconstruction):
    """Both."""


@MODELS.register_module()
class GatedExchangeSCFAE(FusionNeck):
    """Neck of :class:`GatedExchange` blocks."""

    block = GatedExchange


@MODELS.register_module()
class OtherReconstructionSCFAE(FusionNeck):
    """Neck of :class:`OtherReconstruction` blocks."""

    block = OtherReconstruction


@MODELS.register_module()
class GatedOtherSCFAE(FusionNeck):
    """Neck of :class:`GatedOther` blocks."""

    block = GatedOther
