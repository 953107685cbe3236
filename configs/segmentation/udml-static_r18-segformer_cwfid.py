"""Static fusion in UDML's frame (all weights 1, plain features), two ResNet-18 from scratch, CWFID.

What stays of the noise in training and the auxiliary losses when nothing is weighted.
Run: python tools/train.py configs/segmentation/udml-static_r18-segformer_cwfid.py
Cost: not measured yet.
Expect: not run yet.
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/cwfid.py', '../_base_/models/udml_cwfid.py',
    '../_base_/schedules/cwfid.py']
model = dict(neck=dict(quality=None, embedding=False, form='multiplicative'))
