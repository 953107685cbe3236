"""One modality alone, CMU-MOSI's text, sound and face features: what the others have to beat, and Table 6's reference.

The other encoders run idle: nothing reads them but probes, which train nothing. Another modality: --cfg-options
model.neck.modality=audio model.neck.in_channels=32
Run: python tools/train.py configs/recognition/single_cmu-mosi.py
Whole table: python tools/benchmarks/scfae_tables.py 6 cmu-mosi --data-root data/cmu_mosi --render
Expect: the table in results/README.md.
"""
_base_ = [
    '../_base_/recognition_runtime.py', '../_base_/data/cmu_mosi.py', '../_base_/models/cmu_mosi.py',
    '../_base_/schedules/features.py']
model = dict(
    neck=dict(_delete_=True, type='SingleModality', modality='text', in_channels=64, out_channels=64),
    cls_head=dict(aux_weight=0.0))
