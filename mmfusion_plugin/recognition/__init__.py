"""Recognition of clips from several modalities: data, preprocessor, recognizer, head, metric. Needs mmaction2."""
from . import data_preprocessor, datasets, heads, metrics, recognizer, transforms

__all__ = ["data_preprocessor", "datasets", "heads", "metrics", "recognizer", "transforms"]
