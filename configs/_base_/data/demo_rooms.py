"""Rendered RGB-D rooms that tools/make_demo_rooms.py writes, in the layout of NYU Depth v2, 120x160.

Another folder: --cfg-options train_dataloader.dataset.data_root=DIR val_dataloader.dataset.data_root=DIR
test_dataloader.dataset.data_root=DIR.
"""
data_root = 'data/demo_rooms'
crop_size = (96, 128)
# 16-bit millimetres, 0 = the sensor saw nothing
sensors = dict(
    rgb=dict(kind='color'),
    depth=dict(kind='depth', dtype='uint16', scale=0.001, invalid=0, valid_range=(0.1, 10.0)))
cache_mb = 50  # decoded once per process: 80 frames are 9 MB
load = [
    dict(type='LoadModalities', modalities=['rgb', 'depth'], sensors=sensors, cache_mb=cache_mb),
    dict(type='LoadSegLabel', cache_mb=cache_mb)]

train_pipeline = [
    *load,
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='ColorJitter', modality='rgb'),
    dict(type='PackModalities', modalities=['rgb', 'depth'])]
test_pipeline = [*load, dict(type='PackModalities', modalities=['rgb', 'depth'])]
tta_pipeline = [
    load[0],
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in (0.75, 1.0, 1.25)],
        [dict(type='RandomFlip', prob=0.0, direction='horizontal'),
         dict(type='RandomFlip', prob=1.0, direction='horizontal')],
        [dict(type='LoadSegLabel')],
        [dict(type='PackModalities', modalities=['rgb', 'depth'])]])]

files = dict(
    type='DemoRoomsDataset',
    data_root=data_root,
    modalities=['rgb', 'depth'])
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(**files, ann_file='train.txt', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**files, ann_file='val.txt', pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
