"""Static fusion with probabilistic heads (all weights 1), two small encoders, digits seen and spoken.

What the probabilistic heads alone add to udml-static.
Run: python tools/train.py configs/recognition/udml-static-pe_small_digit-clips.py
Expect: 84.3 ± 1.8 % clean, 47.5 / 52.4 with half of the picture / the sound hidden (three seeds; results/README.md).
"""
_base_ = [
    '../_base_/recognition_runtime.py', '../_base_/data/digit_clips.py',
    '../_base_/models/udml_digit_clips.py', '../_base_/schedules/digit_clips.py']
model = dict(neck=dict(quality=None, norm='batch', form='multiplicative'))
