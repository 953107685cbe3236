"""Text, sound and face features, an MLP each; the leaf names the neck's type.

Each encoder also learns from a classifier of its own, alike for every fusion: else the text's features, which all but
contain the training labels, leave the others nothing to learn.
"""
modalities = ['text', 'audio', 'video']
widths = dict(text=64, audio=32, video=48)
model = dict(
    type='FusionRecognizer',
    data_preprocessor=dict(type='MultimodalActionDataPreProcessor', modalities=modalities),
    backbone=dict(
        type='MultimodalBackbone',
        modalities=modalities,
        in_channels=dict(text=100, audio=73, video=100),
        backbones=dict(
            text=dict(type='FeatureEncoder', hidden_channels=64, out_channels=64, dropout=0.5),
            audio=dict(type='FeatureEncoder', hidden_channels=64, out_channels=32, dropout=0.5),
            video=dict(type='FeatureEncoder', hidden_channels=64, out_channels=48, dropout=0.5))),
    neck=dict(modalities=modalities, in_channels=widths, out_channels=64),
    cls_head=dict(
        type='FusionHead', num_classes=2, in_channels=64, modality_in_channels=widths, aux_weight=1.0, topk=(1, )))
