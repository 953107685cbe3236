"""UDML, the default, two ResNet-18 from scratch and a SegFormer head, NYU Depth v2 at half size.

Weights (s alpha)^(-1/3): s from the noise estimator, or from novelty where that is larger; alpha the dependency.
Released gamma and beta are known for CREMA-D (4.0, 1e-5) and Kinetics-Sound (2.5, 0) alone. gamma is the
loss_weight of modality_heads, here 1. beta weighs a sum over channels and positions: on 192x256 the four
stages have 196,608, 98,304, 49,152 and 24,576 values, so 1e-5 would be 2.0 to 0.25 times their mean.
kl_weight weighs the mean, whatever the size; here 0.
Run: python tools/train.py configs/segmentation/udml-default_r18-segformer_nyuv2-half.py
Cost: 1,200 iterations at batch 4, about an hour of one core.
Expect: this schedule has not been run; 600 iterations of 128x160 crops gave mIoU 3.3 (results/README.md, two seeds).
"""
_base_ = '../_base_/udml_nyuv2_half.py'
model = dict(
    neck=dict(
        preset='default', kl_weight=0.0,
        # the preset's options, spelt out: results belong to them; but the estimator reads the input alone
        norm='batch', form='multiplicative', law='inverse', temperature=3.0, reads=['input'], novelty=['input']))
# 600 steps of 4 crops with noise are few for the estimator at the encoders' rate; it teaches nothing but itself. At 30
# times that rate one step along 960 variances throws it where it learns no more: hence reads=['input'].
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'neck.udml.estimate': dict(lr_mult=30.0)}))
