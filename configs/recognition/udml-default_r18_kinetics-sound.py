"""UDML, the default, two ResNet-18 from scratch, Kinetics-Sound (31), the recipe of UDML's scripts.

Weights (s alpha)^(-1/3): s from the noise estimator, or from novelty where that is larger; alpha the dependency.
Run: python tools/train.py configs/recognition/udml-default_r18_kinetics-sound.py
Expect: not run yet (no copy of the data at hand).
"""
_base_ = [
    '../_base_/recognition_runtime_resumable.py', '../_base_/data/kinetics_sound.py', '../_base_/models/udml_av_r18.py',
    '../_base_/schedules/sgd_100e.py']
model = dict(
    # released beta: 0, no KL
    neck=dict(preset='default', kl_weight=0.0),
    # released gamma: 2.5, times the mean cross entropy of each modality's own classifier, as here
    cls_head=dict(num_classes=31, aux_weight=2.5))
