"""Evaluate a checkpoint with every non-empty subset of its modalities.

    python tools/evaluate_missing.py CONFIG CHECKPOINT [--sizes 1 2] [--metric mIoU] [--out DIR]

Any task, any number of modalities. The data are read once and each encoder runs once per batch; the fusion and the
head run for every subset. Writes missing.json, missing.md and missing.png. Started again, it goes on where it was
stopped; what is complete is not computed again.
"""
from __future__ import annotations

import argparse

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
from mmfusion_plugin.analysis import conditions, evidence, missing
from mmfusion_plugin.analysis.identity import fingerprint
from mmfusion_plugin.engine import launch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    launch.add_evidence_arguments(parser)
    parser.add_argument("--sizes", nargs="+", action="extend", type=int, metavar="N",
                        help="only subsets of N modalities, beside the complete set (default: all sizes)")
    parser.add_argument("--metric", help="shown in the picture (default: mIoU or acc/fused_top1)")
    args = parser.parse_args()
    cfg, model, out = launch.load_checkpoint(args)
    names = list(getattr(model.data_preprocessor, "modalities", ()))
    try:
        asked = missing.subset_conditions(names, args.sizes)
    except ValueError as error:
        raise launch.UsageError(f"--{error}") from None
    key = fingerprint(cfg, args.checkpoint, "missing", [c.name for c in asked])
    record = evidence.read_evidence(out, "missing", key)
    if record is None:
        outcomes = conditions.evaluate_conditions(
            model, cfg.test_dataloader, cfg.test_evaluator, asked, partial=out / "missing.partial", key=key,
            report=launch.progress())
        record = dict(evidence.provenance(args.config, args.checkpoint, cfg, key), fill=missing.fill_of(model),
                      classes=conditions.class_names(cfg.test_dataloader),
                      **missing.summarise_subsets(outcomes, asked, names))
    try:
        record["metric"] = evidence.choose_metric(list(record["mean"]), args.metric)
    except ValueError as error:
        raise launch.UsageError(f"--{error}") from None
    evidence.publish(out, "missing", record, missing.subsets_markdown, missing.plot_subsets)


if __name__ == "__main__":
    launch.run_tool(main, evidence.EvidenceError)
