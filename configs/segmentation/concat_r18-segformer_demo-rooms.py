"""Concatenation, two ResNet-18 from scratch and a SegFormer head, on the rendered rooms of tools/make_demo_rooms.py.

It shares everything with the SCFAE row, input normalisation and modality dropout included, so that the two differ
in the fusion alone. Plain concatenation: --cfg-options model.neck.norm=None model.neck.modality_dropout=0.0
Run: python tools/make_demo_rooms.py --out data/demo_rooms
     python tools/train.py configs/segmentation/concat_r18-segformer_demo-rooms.py
Cost: @@DEMOCOST@@
Expect: @@DEMO_concat@@
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/demo_rooms.py', '../_base_/models/rgbd_r18_segformer.py',
    '../_base_/schedules/demo.py']
model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    neck=dict(type='ConcatFusion', norm='layer', modality_dropout=0.3),
    decode_head=dict(num_classes=@@K@@, channels=64))
