"""MLP with LayerNorm and modality dropout (the strongest plain baseline), two ResNet-18, CREMA-D, UDML's recipe.

Run: python tools/train.py configs/recognition/mlp_r18_crema-d.py
Expect: not measured here (no copy of the data at hand); published figures are in results/README.md.
"""
_base_ = [
    '../_base_/recognition_runtime_resumable.py', '../_base_/data/crema_d.py', '../_base_/models/av_r18.py',
    '../_base_/schedules/sgd_100e.py']
model = dict(
    neck=dict(type='MLPFusion', norm='layer', modality_dropout=0.3),
    cls_head=dict(num_classes=6))
