"""Concatenation and an MLP (the strongest plain baseline), two ResNet-18 and a SegFormer head, NYU Depth v2.

All but the fusion is that of concat, input normalisation and modality dropout included.
Run: python tools/train.py configs/segmentation/mlp_r18-segformer_nyuv2-480x640.py
Cost: 40k iterations at batch 8, meant for one large GPU.
Expect: not run here (neither the official data nor pretrained weights were at hand).
"""
_base_ = './concat_r18-segformer_nyuv2-480x640.py'
model = dict(
    # Pretrained encoders, as every published number has (needs the network):
    # backbone=dict(backbones=dict(
    #     rgb=dict(init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet18_v1c')),
    #     depth=dict(init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet18_v1c')))),
    neck=dict(type='MLPFusion'))
