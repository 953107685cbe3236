"""Handwritten and spoken digits of the same class in one mp4 clip: 4,000 train / 500 validation / 1,000 test.

Make them: python tools/make_digit_clips.py --out data/digit_clips. Speakers, recordings and images of the parts differ.
Another folder: --cfg-options train_dataloader.dataset.data_root=DIR val_dataloader.dataset.data_root=DIR
test_dataloader.dataset.data_root=DIR.
"""
data_root = 'data/digit_clips'
load = dict(
    type='LoadClip',
    num_frames=3,
    clip_seconds=None,  # the whole clip, one second
    sound=dict(sample_rate=8000, seconds=1.0, pad='zero'),
    cache_mb=500)  # decoded once per process; 5,500 clips are 330 MB
train_pipeline = [
    load,
    dict(type='Resize', scale=(32, 32), keep_ratio=False),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='AudioSpectrogram', n_fft=256, hop=256, floor=1e-2, rms=1.0, roll=0.13),  # (1, 129, 32)
    dict(type='PackAudioVisual', modalities=['visual', 'audio'])]
test_pipeline = [
    dict(**load, test_mode=True),
    dict(type='Resize', scale=(32, 32), keep_ratio=False),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='AudioSpectrogram', n_fft=256, hop=256, floor=1e-2, rms=1.0),
    dict(type='PackAudioVisual', modalities=['visual', 'audio'])]
dataset = dict(
    type='AudioVisualDataset',
    data_root=data_root,
    metainfo=dict(classes=['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine']))
train_dataloader = dict(
    batch_size=32,
    num_workers=0,  # after the first epoch everything comes from the cache
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**dataset, ann_file='train.txt', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, ann_file='val.txt', pipeline=test_pipeline))
test_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, ann_file='test.txt', pipeline=test_pipeline))
val_evaluator = dict(
    type='AccMetric', metric_list=('top_k_accuracy', ), metric_options=dict(top_k_accuracy=dict(topk=(1, ))))
test_evaluator = val_evaluator
