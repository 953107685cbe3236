"""UCI multiple features: handwritten digits seen by six feature extractors, 1,600 train / 400 test rows.

pix 240 pixel averages, fou 76 Fourier coefficients, fac 216 profile correlations, zer 47 Zernike moments,
kar 64 Karhunen-Loeve coefficients, mor 6 morphological features. One .mat file (TMC's copy) in data/handwritten6;
another folder: --cfg-options train_dataloader.dataset.data_root=DIR val_dataloader.dataset.data_root=DIR
test_dataloader.dataset.data_root=DIR.
"""
data_root = 'data/handwritten6'
file = 'handwritten_6views.mat'
dataset = dict(
    type='FeatureDataset',
    data_root=data_root,
    ann_file=file,
    arrays=dict(
        pix='x1_{split}', fou='x2_{split}', fac='x3_{split}', zer='x4_{split}', kar='x5_{split}', mor='x6_{split}'),
    label='gt_{split}',
    label_offset=1,  # stored as 1..10
    num_classes=10,
    standardize=dict(file=file, split='train'),  # no statistics of test data
    pipeline=[dict(type='PackFeatures', modalities=['pix', 'fou', 'fac', 'zer', 'kar', 'mor'])])
train_dataloader = dict(
    batch_size=64,
    num_workers=0,  # everything is in memory
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**dataset, split='train'))
val_dataloader = dict(
    batch_size=200,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, split='test'))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='AccMetric', metric_list=('top_k_accuracy', ), metric_options=dict(top_k_accuracy=dict(topk=(1, ))))
test_evaluator = val_evaluator
