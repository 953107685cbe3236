"""SCFAE, the default, two ResNet-18 from scratch, Kinetics-Sound (31 classes), the recipe of UDML's scripts.

Run: python tools/train.py configs/recognition/scfae_r18_kinetics-sound.py
Expect: not measured here (no copy of the data at hand); published figures are in results/README.md.
"""
_base_ = [
    '../_base_/recognition_runtime_resumable.py', '../_base_/data/kinetics_sound.py', '../_base_/models/av_r18.py',
    '../_base_/schedules/sgd_100e.py']
model = dict(
    neck=dict(
        # a quarter of the width: 2.6 M parameters, not 25.7; level or ahead on two of three small sets
        type='SCFAE', width=0.25, norm='layer', residual=True, head_reads='post_and_input', modality_dropout=0.3),
    cls_head=dict(num_classes=31))
