"""Static fusion in UDML's frame (all weights 1, plain features), two small encoders, digits seen and spoken.

What stays of the noise in training and the auxiliary losses when nothing is weighted.
Run: python tools/train.py configs/recognition/udml-static_small_digit-clips.py
Expect: 75.8 ± 3.3 % clean, 46.5 / 41.8 with half of the picture / the sound hidden (three seeds; results/README.md).
"""
_base_ = [
    '../_base_/recognition_runtime.py', '../_base_/data/digit_clips.py',
    '../_base_/models/udml_digit_clips.py', '../_base_/schedules/digit_clips.py']
model = dict(neck=dict(quality=None, embedding=False, form='multiplicative'))
