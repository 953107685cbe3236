"""How sensors fail, at stated strength in physical units, and how training meets it. Needs torch alone."""
from .injection import FixedNoise, NoiseInjection
from .sensor import Sensor
from .types import CORRUPTIONS, Corruption

__all__ = ["CORRUPTIONS", "Corruption", "FixedNoise", "NoiseInjection", "Sensor"]
