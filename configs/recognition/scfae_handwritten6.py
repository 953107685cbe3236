"""SCFAE, the default with modality dropout 0.5 as M > 2, six views of handwritten digits.

A classifier for each encoder is worth 2.5 points where views are missing (results/README.md): --cfg-options
model.cls_head.aux_weight=1.0
Run: python tools/train.py configs/recognition/scfae_handwritten6.py
Whole table: python tools/benchmarks/features_table.py handwritten6 --data-root data/handwritten6 --render
Expect: the table in results/README.md.
"""
_base_ = [
    '../_base_/recognition_runtime.py', '../_base_/data/handwritten6.py', '../_base_/models/handwritten6.py',
    '../_base_/schedules/features.py']
model = dict(neck=dict(type='SCFAE', norm='layer', residual=True, head_reads='post_and_input', modality_dropout=0.5))
