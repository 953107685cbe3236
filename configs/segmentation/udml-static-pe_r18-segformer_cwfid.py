"""Static fusion with probabilistic heads (all weights 1), two ResNet-18 from scratch, CWFID.

What the probabilistic heads alone add to udml-static.
Run: python tools/train.py configs/segmentation/udml-static-pe_r18-segformer_cwfid.py
Cost: about 4 minutes of a core.
Expect: 63.8 ± 1.0 mIoU clean, 39.4 ± 10.4 / 51.1 ± 0.5 with half of red / near infrared hidden (3 seeds; results/).
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/cwfid.py', '../_base_/models/udml_cwfid.py',
    '../_base_/schedules/cwfid.py']
model = dict(neck=dict(quality=None, norm='batch', form='multiplicative'))
