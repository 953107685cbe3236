"""One view alone, six views of handwritten digits: what the others have to beat, and Table 6's reference.

The other encoders run idle: nothing reads them but probes, which train nothing. Another view: --cfg-options
model.neck.modality=fou model.neck.in_channels=48
Run: python tools/train.py configs/recognition/single_handwritten6.py
Whole table: python tools/benchmarks/scfae_tables.py 6 handwritten6 --data-root data/handwritten6 --render
Expect: the table in results/README.md.
"""
_base_ = [
    '../_base_/recognition_runtime.py', '../_base_/data/handwritten6.py', '../_base_/models/handwritten6.py',
    '../_base_/schedules/features.py']
model = dict(
    neck=dict(_delete_=True, type='SingleModality', modality='pix', in_channels=96, out_channels=96),
    cls_head=dict(aux_weight=0.0))
