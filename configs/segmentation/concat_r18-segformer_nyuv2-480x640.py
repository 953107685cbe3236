"""Concatenation, two ResNet-18 and a SegFormer head, NYU Depth v2: SCFAE's baseline.

It shares everything with the SCFAE row, input normalisation and modality dropout included: both differ in the
fusion alone. Plain concatenation: --cfg-options model.neck.norm=None model.neck.modality_dropout=0.0

Run: python tools/train.py configs/segmentation/concat_r18-segformer_nyuv2-480x640.py
Cost: 40k iterations at batch 8, meant for one large GPU.
Expect: not run here (neither the official data nor pretrained weights were at hand).
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/nyuv2.py', '../_base_/models/rgbd_r18_segformer.py',
    '../_base_/schedules/poly_40k.py']
model = dict(
    data_preprocessor=dict(size=(480, 640)),
    # Pretrained encoders, as every published number has (needs the network):
    # backbone=dict(backbones=dict(
    #     rgb=dict(init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet18_v1c')),
    #     depth=dict(init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet18_v1c')))),
    neck=dict(type='ConcatFusion', norm='layer', modality_dropout=0.3),
    decode_head=dict(num_classes=40))
