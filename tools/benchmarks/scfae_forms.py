"""Forms of SCFAE that were searched and are not shipped: necks for scfae_search.py alone."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.registry import MODELS
from torch import Tensor, nn

from mmfusion_plugin.fusion import SCFAE
from mmfusion_plugin.fusion.layers import ChannelLinear
from mmfusion_plugin.models import FusionNeck

__all__ = ["GatedExchangeSCFAE"]


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

    def _exchange(
        self, V: Mapping[str, Tensor], available: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None
    ) -> dict[str, dict[str, Tensor]]:
        return {
            m: dict(part, shared=part["shared"] * 2 * self.P_gate[m](part["specific"]).sigmoid())
            for m, part in super()._exchange(V, available, weights).items()}


@MODELS.register_module()
class GatedExchangeSCFAE(FusionNeck):
    """Neck of :class:`GatedExchange` blocks."""

    block = GatedExchange
