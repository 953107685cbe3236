"""UDML by the released code's formulas, two small encoders, digits seen and spoken.

CREMA-D's beta of 1e-5, a weight of the sum over two modalities and 64 channels, is kl_weight 1.28e-3 of the mean.
Run: python tools/train.py configs/recognition/udml-released_small_digit-clips.py
Expect: 81.9 ± 1.3 % clean, 47.2 / 58.3 with half of the picture / the sound hidden (three seeds; results/README.md).
"""
_base_ = [
    '../_base_/recognition_runtime.py', '../_base_/data/digit_clips.py',
    '../_base_/models/udml_digit_clips.py', '../_base_/schedules/digit_clips.py']
model = dict(neck=dict(preset='released', kl_weight=1.28e-3))
