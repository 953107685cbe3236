"""UDML by the released code's formulas, two ResNet-18 from scratch, CWFID.

Kinetics-Sound's beta of 0: no KL.
Run: python tools/train.py configs/segmentation/udml-released_r18-segformer_cwfid.py
Cost: about 4 minutes of a core.
Expect: 63.0 ± 1.6 mIoU clean, 47.8 ± 2.7 / 50.4 ± 0.6 with half of red / near infrared hidden (3 seeds; results/).
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/cwfid.py', '../_base_/models/udml_cwfid.py',
    '../_base_/schedules/cwfid.py']
model = dict(neck=dict(preset='released', kl_weight=0.0))
