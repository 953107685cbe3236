"""UDML, the default, round SCFAE, two ResNet-18 from scratch, CWFID.

udml-default with SCFAE inside (light form).
Run: python tools/train.py configs/segmentation/udml-scfae_r18-segformer_cwfid.py
Cost: about 4 minutes of a core.
Expect: 64.8 ± 1.1 mIoU clean, 53.1 ± 0.9 / 49.6 ± 0.5 with half of red / near infrared hidden (3 seeds; results/).
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/cwfid.py', '../_base_/models/udml_cwfid.py',
    '../_base_/schedules/cwfid.py']
model = dict(
    neck=dict(
        preset='default',
        # the preset's options, spelt out: results belong to them; but the estimator reads the input alone
        norm='batch', form='multiplicative', law='inverse', temperature=3.0, reads=['input'], novelty=['input'],
        inner=dict(type='SCFAE', width=0.28125, norm='layer')))
# 130 steps of 4 crops with noise are few for the estimator at the encoders' rate; it teaches nothing but itself. At 30
# times that rate one step along 960 variances throws it where it learns no more: hence reads=['input'].
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'neck.udml.estimate': dict(lr_mult=30.0)}))
