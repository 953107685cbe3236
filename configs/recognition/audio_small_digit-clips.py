"""The sound alone, one small encoder, digits seen and spoken: what a second modality has to beat.

Run: python tools/train.py configs/recognition/audio_small_digit-clips.py
Whole table: python tools/benchmarks/digit_clips_table.py --data-root data/digit_clips --render
Expect: the table in results/README.md.
"""
_base_ = [
    '../_base_/recognition_runtime.py', '../_base_/data/digit_clips.py', '../_base_/schedules/digit_clips.py']
model = dict(
    type='FusionRecognizer',
    data_preprocessor=dict(
        type='MultimodalActionDataPreProcessor', modalities=['audio'], mean=dict(audio=1.0), std=dict(audio=1.33)),
    backbone=dict(
        type='MultimodalBackbone', modalities=['audio'], in_channels=dict(audio=1),
        backbones=dict(audio=dict(type='SmallCNN', channels=(8, 16, 32, 64), pools=((4, 2), 2, 2, 2)))),
    neck=dict(type='SingleModality', modality='audio', in_channels=64, out_channels=64),
    cls_head=dict(type='FusionHead', num_classes=10, in_channels=64, topk=(1, )))

load = dict(
    type='LoadClip', modalities=['audio'], sound=dict(sample_rate=8000, seconds=1.0, pad='zero'), cache_mb=500)
shape = dict(type='AudioSpectrogram', n_fft=256, hop=256, floor=1e-2, rms=1.0)
rolled = dict(**shape, roll=0.13)
pack = dict(type='PackAudioVisual', modalities=['audio'])
train_dataloader = dict(dataset=dict(pipeline=[load, rolled, pack]))
test_pipeline = [dict(**load, test_mode=True), shape, pack]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
