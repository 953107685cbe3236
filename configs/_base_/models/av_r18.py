"""Two ResNet-18 from scratch, frames and spectrogram, fused as one vector each; the leaf names the neck's type.

The auxiliary classifiers (aux_weight=0) are probes: they report what each encoder knows and train nothing else.
"""
modalities = ['visual', 'audio']
model = dict(
    type='FusionRecognizer',
    data_preprocessor=dict(
        type='MultimodalActionDataPreProcessor',
        modalities=modalities,
        mean=dict(visual=[123.675, 116.28, 103.53], audio=None),  # grey levels; log magnitudes stay as they are
        std=dict(visual=[58.395, 57.12, 57.375], audio=None)),
    backbone=dict(
        type='MultimodalBackbone',
        modalities=modalities,
        in_channels=dict(visual=3, audio=1),
        backbones=dict(
            visual=dict(type='ResNet', depth=18, norm_eval=False),
            audio=dict(type='ResNet', depth=18, norm_eval=False))),
    frames_per_clip=dict(visual=3),  # data: LoadClip.num_frames
    neck=dict(modalities=modalities, in_channels=dict(visual=512, audio=512), out_channels=512),
    cls_head=dict(
        type='FusionHead',
        in_channels=512,
        modality_in_channels=dict(visual=512, audio=512),
        aux_weight=0.0,
        average_clips='prob'))
