"""Static fusion in UDML's frame (all weights 1, plain features), two ResNet-18 from scratch, CWFID.

What stays of the noise in training and the auxiliary losses when nothing is weighted.
Run: python tools/train.py configs/segmentation/udml-static_r18-segformer_cwfid.py
Cost: about 4 minutes of a core.
Expect: 64.9 ± 1.1 mIoU clean, 38.7 ± 9.9 / 51.3 ± 0.2 with half of red / near infrared hidden (3 seeds; results/).
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/cwfid.py', '../_base_/models/udml_cwfid.py',
    '../_base_/schedules/cwfid.py']
model = dict(neck=dict(quality=None, embedding=False, form='multiplicative'))
