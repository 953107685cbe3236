"""Sum of the projected features, two small encoders, the generated clips.

Run: python tools/train.py configs/recognition/sum_small_demo-clips.py
Expect: not run; the SCFAE row reaches 100 % with both, 50 % with one.
"""
_base_ = [
    '../_base_/recognition_runtime_resumable.py', '../_base_/data/demo_clips.py', '../_base_/models/av_small.py',
    '../_base_/schedules/demo_clips.py']
model = dict(
    data_preprocessor=dict(mean=dict(visual=81.0, audio=-0.6), std=dict(visual=51.0, audio=0.95)),
    neck=dict(type='SumFusion', norm=None, modality_dropout=0.0),
    cls_head=dict(num_classes=6))
