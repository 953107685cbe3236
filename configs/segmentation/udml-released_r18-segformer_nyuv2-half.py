"""UDML by the released code's formulas, two ResNet-18 from scratch, NYU Depth v2 at half size.

Kinetics-Sound's beta of 0: no KL.
Run: python tools/train.py configs/segmentation/udml-released_r18-segformer_nyuv2-half.py
Cost: 1,200 iterations at batch 4, about an hour of one core.
Expect: not run yet. No pretrained weights, a short schedule: far below published numbers.
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/nyuv2_half.py', '../_base_/models/udml_rgbd_r18.py',
    '../_base_/schedules/scratch_1200.py']
model = dict(
    data_preprocessor=dict(size=(192, 256)),
    decode_head=dict(num_classes=40),
    neck=dict(preset='released', kl_weight=0.0))
