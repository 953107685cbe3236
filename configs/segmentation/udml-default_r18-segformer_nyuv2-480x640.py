"""UDML, the default, two ResNet-18 and a SegFormer head, NYU Depth v2.

Weights (s alpha)^(-1/3): s from the noise estimator, or from novelty where that is larger; alpha the dependency.
Released gamma and beta are known for CREMA-D (4.0, 1e-5) and Kinetics-Sound (2.5, 0) alone. gamma is the
loss_weight of modality_heads, here 1. beta weighs a sum over channels and positions: on 480x640 the four
stages have 1,228,800, 614,400, 307,200 and 153,600 values, so 1e-5 would be 12 to 1.5 times their mean.
kl_weight weighs the mean, whatever the size; here 0.
Run: python tools/train.py configs/segmentation/udml-default_r18-segformer_nyuv2-480x640.py
Cost: 40k iterations at batch 8, meant for one large GPU; not measured yet.
Expect: not run yet (neither the official data nor pretrained weights were at hand).
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/nyuv2.py', '../_base_/models/udml_rgbd_r18.py',
    '../_base_/schedules/poly_40k.py']
model = dict(
    data_preprocessor=dict(size=(480, 640)),
    # Pretrained encoders, as every published number has (needs the network):
    # backbone=dict(backbones=dict(
    #     rgb=dict(init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet18_v1c')),
    #     depth=dict(init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet18_v1c')))),
    neck=dict(preset='default', kl_weight=0.0),
    decode_head=dict(num_classes=40))
