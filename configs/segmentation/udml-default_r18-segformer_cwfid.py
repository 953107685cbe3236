"""UDML, the default, two ResNet-18 from scratch, CWFID.

Weights (s alpha)^(-1/3): s from the noise estimator, or from novelty where that is larger; alpha the dependency.
Run: python tools/train.py configs/segmentation/udml-default_r18-segformer_cwfid.py
Cost: about 4 minutes of a core.
Expect: 64.2 ± 0.9 mIoU clean, 49.3 ± 1.7 / 49.7 ± 0.5 with half of red / near infrared hidden (3 seeds; results/).
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/cwfid.py', '../_base_/models/udml_cwfid.py',
    '../_base_/schedules/cwfid.py']
model = dict(
    neck=dict(
        preset='default',
        # the preset's options, spelt out: results belong to them; but the estimator reads the input alone
        norm='batch', form='multiplicative', law='inverse', temperature=3.0, reads=['input'], novelty=['input']))
# 130 steps of 4 crops with noise are few for the estimator at the encoders' rate; it teaches nothing but itself. At 30
# times that rate one step along 960 variances throws it where it learns no more: hence reads=['input'].
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'neck.udml.estimate': dict(lr_mult=30.0)}))
