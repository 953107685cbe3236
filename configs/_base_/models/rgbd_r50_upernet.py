"""Two ResNet-50 (colour, depth in metres) and UPerNet; the leaf adds neck.type and num_classes."""
norm_cfg = dict(type='BN', requires_grad=True)  # several GPUs: 'SyncBN' in the encoders and the heads
encoder = dict(
    type='ResNetV1c', depth=50, num_stages=4, out_indices=(0, 1, 2, 3), norm_cfg=norm_cfg,
    norm_eval=False, style='pytorch', contract_dilation=True)
model = dict(
    type='FusionEncoderDecoder',
    data_preprocessor=dict(
        type='MultimodalSegDataPreProcessor',
        modalities=['rgb', 'depth'],
        mean=dict(rgb=[123.675, 116.28, 103.53], depth=[2.8]),
        std=dict(rgb=[58.395, 57.12, 57.375], depth=[1.4]),
        bgr_to_rgb=['rgb'],
        invalid=dict(depth=0)),
    backbone=dict(
        type='MultimodalBackbone',
        modalities=['rgb', 'depth'],
        in_channels=dict(rgb=3, depth=1),
        backbones=dict(rgb=encoder, depth=encoder)),
    neck=dict(
        modalities=['rgb', 'depth'],
        in_channels=dict(rgb=[256, 512, 1024, 2048], depth=[256, 512, 1024, 2048]),
        out_channels=[256, 512, 1024, 2048]),
    decode_head=dict(
        type='UPerHead',
        in_channels=[256, 512, 1024, 2048],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        norm_cfg=norm_cfg,
        align_corners=False,
        # mean over labelled pixels: padding and unlabelled ones would dilute it
        loss_decode=dict(
            type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True)),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=1024,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(
            type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4, avg_non_ignore=True)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
