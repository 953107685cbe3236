"""Questions to trained models, answered as tables. Needs mmengine."""
from .table_columns import Column, render, render_columns, spread
from .table_runs import Job, Summary, read_results, run_table, train_and_evaluate
from .table_tool import (
    add_table_arguments,
    fusion_rows,
    neck_options,
    run_table_tool,
    single_modality,
    with_and_without_dropout,
)

__all__ = [
    "Column", "Job", "Summary", "add_table_arguments", "fusion_rows", "neck_options", "read_results", "render",
    "render_columns", "run_table", "run_table_tool", "single_modality", "spread", "train_and_evaluate",
    "with_and_without_dropout",
]
