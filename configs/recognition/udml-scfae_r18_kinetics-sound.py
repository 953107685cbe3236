"""UDML, the default, round SCFAE, two ResNet-18 from scratch, Kinetics-Sound (31), the recipe of UDML's scripts.

All but the inner fusion is that of udml-default: SCFAE at a quarter of the width.
Run: python tools/train.py configs/recognition/udml-scfae_r18_kinetics-sound.py
Expect: not run yet (no copy of the data at hand).
"""
_base_ = './udml-default_r18_kinetics-sound.py'
model = dict(neck=dict(inner=dict(type='SCFAE', width=0.25, norm='layer', residual=True, head_reads='post_and_input')))
