"""Concatenation, two ResNet-18 from scratch and a SegFormer head, NYU Depth v2 at half size.

It shares everything with the SCFAE row, input normalisation and modality dropout included: both differ in the
fusion alone. Plain concatenation: --cfg-options model.neck.norm=None model.neck.modality_dropout=0.0
Run: python tools/train.py configs/segmentation/concat_r18-segformer_nyuv2-half.py
Cost: 1,200 iterations at batch 4, about 45 minutes on one core.
Expect: 8.1 mIoU (one seed). No pretrained weights, a short schedule: far below published numbers.
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/nyuv2_half.py', '../_base_/models/rgbd_r18_segformer.py',
    '../_base_/schedules/scratch_1200.py']
model = dict(
    data_preprocessor=dict(size=(192, 256)),
    neck=dict(type='ConcatFusion', norm='layer', modality_dropout=0.3),
    decode_head=dict(num_classes=40))
