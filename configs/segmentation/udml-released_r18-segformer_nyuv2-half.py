"""UDML by the released code's formulas, two ResNet-18 from scratch, NYU Depth v2 at half size.

Kinetics-Sound's beta of 0: no KL.
Run: python tools/train.py configs/segmentation/udml-released_r18-segformer_nyuv2-half.py
Cost: 1,200 iterations at batch 4, about an hour of one core.
Expect: this schedule has not been run; 600 iterations of 128x160 crops gave mIoU 3.0 (results/README.md, two seeds).
"""
_base_ = '../_base_/udml_nyuv2_half.py'
model = dict(
    neck=dict(preset='released', kl_weight=0.0))
