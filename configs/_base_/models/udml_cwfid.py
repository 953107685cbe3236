"""rednir_r18_segformer for UDML on CWFID: noise in training, auxiliary heads, and the hook that tells the stages.

Every udml-*_r18-segformer_cwfid.py shares what stands here and differs in model.neck alone.
Noise on near infrared, say, at test: --cfg-options model.data_preprocessor.test_noise.nir.type=gaussian
model.data_preprocessor.test_noise.nir.level=14 (what a level means stands in train_noise).
"""
_base_ = './rednir_r18_segformer.py'
head = {{_base_.model.decode_head}}  # all four stages here too: the last one alone is 4x4 on a crop
# std 5 grey levels per level, clipped to 0..255: level 11 is 2.5 times the pictures' own std (22 and 26)
noise = dict(kind='image', levels=(1, 11), scale=dict(gaussian=5.0))
model = dict(
    data_preprocessor=dict(
        size=(128, 128),
        train_noise=dict(
            noise=dict(red=noise, nir=noise),
            clean_share=0.5,
            mode='one',  # of a noisy crop one camera, each equally often
            start=0.5)),  # share of training
    modality_heads=dict(red=head, nir=head),
    neck=dict(
        _delete_=True,
        type='UDML',
        modalities=['red', 'nir'],
        in_channels=dict(red=[64, 128, 256, 512], nir=[64, 128, 256, 512]),
        weights_from=0.6,  # share of training
        inner=dict(type='ConcatFusion', out_channels=[64, 128, 256, 512], norm=None, modality_dropout=0.3)))
custom_hooks = [dict(type='FusionScheduleHook')]
