"""CWFID: field photographs of crops and weeds, red and near-infrared camera, 648x483, 30 train / 9 validation.

Three classes: soil, crop, weed. Another folder: --cfg-options train_dataloader.dataset.data_root=DIR
val_dataloader.dataset.data_root=DIR test_dataloader.dataset.data_root=DIR.
"""
data_root = 'data/cwfid'
crop_size = (128, 128)
sensors = dict(red=dict(kind='gray'), nir=dict(kind='gray'))
# cache_mb=200 in both decodes each file once per worker; 39 pictures are 150 MB
load = [
    dict(type='LoadModalities', modalities=['red', 'nir'], sensors=sensors),
    dict(type='LoadSegLabel')]

train_pipeline = [
    *load,
    # most crops of this field are bare soil: redraw (up to ten times) those that are so for 90 %
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.9),
    # the camera looks straight down: both flips are natural
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandomFlip', prob=0.5, direction='vertical'),
    dict(type='PackModalities', modalities=['red', 'nir'])]
test_pipeline = [*load, dict(type='PackModalities', modalities=['red', 'nir'])]
tta_pipeline = [
    load[0],
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in (0.75, 1.0, 1.25)],
        [dict(type='RandomFlip', prob=0.0, direction='horizontal'),
         dict(type='RandomFlip', prob=1.0, direction='horizontal')],
        [dict(type='LoadSegLabel')],
        [dict(type='PackModalities', modalities=['red', 'nir'])]])]

files = dict(
    type='CWFIDDataset',
    data_root=data_root,
    modalities=['red', 'nir'],
    data_prefix=dict(red='red', nir='nir', seg_map_path='label'),
    suffixes=dict(red='.png', nir='.png', seg_map_path='.png'),
    label_offset=0)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,  # 30 small pictures
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
