"""The near-infrared camera alone, one ResNet-18 from scratch, CWFID: what a second sensor has to beat.

Run: python tools/train.py configs/segmentation/nir_r18-segformer_cwfid.py
Whole table: python tools/benchmarks/cwfid_table.py --data-root data/cwfid --out results/cwfid.jsonl --render
Cost: see s per run in the table (about two minutes on one core).
Expect: the table in results/README.md.
"""
_base_ = './concat_r18-segformer_cwfid.py'
model = dict(
    data_preprocessor=dict(
        modalities=['nir'], mean=dict(_delete_=True, nir=[79.0]), std=dict(_delete_=True, nir=[25.6])),
    backbone=dict(
        modalities=['nir'],
        in_channels=dict(_delete_=True, nir=1),
        backbones=dict(_delete_=True, nir={{_base_.encoder}})),
    neck=dict(
        _delete_=True, type='SingleModality', modality='nir', in_channels=[64, 128, 256, 512],
        out_channels=[64, 128, 256, 512]))

load = [
    dict(type='LoadModalities', modalities=['nir'], sensors=dict(nir=dict(kind='gray'))),
    dict(type='LoadSegLabel')]
train_pipeline = [
    *load,
    dict(type='RandomResize', scale=(648, 483), ratio_range=(0.7, 1.3), keep_ratio=True),
    dict(type='RandomCrop', crop_size={{_base_.crop_size}}, cat_max_ratio=0.9),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandomFlip', prob=0.5, direction='vertical'),
    dict(type='PackModalities', modalities=['nir'])]
test_pipeline = [*load, dict(type='PackModalities', modalities=['nir'])]
tta_pipeline = [
    load[0],
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in (0.75, 1.0, 1.25)],
        [dict(type='RandomFlip', prob=0.0, direction='horizontal'),
         dict(type='RandomFlip', prob=1.0, direction='horizontal')],
        [dict(type='LoadSegLabel')],
        [dict(type='PackModalities', modalities=['nir'])]])]
files = dict(modalities=['nir'])
train_dataloader = dict(dataset=dict(**files, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**files, pipeline=test_pipeline))
test_dataloader = val_dataloader
