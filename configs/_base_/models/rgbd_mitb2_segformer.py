"""Two SegFormer MiT-B2 (colour, depth in metres) and its head; the leaf adds neck.type and num_classes."""
norm_cfg = dict(type='BN', requires_grad=True)  # several GPUs: norm_cfg 'SyncBN' in the head
encoder = dict(
    type='MixVisionTransformer', embed_dims=64, num_stages=4, num_layers=[3, 4, 6, 3], num_heads=[1, 2, 5, 8],
    patch_sizes=[7, 3, 3, 3], sr_ratios=[8, 4, 2, 1], out_indices=(0, 1, 2, 3), mlp_ratio=4, qkv_bias=True,
    drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.1)
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
        in_channels=dict(rgb=[64, 128, 320, 512], depth=[64, 128, 320, 512]),
        out_channels=[64, 128, 320, 512]),
    decode_head=dict(
        type='SegformerHead',
        in_channels=[64, 128, 320, 512],
        in_index=[0, 1, 2, 3],
        channels=256,
        dropout_ratio=0.1,
        norm_cfg=norm_cfg,
        align_corners=False,
        # mean over labelled pixels: padding and unlabelled ones would dilute it
        loss_decode=dict(
            type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
