"""UDML, the default, round SCFAE, two ResNet-18 and a SegFormer head, NYU Depth v2.

All but the inner fusion is that of udml-default: SCFAE, light form (an eighth of the width).
Run: python tools/train.py configs/segmentation/udml-scfae_r18-segformer_nyuv2-480x640.py
Cost: 40k iterations at batch 8, meant for one large GPU; not measured yet.
Expect: not run yet (neither the official data nor pretrained weights were at hand).
"""
_base_ = './udml-default_r18-segformer_nyuv2-480x640.py'
model = dict(
    # Pretrained encoders, as every published number has (needs the network):
    # backbone=dict(backbones=dict(
    #     rgb=dict(init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet18_v1c')),
    #     depth=dict(init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet18_v1c')))),
    neck=dict(inner=dict(type='SCFAE', width=0.125, norm='layer')))
