"""The pictures alone, one small encoder, digits seen and spoken: what a second modality has to beat.

Run: python tools/train.py configs/recognition/visual_small_digit-clips.py
Whole table: python tools/benchmarks/digit_clips_table.py --data-root data/digit_clips --render
Expect: the table in results/README.md.
"""
_base_ = [
    '../_base_/recognition_runtime.py', '../_base_/data/digit_clips.py', '../_base_/schedules/digit_clips.py']
model = dict(
    type='FusionRecognizer',
    data_preprocessor=dict(
        type='MultimodalActionDataPreProcessor', modalities=['visual'], mean=dict(visual=93.5), std=dict(visual=36.0)),
    backbone=dict(
        type='MultimodalBackbone', modalities=['visual'], in_channels=dict(visual=3),
        backbones=dict(visual=dict(type='SmallCNN', channels=(8, 16, 32, 64)))),
    frames_per_clip=dict(visual=3),
    neck=dict(type='SingleModality', modality='visual', in_channels=64, out_channels=64),
    cls_head=dict(type='FusionHead', num_classes=10, in_channels=64, topk=(1, )))

load = dict(type='LoadClip', modalities=['visual'], num_frames=3, cache_mb=500)
resize = dict(type='Resize', scale=(32, 32), keep_ratio=False)
shape = dict(type='FormatShape', input_format='NCHW')
pack = dict(type='PackAudioVisual', modalities=['visual'])
train_dataloader = dict(dataset=dict(pipeline=[load, resize, shape, pack]))
test_pipeline = [dict(**load, test_mode=True), resize, shape, pack]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
