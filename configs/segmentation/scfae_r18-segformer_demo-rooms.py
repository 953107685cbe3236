"""SCFAE, two ResNet-18 from scratch and a SegFormer head, on the rendered rooms of tools/make_demo_rooms.py.

Run: python tools/make_demo_rooms.py --out data/demo_rooms
     python tools/train.py configs/segmentation/scfae_r18-segformer_demo-rooms.py
Cost: @@DEMOCOST@@
Expect: @@DEMO_scfae@@
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/demo_rooms.py', '../_base_/models/rgbd_r18_segformer.py',
    '../_base_/schedules/demo.py']
model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    neck=dict(type='SCFAE', width=0.25, norm='layer', modality_dropout=0.3),
    decode_head=dict(num_classes=@@K@@, channels=64))
