"""UDML, the default, two small encoders, digits seen and spoken.

Weights 1 / (s alpha): s from the noise estimator, alpha the modality's dependency.
Run: python tools/train.py configs/recognition/udml-default_small_digit-clips.py
Expect: not run yet.
"""
_base_ = [
    '../_base_/recognition_runtime.py', '../_base_/data/digit_clips.py',
    '../_base_/models/udml_digit_clips.py', '../_base_/schedules/digit_clips.py']
model = dict(neck=dict(preset='default'))
