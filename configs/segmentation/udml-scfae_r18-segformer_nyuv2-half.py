"""UDML, the default, round SCFAE, two ResNet-18 from scratch and a SegFormer head, NYU Depth v2 at half size.

All but the inner fusion is that of udml-default: SCFAE, light form.
Run: python tools/train.py configs/segmentation/udml-scfae_r18-segformer_nyuv2-half.py
Cost: 1,200 iterations at batch 4, about an hour of one core.
Expect: this schedule has not been run; 600 iterations of 128x160 crops gave mIoU 3.0 (results/README.md, two seeds).
"""
_base_ = './udml-default_r18-segformer_nyuv2-half.py'
model = dict(neck=dict(inner=dict(type='SCFAE', width=0.28125, norm='layer')))
