"""UDML, the default, round SCFAE, two small encoders, digits seen and spoken.

udml-default with SCFAE inside.
Run: python tools/train.py configs/recognition/udml-scfae_small_digit-clips.py
Expect: 82.0 ± 2.5 % clean, 61.7 / 56.0 with half of the picture / the sound hidden (three seeds; results/README.md).
"""
_base_ = [
    '../_base_/recognition_runtime.py', '../_base_/data/digit_clips.py',
    '../_base_/models/udml_digit_clips.py', '../_base_/schedules/digit_clips.py']
model = dict(
    neck=dict(
        preset='default',
        # the preset's options, spelt out: results belong to them
        norm='batch', form='multiplicative', law='inverse', temperature=3.0, reads=['variance', 'input'],
        novelty=['input'],
        inner=dict(type='SCFAE', norm='layer', residual=True, head_reads='post_and_input')))
