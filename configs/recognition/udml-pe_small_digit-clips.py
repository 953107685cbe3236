"""Dynamic fusion by probabilistic embedding: weights 1 / sigma^2, two small encoders, digits seen and spoken.

The uncertainty is the embedding's own sigma, which nobody has taught what noise is.
Run: python tools/train.py configs/recognition/udml-pe_small_digit-clips.py
Expect: 82.0 ± 0.9 % clean, 36.7 / 53.0 with half of the picture / the sound hidden (three seeds; results/README.md).
"""
_base_ = [
    '../_base_/recognition_runtime.py', '../_base_/data/digit_clips.py',
    '../_base_/models/udml_digit_clips.py', '../_base_/schedules/digit_clips.py']
model = dict(
    neck=dict(
        quality='variance', dependency=False, law='inverse_square', temperature=1.0, form='residual', norm='batch'))
