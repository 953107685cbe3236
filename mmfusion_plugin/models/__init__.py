"""Registered parts that both tasks share: encoders and fusion necks. Needs mmengine."""
from .backbone import MultimodalBackbone
from .costs import count_costs
from .necks import NECKS, FusionNeck, SingleModality

__all__ = ["NECKS", "FusionNeck", "MultimodalBackbone", "SingleModality", "count_costs"]
