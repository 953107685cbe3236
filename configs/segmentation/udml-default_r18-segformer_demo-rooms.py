"""UDML, the default, two half-width ResNet-18 from scratch and a SegFormer head, on rendered rooms.

Weights (s alpha)^(-1/3): s from the noise estimator, or from novelty where that is larger; alpha the dependency.
Run: python tools/make_demo_rooms.py --out data/demo_rooms
     python tools/train.py configs/segmentation/udml-default_r18-segformer_demo-rooms.py
Cost: 240 iterations at batch 4, two minutes on two cores.
Expect: mIoU 48.9 on the 16 validation rooms (one run); so short a training varies much.
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/demo_rooms.py', '../_base_/models/udml_rgbd_r18.py',
    '../_base_/schedules/demo.py']
widths = [32, 64, 128, 256]
encoder = dict(base_channels=32, stem_channels=32)
head = dict(in_channels=widths, num_classes=7)
model = dict(
    backbone=dict(backbones=dict(rgb=encoder, depth=encoder)),
    data_preprocessor=dict(size=(96, 128)),
    neck=dict(
        preset='default', in_channels=dict(rgb=widths, depth=widths), inner=dict(out_channels=widths),
        # the preset's options, spelt out: results belong to them; but the estimator reads the input alone
        norm='batch', form='multiplicative', law='inverse', temperature=3.0, reads=['input'], novelty=['input']),
    modality_heads=dict(rgb=head, depth=head),
    decode_head=dict(**head, channels=64))
# 120 steps of 4 crops with noise are few for the estimator at the encoders' rate; it teaches nothing but itself. At 30
# times that rate one step along 960 variances throws it where it learns no more: hence reads=['input'].
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'neck.udml.estimate': dict(lr_mult=30.0)}))
