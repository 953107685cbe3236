"""Kinetics-Sound: three frames and the log spectrogram of the same five seconds of a clip.

Lists: python tools/convert_kinetics_sound.py data/kinetics400 (ks31, 31 classes). Sound as in UDML's scripts: 16 kHz, 5 s at
random in training and from the centre at test, |STFT| with n_fft 256 and hop 128 -> (1, 129, 626). Another folder:
--cfg-options train_dataloader.dataset.data_root=DIR val_dataloader.dataset.data_root=DIR
test_dataloader.dataset.data_root=DIR. Another list: dataset.class_list and model.cls_head.num_classes.
"""
data_root = 'data/kinetics400'
load = dict(
    type='LoadClip',
    num_frames=3,
    clip_seconds=5.0,
    sound=dict(sample_rate=16000, seconds=5.0, pad='tile'))
train_pipeline = [
    load,
    dict(type='RandomResizedCrop'),
    dict(type='Resize', scale=(224, 224), keep_ratio=False),
    dict(type='Flip', flip_ratio=0.5),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='AudioSpectrogram', preset='kinetics-sound-udml'),
    dict(type='PackAudioVisual', modalities=['visual', 'audio'])]
test_pipeline = [
    dict(**load, test_mode=True),
    dict(type='Resize', scale=(-1, 256)),
    dict(type='CenterCrop', crop_size=224),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='AudioSpectrogram', preset='kinetics-sound-udml'),
    dict(type='PackAudioVisual', modalities=['visual', 'audio'])]
dataset = dict(type='KineticsSoundDataset', class_list='ks31', data_root=data_root)
train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**dataset, ann_file='ks31_train.txt', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, ann_file='ks31_val.txt', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='AccMetric')
test_evaluator = val_evaluator
