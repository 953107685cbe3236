"""SCFAE, two half-width ResNet-18 from scratch and a SegFormer head, on rendered rooms.

Run: python tools/make_demo_rooms.py --out data/demo_rooms
     python tools/train.py configs/segmentation/scfae_r18-segformer_demo-rooms.py
Cost: 240 iterations at batch 4, a minute and a half on two cores.
Expect: mIoU 52.1 on the 16 validation rooms (one run of the quick start); so short a training varies much.
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/demo_rooms.py', '../_base_/models/rgbd_r18_segformer.py',
    '../_base_/schedules/demo.py']
widths = [32, 64, 128, 256]
encoder = dict(base_channels=32, stem_channels=32)
model = dict(
    backbone=dict(backbones=dict(rgb=encoder, depth=encoder)),
    data_preprocessor=dict(size=(96, 128)),
    neck=dict(
        type='SCFAE', in_channels=dict(rgb=widths, depth=widths), out_channels=widths,
        width=0.28125, norm='layer', modality_dropout=0.3),
    decode_head=dict(in_channels=widths, num_classes=7, channels=64))
