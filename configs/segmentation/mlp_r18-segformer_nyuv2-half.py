"""Concatenation and an MLP (the strongest plain baseline), two ResNet-18, NYU Depth v2 at half size.

All but the fusion is that of concat, input normalisation and modality dropout included.
Run: python tools/train.py configs/segmentation/mlp_r18-segformer_nyuv2-half.py
Cost: 1,200 iterations at batch 4, about an hour of one core.
Expect: not run yet.
"""
_base_ = './concat_r18-segformer_nyuv2-half.py'
model = dict(neck=dict(type='MLPFusion'))
