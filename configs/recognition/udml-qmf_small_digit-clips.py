"""Dynamic fusion by energy (QMF-like), two small encoders, digits seen and spoken.

Weights exp(-E), E = -logsumexp of a modality's own scores; without QMF's ranking loss.
Flatter weights: --cfg-options model.neck.temperature=10
Run: python tools/train.py configs/recognition/udml-qmf_small_digit-clips.py
Expect: 74.7 ± 3.6 % clean, 48.2 / 40.4 with half of the picture / the sound hidden (three seeds; results/README.md).
"""
_base_ = [
    '../_base_/recognition_runtime.py', '../_base_/data/digit_clips.py',
    '../_base_/models/udml_digit_clips.py', '../_base_/schedules/digit_clips.py']
model = dict(
    neck=dict(
        quality='energy', law='exponential', temperature=1.0, form='residual', dependency=False, embedding=False))
