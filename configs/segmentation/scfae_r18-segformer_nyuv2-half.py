"""SCFAE, two ResNet-18 from scratch and a SegFormer head, NYU Depth v2 at half size.

Run: python tools/train.py configs/segmentation/scfae_r18-segformer_nyuv2-half.py
Cost: 1,200 iterations at batch 4, about 45 minutes on one core.
Expect: 7.6 mIoU (one seed). No pretrained weights, a short schedule: far below published numbers.
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/nyuv2_half.py', '../_base_/models/rgbd_r18_segformer.py',
    '../_base_/schedules/scratch_1200.py']
model = dict(
    data_preprocessor=dict(size=(192, 256)),
    neck=dict(type='SCFAE', width=0.28125, norm='layer', modality_dropout=0.3),
    decode_head=dict(num_classes=40))
