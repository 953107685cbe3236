#!/usr/bin/env bash
# From nothing to a trained, evaluated and drawn two-sensor model. Safe to run again: finished steps are reused.
#     bash tools/quickstart.sh                  RGB-D segmentation
#     bash tools/quickstart.sh audio-visual     recognition of clips with sound
set -euo pipefail
cd "$(dirname "$0")/.."
task=${1:-rgb-d}
case "$task" in
  rgb-d | audio-visual) ;;
  *)
    echo "usage: bash tools/quickstart.sh [rgb-d | audio-visual]" >&2
    exit 2 ;;
esac
source tools/setup_env.sh

step() { printf '\n== %s\n' "$*"; }

train_and_test() { # CONFIG WORK_DIR MODALITY...
  local config=$1 work=$2 missing
  shift 2
  step "training: tools/train.py $config"
  python tools/train.py "$config" --work-dir "$work"
  checkpoint=$(cat "$work/last_checkpoint")
  step "evaluation: the line above is with both modalities; now with one of them missing: $*"
  local log pids=()
  for missing in "$@"; do # side by side: most of it is importing
    python tools/test.py "$config" "$checkpoint" --work-dir "$work/test_without_$missing" --missing "$missing" \
      > "$work/test_without_$missing.log" 2>&1 &
    pids+=($!)
  done
  for missing in "$@"; do
    log=$work/test_without_$missing.log
    wait "${pids[0]}" || { tail -n 30 "$log"; exit 1; }
    pids=("${pids[@]:1}")
    printf 'without %s: %s\n' "$missing" "$(grep -oE '(aAcc|acc/).*' "$log" | tail -n 1)"
  done
}

if [ "$task" = rgb-d ]; then
  config=configs/segmentation/scfae_r18-segformer_demo-rooms.py
  work=work_dirs/quickstart
  step 'demo data: rendered RGB-D rooms'
  python tools/make_demo_rooms.py --out data/demo_rooms
  train_and_test "$config" "$work" depth rgb
  step 'pictures'
  python tools/show_predictions.py "$config" "$checkpoint" --out "$work/pictures" --number 6
else
  config=configs/recognition/scfae_small_demo-clips.py
  work=work_dirs/quickstart_audio_visual
  step 'demo data: moving shapes with tones'
  python tools/make_demo_clips.py --out data/demo_clips
  train_and_test "$config" "$work" audio visual
  step 'pictures: frames over the spectrogram, as the model gets them'
  python tools/browse_dataset.py "$config" --split val --out "$work/pictures" --number 6
fi

printf '\nPictures: %s/pictures   Checkpoint: %s\n' "$work" "$checkpoint"
printf 'Next: README.md, "Add the neck to your own config".\n'
