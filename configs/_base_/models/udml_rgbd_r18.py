"""rgbd_r18_segformer for UDML: noise in training, auxiliary heads, and the hook that tells the stages.

Every udml-*_r18-segformer_nyuv2-* of one size shares what stands here and differs in model.neck alone.
Noise on the depth, say, at test: --cfg-options model.data_preprocessor.test_noise.depth.type=gaussian
model.data_preprocessor.test_noise.depth.level=14 (what a level means stands in train_noise).
"""
_base_ = './rgbd_r18_segformer.py'
# one for each encoder; as decode_head, but narrow
head = dict(
    type='SegformerHead',
    in_channels=[64, 128, 256, 512],
    in_index=[0, 1, 2, 3],
    channels=64,
    dropout_ratio=0.1,
    num_classes=40,
    norm_cfg=dict(type='BN', requires_grad=True),
    align_corners=False,
    loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True))
model = dict(
    data_preprocessor=dict(
        train_noise=dict(
            noise=dict(
                # std 10 grey levels per level; clipped to 0..255
                rgb=dict(kind='image', levels=(1, 11), scale=dict(gaussian=10.0)),
                # std 0.2 m per level; clipped to the sensor's range; invalid readings stay invalid
                depth=dict(kind='depth', valid_range=(0.1, 10.0), levels=(1, 11), scale=dict(gaussian=0.2))),
            clean_share=0.5,
            mode='one',  # of a noisy frame one sensor, each equally often
            start=0.5)),  # share of training
    modality_heads=dict(rgb=head, depth=head),
    neck=dict(
        _delete_=True,
        type='UDML',
        modalities=['rgb', 'depth'],
        in_channels=dict(rgb=[64, 128, 256, 512], depth=[64, 128, 256, 512]),
        weights_from=0.6,  # share of training
        inner=dict(type='ConcatFusion', out_channels=[64, 128, 256, 512], norm=None, modality_dropout=0.3)))
custom_hooks = [dict(type='FusionScheduleHook')]
