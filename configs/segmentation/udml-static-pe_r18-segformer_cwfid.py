"""Static fusion with probabilistic heads (all weights 1), two ResNet-18 from scratch, CWFID.

What the probabilistic heads alone add to udml-static.
Run: python tools/train.py configs/segmentation/udml-static-pe_r18-segformer_cwfid.py
Cost: about 4 minutes of a core.
Expect: 63.9 ± 1.3 mIoU clean, 39.5 ± 11.5 / 50.9 ± 0.4 with half of red / near infrared hidden (3 seeds; README.md).
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/cwfid.py', '../_base_/models/udml_cwfid.py',
    '../_base_/schedules/cwfid.py']
model = dict(neck=dict(quality=None, norm='batch', form='multiplicative'))
