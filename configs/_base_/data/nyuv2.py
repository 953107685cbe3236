"""NYU Depth v2, 40 classes, 795 train / 654 test, 480x640; recipe of the field.

Layout (also that of CMX and DFormer users): RGB/, Depth/, Label/, train.txt, test.txt under data_root.
Another folder: --cfg-options train_dataloader.dataset.data_root=DIR val_dataloader.dataset.data_root=DIR
test_dataloader.dataset.data_root=DIR (the variable `data_root` alone is read once, when this file is parsed).
Depth as 8-bit pictures or labels stored 0..39 with 255: change `sensors` and `label_offset`.
"""
data_root = 'data/nyuv2'
crop_size = (480, 640)
# 16-bit millimetres, 0 = the sensor saw nothing
sensors = dict(
    rgb=dict(kind='color'),
    depth=dict(kind='depth', dtype='uint16', scale=0.001, invalid=0, valid_range=(0.1, 10.0)))
# cache_mb=1500 in both keeps every decoded frame in memory, in each worker: half the time per sample
load = [
    dict(type='LoadModalities', modalities=['rgb', 'depth'], sensors=sensors),
    dict(type='LoadSegLabel')]

train_pipeline = [
    *load,
    dict(type='RandomResize', scale=(640, 480), ratio_range=(0.5, 1.75), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='ColorJitter', modality='rgb'),
    dict(type='PackModalities', modalities=['rgb', 'depth'])]
test_pipeline = [*load, dict(type='PackModalities', modalities=['rgb', 'depth'])]
tta_pipeline = [
    load[0],
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)],
        [dict(type='RandomFlip', prob=0.0, direction='horizontal'),
         dict(type='RandomFlip', prob=1.0, direction='horizontal')],
        [dict(type='LoadSegLabel')],  # after the resize: the label keeps its own size
        [dict(type='PackModalities', modalities=['rgb', 'depth'])]])]

files = dict(
    type='NYUDepthV2Dataset',
    data_root=data_root,
    modalities=['rgb', 'depth'],
    data_prefix=dict(rgb='RGB', depth='Depth', seg_map_path='Label'),
    suffixes=dict(rgb=['.jpg', '.png'], depth='.png', seg_map_path='.png'),
    label_offset=1)  # stored 1..40, 0 = unlabelled
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(**files, ann_file='train.txt', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**files, ann_file='test.txt', pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
