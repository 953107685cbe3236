"""UDML, the default, two ResNet-18 from scratch, CWFID.

Weights 1 / (s alpha): s from the noise estimator, alpha the modality's dependency.
Run: python tools/train.py configs/segmentation/udml-default_r18-segformer_cwfid.py
Cost: not measured yet.
Expect: not run yet.
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/cwfid.py', '../_base_/models/udml_cwfid.py',
    '../_base_/schedules/cwfid.py']
model = dict(neck=dict(preset='default'))
