"""The fusion methods and what they share. Needs torch alone."""
from .auxiliary import SCFAEAuxiliary
from .block import FusionBlock
from .concat import ConcatFusion
from .contract import FusionOutput
from .cross_attention import CrossAttentionFusion
from .film import FiLMFusion
from .gated import GatedFusion
from .input_statistics import input_statistics
from .masking import MissingFill, ModalityDropout
from .mlp import MLPFusion
from .modes import constant_weights, fused_only
from .scfae import SCFAE
from .sum import SumFusion
from .udml import UDML

FUSIONS: dict[str, type[FusionBlock]] = {
    block.__name__: block
    for block in (
        SCFAE, SumFusion, ConcatFusion, MLPFusion, GatedFusion, FiLMFusion, CrossAttentionFusion, SCFAEAuxiliary,
    )
}

__all__ = [
    "FUSIONS", "UDML", "FusionBlock", "FusionOutput", "MissingFill", "ModalityDropout", "constant_weights",
    "fused_only", "input_statistics", *FUSIONS,
]
