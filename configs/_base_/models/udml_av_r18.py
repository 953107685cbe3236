"""av_r18 for UDML: noise in training, auxiliary losses, and the hook that tells the stages.

Every udml-*_r18_* of one data set shares what stands here and differs in model.neck alone.
Noise on the sound, say, at test: --cfg-options model.data_preprocessor.test_noise.audio.type=gaussian
model.data_preprocessor.test_noise.audio.level=14 (what a level means stands in train_noise).
"""
_base_ = './av_r18.py'
model = dict(
    data_preprocessor=dict(
        train_noise=dict(
            noise=dict(
                # std 10 grey levels per level, as QMF and PDF on pictures; clipped to 0..255
                visual=dict(kind='image', levels=(1, 11), scale=dict(gaussian=10.0)),
                # std 0.3 per level in the natural logarithm of the magnitude, as on digit clips
                audio=dict(kind='spectrogram', levels=(1, 11), scale=dict(gaussian=0.3))),
            clean_share=0.5,
            mode='one',  # of a noisy clip one modality, each equally often
            start=0.5)),  # share of training
    neck=dict(
        _delete_=True,
        type='UDML',
        modalities=['visual', 'audio'],
        in_channels=dict(visual=512, audio=512),
        weights_from=0.6,  # share of training
        inner=dict(type='ConcatFusion', out_channels=512, norm=None, modality_dropout=0.3)))
custom_hooks = [dict(type='FusionScheduleHook')]
