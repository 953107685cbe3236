"""Draw SCFAE's shared and specific parts (t-SNE) and measure how far groups are apart.

    python tools/plot_embeddings.py CONFIG CHECKPOINT [--samples 500] [--level -1] [--out DIR]

Needs scikit-learn (mmfusion_plugin[plots]). Writes embeddings.json, embeddings.md and embeddings.png.
"""
from __future__ import annotations

import argparse

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
from torch.utils.data import Subset

from mmfusion_plugin.analysis import conditions, embeddings, evidence
from mmfusion_plugin.analysis.identity import fingerprint
from mmfusion_plugin.engine import launch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    launch.add_evidence_arguments(parser)
    parser.add_argument("--samples", type=int, default=500, help="evenly out of the test set (default: 500)")
    parser.add_argument("--level", type=int, default=-1, help="of the neck (default: the last)")
    parser.add_argument("--positions", type=int, default=10, help="of a picture (default: 10)")
    parser.add_argument("--perplexity", type=float, default=30.0, help="of t-SNE (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of positions and t-SNE (default: 0)")
    args = parser.parse_args()
    if args.samples < 1:
        raise launch.UsageError(f"--samples {args.samples}: at least 1")
    cfg, model, out = launch.load_checkpoint(args)
    settings = [args.samples, args.level, args.positions, args.perplexity, args.seed]
    key = fingerprint(cfg, args.checkpoint, "embeddings", settings)
    record = evidence.read_evidence(out, "embeddings", key)
    if record is None:
        dataset = conditions.build_dataset(cfg.test_dataloader)
        number = min(args.samples, len(dataset))
        chosen = Subset(dataset, [i * len(dataset) // number for i in range(number)])
        try:
            parts, labels = embeddings.collect_parts(
                model, cfg.test_dataloader, chosen, level=args.level, positions=args.positions, seed=args.seed,
                report=launch.progress())
            found = dict(separability=embeddings.separability(parts, labels),
                         tsne=embeddings.tsne(parts, args.seed, args.perplexity))
        except ValueError as error:
            raise launch.UsageError(str(error)) from None
        record = dict(evidence.provenance(args.config, args.checkpoint, cfg, key), level=args.level,
                      plot_seed=args.seed, labels=labels.tolist(), classes=conditions.class_names(cfg.test_dataloader),
                      **found)
    evidence.publish(out, "embeddings", record, embeddings.embeddings_markdown, embeddings.plot_embeddings)


if __name__ == "__main__":
    launch.run_tool(main, evidence.EvidenceError)
