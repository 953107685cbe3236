"""SCFAE, the default, two small encoders, the generated clips.

Run: python tools/train.py configs/recognition/scfae_small_demo-clips.py
Expect: 100 % with both, about 50 % with one, the most that one can tell (one run, less than a minute).
"""
_base_ = [
    '../_base_/recognition_runtime_resumable.py', '../_base_/data/demo_clips.py', '../_base_/models/av_small.py',
    '../_base_/schedules/demo_clips.py']
model = dict(
    data_preprocessor=dict(mean=dict(visual=81.0, audio=-0.6), std=dict(visual=51.0, audio=0.95)),
    neck=dict(type='SCFAE', norm='layer', residual=True, head_reads='post_and_input', modality_dropout=0.3),
    cls_head=dict(num_classes=6))
