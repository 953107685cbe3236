"""Static fusion with probabilistic heads (all weights 1), two ResNet-18 from scratch, NYU Depth v2 at half size.

What the probabilistic heads alone add to udml-static.
Run: python tools/train.py configs/segmentation/udml-static-pe_r18-segformer_nyuv2-half.py
Cost: 1,200 iterations at batch 4, about an hour of one core.
Expect: this schedule has not been run; 600 iterations of 128x160 crops gave mIoU 3.3 (results/README.md, two seeds).
"""
_base_ = '../_base_/udml_nyuv2_half.py'
model = dict(
    neck=dict(quality=None, norm='batch', form='multiplicative'))
