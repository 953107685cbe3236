"""The official training part of NYU Depth v2 at half size (240x320): 600 train / 195 validation frames.

Whole runs of consecutive frames are in one part, so no validation frame lies next to a training frame; the
official test part is not in it, and numbers do not compare with published ones. Only data root, sizes, depth
coding and split differ from nyuv2.py. Another folder: --cfg-options train_dataloader.dataset.data_root=DIR
val_dataloader.dataset.data_root=DIR test_dataloader.dataset.data_root=DIR.
"""
data_root = 'data/nyuv2_half'
crop_size = (192, 256)
# 8 bit over 0-10 m: metres = (value + 0.5) / 25.5; in-filled, so every reading is valid
sensors = dict(
    rgb=dict(kind='color'),
    depth=dict(kind='depth', dtype='uint8', scale=1 / 25.5, offset=0.5 / 25.5, invalid=None,
               valid_range=(0.1, 10.1)))
# cache_mb=400 in both decodes each file once per worker; 600 frames are 280 MB
load = [
    dict(type='LoadModalities', modalities=['rgb', 'depth'], sensors=sensors),
    dict(type='LoadSegLabel')]

train_pipeline = [
    *load,
    dict(type='RandomResize', scale=(320, 240), ratio_range=(0.5, 1.75), keep_ratio=True),
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
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(**files, ann_file='train.txt', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**files, ann_file='val.txt', pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
