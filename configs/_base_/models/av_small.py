"""Two small encoders (25 thousand parameters each) for clips of 32x32 pixels; the leaf names the neck's type.

Each encoder also learns from a classifier of its own (aux_weight=1), alike for every fusion: else the sound, which
is learnt first, leaves the pictures' encoder nothing to learn from. aux_weight=0 makes the classifiers probes.
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
            visual=dict(type='SmallCNN', channels=(8, 16, 32, 64)),
            audio=dict(type='SmallCNN', channels=(8, 16, 32, 64), pools=((4, 2), 2, 2, 2)))),
    frames_per_clip=dict(visual=3),  # data: LoadClip.num_frames
    neck=dict(modalities=['visual', 'audio'], in_channels=dict(visual=64, audio=64), out_channels=64),
    cls_head=dict(
        type='FusionHead',
        in_channels=64,
        modality_in_channels=dict(visual=64, audio=64),
        aux_weight=1.0,
        topk=(1, )))
