"""Recognition of clips from several modalities: data, preprocessor, recognizer, head. Needs mmaction2."""
from . import data_preprocessor, datasets, heads, recognizer, transforms

__all__ = ["data_preprocessor", "datasets", "heads", "recognizer", "transforms"]
