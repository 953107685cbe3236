"""Cross-attention between the sensors at each position, two ResNet-18 from scratch, CWFID.

Run: python tools/train.py configs/segmentation/cross-attention_r18-segformer_cwfid.py
The row with modality dropout: --cfg-options model.neck.modality_dropout=0.3
Normalised inputs: --cfg-options model.neck.norm=layer
Whole table: python tools/benchmarks/cwfid_table.py --data-root data/cwfid --out results/cwfid.jsonl --render
Cost: see s per run in the table (about three minutes on one core).
Expect: the table in results/README.md.
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/cwfid.py', '../_base_/models/rednir_r18_segformer.py',
    '../_base_/schedules/cwfid.py']
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    neck=dict(type='CrossAttentionFusion', norm=None, modality_dropout=0.0))
