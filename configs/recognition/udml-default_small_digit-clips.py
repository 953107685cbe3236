"""UDML, the default, two small encoders, digits seen and spoken.

Weights (s alpha)^(-1/3): s from the noise estimator, or from novelty where that is larger; alpha the dependency.
Run: python tools/train.py configs/recognition/udml-default_small_digit-clips.py
Expect: 84.1 ± 1.7 % clean, 59.3 / 61.7 with half of the picture / the sound hidden (three seeds; results/README.md).
"""
_base_ = [
    '../_base_/recognition_runtime.py', '../_base_/data/digit_clips.py',
    '../_base_/models/udml_digit_clips.py', '../_base_/schedules/digit_clips.py']
model = dict(
    neck=dict(
        preset='default',
        # the preset's options, spelt out: results belong to them
        norm='batch', form='multiplicative', law='inverse', temperature=3.0, reads=['variance', 'input'],
        novelty=['input']))
