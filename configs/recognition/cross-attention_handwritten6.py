"""Cross-attention between the views, six views of handwritten digits.

Run: python tools/train.py configs/recognition/cross-attention_handwritten6.py
Whole table: python tools/benchmarks/features_table.py handwritten6 --data-root data/handwritten6 --render
Expect: the table in results/README.md.
"""
_base_ = [
    '../_base_/recognition_runtime.py', '../_base_/data/handwritten6.py', '../_base_/models/handwritten6.py',
    '../_base_/schedules/features.py']
model = dict(neck=dict(type='CrossAttentionFusion', norm=None, modality_dropout=0.0))
