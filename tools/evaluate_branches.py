"""Evaluate a checkpoint with SCFAE's shared or specific branch zeroed, with all modalities and with each alone.

    python tools/evaluate_branches.py CONFIG CHECKPOINT [--metric mIoU] [--out DIR]

SCFAE, Table 14. Writes branches.json and branches.md; started again, it goes on where it was stopped.
"""
from __future__ import annotations

import argparse

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
from mmfusion_plugin.analysis import conditions, embeddings, evidence
from mmfusion_plugin.analysis.identity import fingerprint
from mmfusion_plugin.engine import launch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    launch.add_evidence_arguments(parser)
    parser.add_argument("--metric", help="shown in the table (default: mIoU or acc/fused_top1)")
    args = parser.parse_args()
    cfg, model, out = launch.load_checkpoint(args)
    try:
        block = embeddings.scfae_block(model)
    except ValueError as error:
        raise launch.UsageError(str(error)) from None
    asked = embeddings.branch_conditions(list(block.modalities))
    key = fingerprint(cfg, args.checkpoint, "branches")
    record = evidence.read_evidence(out, "branches", key)
    if record is None:
        outcomes = conditions.evaluate_conditions(
            model, cfg.test_dataloader, cfg.test_evaluator, asked, partial=out / "branches.partial", key=key,
            report=launch.progress())
        record = dict(evidence.provenance(args.config, args.checkpoint, cfg, key), head_reads=block.head_reads,
                      **embeddings.summarise_branches(outcomes, asked))
    try:
        record["metric"] = evidence.choose_metric(list(record["rows"][0]["metrics"]), args.metric)
    except ValueError as error:
        raise launch.UsageError(f"--{error}") from None
    evidence.publish(out, "branches", record, embeddings.branches_markdown)


if __name__ == "__main__":
    launch.run_tool(main, evidence.EvidenceError)
