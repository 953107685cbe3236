"""SCFAE, the default, two small encoders, digits seen and spoken.

Residual, and the encoders' outputs beside Z: without them the encoders learn too late for eight epochs.
Run: python tools/train.py configs/recognition/scfae_small_digit-clips.py
Whole table: python tools/benchmarks/digit_clips_table.py --data-root data/digit_clips --render
Expect: the table in results/README.md.
"""
_base_ = [
    '../_base_/recognition_runtime.py', '../_base_/data/digit_clips.py', '../_base_/models/av_small.py',
    '../_base_/schedules/digit_clips.py']
model = dict(
    data_preprocessor=dict(mean=dict(visual=93.5, audio=1.0), std=dict(visual=36.0, audio=1.33)),
    neck=dict(type='SCFAE', norm='layer', residual=True, head_reads='post_and_input', modality_dropout=0.3),
    cls_head=dict(num_classes=10))
