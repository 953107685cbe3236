"""Questions to trained models, answered as tables. Needs mmengine."""
from .table_runs import Job, Summary, read_results, render, run_table, train_and_evaluate

__all__ = ["Job", "Summary", "read_results", "render", "run_table", "train_and_evaluate"]
