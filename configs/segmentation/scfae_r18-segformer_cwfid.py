"""SCFAE, the default: light form with LayerNorm, two ResNet-18 from scratch, CWFID.

Run: python tools/train.py configs/segmentation/scfae_r18-segformer_cwfid.py
The row without modality dropout: --cfg-options model.neck.modality_dropout=0.0
Whole table: python tools/benchmarks/cwfid_table.py --data-root data/cwfid --out results/cwfid.jsonl --render
Cost: see s per run in the table (about three minutes on one core).
Expect: the table in results/README.md.
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/cwfid.py', '../_base_/models/rednir_r18_segformer.py',
    '../_base_/schedules/cwfid.py']
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    neck=dict(type='SCFAE', width=0.28125, norm='layer', modality_dropout=0.3))
