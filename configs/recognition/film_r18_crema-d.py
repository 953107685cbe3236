"""FiLM, two ResNet-18 from scratch, CREMA-D, the recipe of UDML's scripts.

Run: python tools/train.py configs/recognition/film_r18_crema-d.py
Expect: not measured here (no copy of the data at hand); published figures are in results/README.md.
"""
_base_ = [
    '../_base_/recognition_runtime_resumable.py', '../_base_/data/crema_d.py', '../_base_/models/av_r18.py',
    '../_base_/schedules/sgd_100e.py']
model = dict(
    neck=dict(type='FiLMFusion', norm=None, modality_dropout=0.0),
    cls_head=dict(num_classes=6))
