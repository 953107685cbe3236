"""Concatenation, two MiT-B2 from scratch and a SegFormer head, NYU Depth v2 at half size.

Run: python tools/train.py configs/segmentation/concat_mitb2-segformer_nyuv2-half.py
Whole table, on a GPU: python tools/benchmarks/nyuv2_half_table.py --data-root data/nyuv2_half --render
Cost: 1,200 iterations at batch 4 in this schedule; not timed. Meant for a GPU.
Expect: not run yet (built and trained for a few steps).
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/nyuv2_half.py', '../_base_/models/rgbd_mitb2_segformer.py',
    '../_base_/schedules/scratch_1200.py']
model = dict(
    data_preprocessor=dict(size=(192, 256)),
    neck=dict(type='ConcatFusion', norm='layer', modality_dropout=0.3),
    decode_head=dict(num_classes=40))
