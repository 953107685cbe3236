"""UDML, the default, two ResNet-18 from scratch and a SegFormer head, NYU Depth v2 at half size.

Weights 1 / (s alpha): s from the noise estimator, alpha the modality's dependency.
Released gamma and beta are known for CREMA-D (4.0, 1e-5) and Kinetics-Sound (2.5, 0) alone. gamma is the
loss_weight of modality_heads, here 1. beta weighs a sum over channels and positions: on 192x256 the four
stages have 196,608, 98,304, 49,152 and 24,576 values, so 1e-5 would be 2.0 to 0.25 times their mean.
kl_weight weighs the mean, whatever the size; here 0.
Run: python tools/train.py configs/segmentation/udml-default_r18-segformer_nyuv2-half.py
Cost: 1,200 iterations at batch 4; not measured yet.
Expect: not run yet. No pretrained weights, a short schedule: far below published numbers.
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/nyuv2_half.py', '../_base_/models/udml_rgbd_r18.py',
    '../_base_/schedules/scratch_1200.py']
model = dict(
    data_preprocessor=dict(size=(192, 256)),
    neck=dict(preset='default', kl_weight=0.0),
    decode_head=dict(num_classes=40))
