"""Dynamic fusion by probabilistic embedding, weights 1 / sigma^2, two ResNet-18 from scratch, NYU Depth v2, half size.

The uncertainty is the embedding's own sigma, which nobody has taught what noise is.
Run: python tools/train.py configs/segmentation/udml-pe_r18-segformer_nyuv2-half.py
Cost: 1,200 iterations at batch 4, about an hour of one core.
Expect: this schedule has not been run; 600 iterations of 128x160 crops gave mIoU 3.3 (results/README.md, two seeds).
"""
_base_ = '../_base_/udml_nyuv2_half.py'
model = dict(
    neck=dict(
        quality='variance', dependency=False, law='inverse_square', temperature=1.0, form='residual', norm='batch'))
