"""Cross-attention, two ResNet-18 from scratch, Kinetics-Sound (31 classes), the recipe of UDML's scripts.

Run: python tools/train.py configs/recognition/cross-attention_r18_kinetics-sound.py
Expect: not measured here (no copy of the data at hand); published figures are in results/README.md.
"""
_base_ = [
    '../_base_/recognition_runtime_resumable.py', '../_base_/data/kinetics_sound.py', '../_base_/models/av_r18.py',
    '../_base_/schedules/sgd_100e.py']
model = dict(
    neck=dict(type='CrossAttentionFusion', norm=None, modality_dropout=0.0),
    cls_head=dict(num_classes=31))
