"""UDML, the default, round SCFAE, two ResNet-18 from scratch, CREMA-D, the recipe of UDML's scripts.

All but the inner fusion is that of udml-default: SCFAE at a quarter of the width.
Run: python tools/train.py configs/recognition/udml-scfae_r18_crema-d.py
Expect: not run yet (no copy of the data at hand).
"""
_base_ = './udml-default_r18_crema-d.py'
model = dict(neck=dict(inner=dict(type='SCFAE', width=0.25, norm='layer', residual=True, head_reads='post_and_input')))
