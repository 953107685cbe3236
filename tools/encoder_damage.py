"""What joint training left in each encoder: a linear probe on the frozen encoders, beside encoders trained alone.

    python tools/encoder_damage.py CONFIG CHECKPOINT --reference audio=CONFIG:CHECKPOINT visual=CONFIG:CHECKPOINT

Vectors get a linear probe, maps a 1x1-convolution probe; both tasks (SCFAE, Table 6). The references are trained like
any model, for instance with configs/recognition/audio_small_digit-clips.py. Options of --cfg-options that begin with
train_dataloader. or test_dataloader. hold for the references, too. Writes encoder_damage.json, .md and .png; started
again, it skips the models whose probes are done.
"""
from __future__ import annotations

import argparse
import copy
import json
from typing import Any

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
from mmfusion_plugin.analysis import conditions, evidence, features, probing
from mmfusion_plugin.analysis.identity import fingerprint
from mmfusion_plugin.engine import launch

BOTH = ("train_dataloader", "test_dataloader")
DATA = tuple(f"{name}." for name in BOTH)


def references_from(words: list[str]) -> dict[str, tuple[str, str]]:
    """``audio=CONFIG:CHECKPOINT`` -> {audio: (config, checkpoint)}."""
    found = {}
    for word in words:
        modality, _, files = word.partition("=")
        config, _, checkpoint = files.rpartition(":")
        if not (modality and config and checkpoint):
            raise launch.UsageError(f"--reference {word}: expected MODALITY=CONFIG:CHECKPOINT")
        found[modality] = (launch.existing(config, "config"), launch.existing(checkpoint, "checkpoint"))
    return found


def probe(cfg: Any, model: Any, args: argparse.Namespace, modalities: list[str] | None) -> dict[str, Any]:
    train = features.without_augmentation(cfg)
    sets = [conditions.build_dataset(loader) for loader in (train, cfg.test_dataloader)]
    classes = (getattr(model, "decode_head", None) or model.cls_head).num_classes
    return probing.probe_encoders(
        model, train, sets[0], cfg.test_dataloader, sets[1], classes, modalities, positions=args.positions,
        seed=args.seed, decay=args.weight_decay, steps=args.steps, report=Passes())


class Passes:
    """A new bar for each pass over a data set."""

    def __init__(self) -> None:
        self.bar = launch.progress()

    def __call__(self, done: int, total: int) -> None:
        self.bar(done, total)
        if done >= total:
            self.bar = launch.progress()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    launch.add_evidence_arguments(parser)
    parser.add_argument("--reference", nargs="+", action="extend", default=[], metavar="M=CONFIG:CHECKPOINT",
                        help="a model of one modality, trained alone")
    parser.add_argument("--positions", type=int, default=50, help="places of a picture for the probe (default: 50)")
    parser.add_argument("--weight-decay", type=float, default=probing.DECAY, help=f"default: {probing.DECAY:g}")
    parser.add_argument("--steps", type=int, default=probing.STEPS, help=f"of L-BFGS (default: {probing.STEPS})")
    parser.add_argument("--seed", type=int, default=0, help="of the places (default: 0)")
    args = parser.parse_args()
    references = references_from(args.reference)
    cfg, model, out = launch.load_checkpoint(args)
    unknown = sorted(set(references) - set(model.backbone.encoders))
    if unknown:
        raise launch.UsageError(f"--reference {unknown[0]}: the model has {list(model.backbone.encoders)}")
    settings = [args.positions, args.weight_decay, args.steps, args.seed]
    partial = out / "encoder_damage.partial.json"
    done = evidence.read_record(partial) if partial.is_file() else {}

    def once(name: str, key: str, compute: Any) -> dict[str, Any]:
        if done.get(name, {}).get("key") != key:
            done[name] = dict(key=key, probes=compute())
            out.mkdir(parents=True, exist_ok=True)
            evidence.replace_file(partial, json.dumps(done))
        return done[name]["probes"]

    print(f"probes on {args.checkpoint}")
    key = fingerprint(cfg, args.checkpoint, "damage", settings, loaders=BOTH)
    joint = once("joint", key, lambda: probe(cfg, model, args, None))
    alone = {}
    for m, (config, checkpoint) in references.items():
        print(f"probes on {checkpoint}")
        other = copy.copy(args)
        other.config, other.checkpoint, other.work_dir = config, checkpoint, str(out / "logs")
        other.cfg_options = {k: v for k, v in (args.cfg_options or {}).items() if k.startswith(DATA)} or None
        other_cfg, reference, _ = launch.load_checkpoint(other)
        if m not in reference.backbone.encoders:
            raise launch.UsageError(f"--reference {m}: {config} has encoders for {list(reference.backbone.encoders)}")
        other_key = fingerprint(other_cfg, checkpoint, "damage", settings, loaders=BOTH)
        alone.update(once(f"alone {m}", other_key, lambda: probe(other_cfg, reference, args, [m])))  # noqa: B023
    record = dict(
        evidence.provenance(args.config, args.checkpoint, cfg, key), rows=probing.damage_rows(joint, alone),
        probe=probing.PROBE.format(steps=args.steps, decay=args.weight_decay), positions=args.positions,
        probe_seed=args.seed, references={m: dict(config=c, checkpoint=k) for m, (c, k) in references.items()})
    evidence.publish(out, "encoder_damage", record, probing.damage_markdown, probing.plot_damage)


if __name__ == "__main__":
    launch.run_tool(main, evidence.EvidenceError)
