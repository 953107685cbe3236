"""Concatenation, two ResNet-50 from scratch and a SegFormer head, NYU Depth v2 at half size.

Run: python tools/train.py configs/segmentation/concat_r50-segformer_nyuv2-half.py
Whole table, on a GPU: python tools/benchmarks/nyuv2_half_table.py --data-root data/nyuv2_half --render
Cost: 1,200 iterations at batch 4 in this schedule; not timed. Meant for a GPU.
Expect: not run yet (built and trained for a few steps).
"""
_base_ = './concat_r18-segformer_nyuv2-half.py'
widths = [256, 512, 1024, 2048]
model = dict(
    backbone=dict(backbones=dict(rgb=dict(depth=50), depth=dict(depth=50))),
    neck=dict(in_channels=dict(rgb=widths, depth=widths), out_channels=widths),
    decode_head=dict(in_channels=widths))
