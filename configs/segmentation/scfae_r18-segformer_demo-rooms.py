"""SCFAE, two ResNet-18 from scratch and a SegFormer head, on rendered rooms.

Run: python tools/make_demo_rooms.py --out data/demo_rooms
     python tools/train.py configs/segmentation/scfae_r18-segformer_demo-rooms.py
Cost: 100 iterations at batch 8, two minutes on two cores.
Expect: not measured yet; 100 iterations only show that everything works.
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/demo_rooms.py', '../_base_/models/rgbd_r18_segformer.py',
    '../_base_/schedules/demo.py']
model = dict(
    data_preprocessor=dict(size=(96, 128)),
    neck=dict(type='SCFAE', width=0.28125, norm='layer', modality_dropout=0.3),
    decode_head=dict(num_classes=7, channels=64))
