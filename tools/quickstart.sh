#!/usr/bin/env bash
# From nothing to a trained, evaluated and drawn two-sensor model. Safe to run again: finished steps are reused.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/setup_env.sh

config=configs/segmentation/scfae_r18-segformer_demo-rooms.py
work=work_dirs/quickstart

step() { printf '\n== %s\n' "$*"; }

step 'demo data: rendered RGB-D rooms'
python tools/make_demo_rooms.py --out data/demo_rooms

step "training: tools/train.py $config"
python tools/train.py "$config" --work-dir "$work"
checkpoint=$(cat "$work/last_checkpoint")

step 'evaluation: the line above is with both sensors; now without depth, and without RGB'
for missing in depth rgb; do
  python tools/test.py "$config" "$checkpoint" --work-dir "$work/test_without_$missing" --missing "$missing"
done

step 'pictures'
python tools/show_predictions.py "$config" "$checkpoint" --out "$work/pictures" --number 6

printf '\nPictures: %s/pictures   Checkpoint: %s\n' "$work" "$checkpoint"
printf 'Next: README.md, "Add the neck to your own config".\n'
