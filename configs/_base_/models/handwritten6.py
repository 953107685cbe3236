"""Six views, six encoders (a linear layer, GELU, a linear layer) of unequal widths; the leaf names the neck's type."""
views = ['pix', 'fou', 'fac', 'zer', 'kar', 'mor']
widths = dict(pix=96, fou=48, fac=96, zer=32, kar=48, mor=16)
model = dict(
    type='FusionRecognizer',
    data_preprocessor=dict(type='MultimodalActionDataPreProcessor', modalities=views),
    backbone=dict(
        type='MultimodalBackbone',
        modalities=views,
        in_channels=dict(pix=240, fou=76, fac=216, zer=47, kar=64, mor=6),
        backbones=dict(
            pix=dict(type='FeatureEncoder', hidden_channels=128, out_channels=96, dropout=0.2),
            fou=dict(type='FeatureEncoder', hidden_channels=128, out_channels=48, dropout=0.2),
            fac=dict(type='FeatureEncoder', hidden_channels=128, out_channels=96, dropout=0.2),
            zer=dict(type='FeatureEncoder', hidden_channels=128, out_channels=32, dropout=0.2),
            kar=dict(type='FeatureEncoder', hidden_channels=128, out_channels=48, dropout=0.2),
            mor=dict(type='FeatureEncoder', hidden_channels=128, out_channels=16, dropout=0.2))),
    neck=dict(modalities=views, in_channels=widths, out_channels=96),
    cls_head=dict(type='FusionHead', num_classes=10, in_channels=96, modality_in_channels=widths, topk=(1, )))
