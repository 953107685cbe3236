"""UDML, the default, two small encoders, the generated clips.

Weights (s alpha)^(-1/3): s from the noise estimator, or from novelty where that is larger; alpha the dependency.
Run: python tools/train.py configs/recognition/udml-default_small_demo-clips.py
Expect: 99.3 % with both, 51 and 52 % with the sound and the picture alone (one run, less than two minutes).
"""
_base_ = [
    '../_base_/recognition_runtime_resumable.py', '../_base_/data/demo_clips.py',
    '../_base_/models/udml_digit_clips.py', '../_base_/schedules/demo_clips.py']
model = dict(
    data_preprocessor=dict(
        mean=dict(visual=81.0, audio=-0.6), std=dict(visual=51.0, audio=0.95),
        # from the least of the data to beyond its loudest; a level is 0.3 as on the digit clips
        train_noise=dict(noise=dict(audio=dict(valid_range=(-12.0, 4.5))))),
    neck=dict(
        preset='default',
        # the preset's options, spelt out: results belong to them
        norm='batch', form='multiplicative', law='inverse', temperature=3.0, reads=['variance', 'input'],
        novelty=['input']),
    cls_head=dict(num_classes=6))
