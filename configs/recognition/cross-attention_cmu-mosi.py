"""Cross-attention between the modalities, CMU-MOSI's text, sound and face features.

Run: python tools/train.py configs/recognition/cross-attention_cmu-mosi.py
Whole table: python tools/benchmarks/features_table.py cmu-mosi --data-root data/cmu_mosi --render
Expect: the table in results/README.md.
"""
_base_ = [
    '../_base_/recognition_runtime.py', '../_base_/data/cmu_mosi.py', '../_base_/models/cmu_mosi.py',
    '../_base_/schedules/features.py']
model = dict(neck=dict(type='CrossAttentionFusion', norm=None, modality_dropout=0.0))
