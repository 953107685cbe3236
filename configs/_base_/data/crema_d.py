"""CREMA-D: 7,442 clips, six emotions; three frames of the clip and the log spectrogram of its sound.

Lists: python tools/convert_crema_d.py data/crema_d --split usual --train-list train.csv --test-list test.csv
The usual split (6,698 / 744, the field's two lists) has all 91 actors in both parts. For another folder, the speaker-disjoint
split and the random one without these lists, add the --cfg-options that the converter prints. Sound as in UDML's scripts:
22,050 Hz, repeated to 3 s, |STFT| with n_fft 512 and hop 353 -> (1, 257, 188).
"""
data_root = 'data/crema_d'
load = dict(
    type='LoadClip',
    num_frames=3,
    clip_seconds=None,  # clips last one to five seconds
    sound=dict(sample_rate=22050, seconds=3.0, pad='tile'))
train_pipeline = [
    load,
    dict(type='RandomResizedCrop'),
    dict(type='Resize', scale=(224, 224), keep_ratio=False),
    dict(type='Flip', flip_ratio=0.5),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='AudioSpectrogram', preset='crema-d-udml'),
    dict(type='PackAudioVisual', modalities=['visual', 'audio'])]
test_pipeline = [
    dict(**load, test_mode=True),
    dict(type='Resize', scale=(-1, 256)),
    dict(type='CenterCrop', crop_size=224),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='AudioSpectrogram', preset='crema-d-udml'),
    dict(type='PackAudioVisual', modalities=['visual', 'audio'])]
dataset = dict(type='CremaDDataset', data_root=data_root)
train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**dataset, ann_file='usual_train.txt', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, ann_file='usual_test.txt', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='AccMetric')
test_evaluator = val_evaluator
