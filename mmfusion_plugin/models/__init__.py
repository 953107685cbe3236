"""Registered parts that both tasks share: encoders and fusion necks. Needs mmengine."""
from .backbone import MultimodalBackbone
from .costs import count_costs
from .measuring import measure_costs
from .necks import NECKS, FusionNeck, SingleModality
from .small_cnn import SmallCNN

__all__ = ["NECKS", "FusionNeck", "MultimodalBackbone", "SingleModality", "SmallCNN", "count_costs", "measure_costs"]
