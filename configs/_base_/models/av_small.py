"""Two small encoders (61 thousand parameters each) for clips of 32x32 pixels; the leaf names the neck's type.

The auxiliary classifiers (aux_weight=0) are probes: they report what each encoder knows and train nothing else.
"""
model = dict(
    type='FusionRecognizer',
    data_preprocessor=dict(
        type='MultimodalActionDataPreProcessor',
        modalities=['visual', 'audio']),
    backbone=dict(
        type='MultimodalBackbone',
        modalities=['visual', 'audio'],
        in_channels=dict(visual=3, audio=1),
        backbones=dict(
            visual=dict(type='SmallCNN'),
            audio=dict(type='SmallCNN', pools=((4, 2), 2, 2, 2)))),
    frames_per_clip=dict(visual=3),  # data: LoadClip.num_frames
    neck=dict(modalities=['visual', 'audio'], in_channels=dict(visual=64, audio=64), out_channels=64),
    cls_head=dict(
        type='FusionHead',
        in_channels=64,
        modality_in_channels=dict(visual=64, audio=64),
        aux_weight=0.0,
        topk=(1, )))
