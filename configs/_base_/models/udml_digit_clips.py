"""av_small for UDML on digit clips: noise in training, auxiliary losses, and the hook that tells the stages.

Every udml-*_small_digit-clips.py shares what stands here and differs in model.neck alone.
Noise on the sound, say, at test: --cfg-options model.data_preprocessor.test_noise.audio.type=gaussian
model.data_preprocessor.test_noise.audio.level=14 (what a level means stands in train_noise).
"""
_base_ = './av_small.py'
model = dict(
    data_preprocessor=dict(
        mean=dict(visual=93.5, audio=1.0),
        std=dict(visual=36.0, audio=1.33),
        train_noise=dict(
            noise=dict(
                # std 10 grey levels per level, as QMF and PDF on pictures; clipped to 0..255
                visual=dict(kind='image', levels=(1, 11), scale=dict(gaussian=10.0)),
                # std 0.3 per level in the natural logarithm of the magnitude: level 11 is 2.5 times the data's own
                # std, as it is 3 times on the pictures. From log(floor) to beyond the loudest of the data.
                audio=dict(kind='spectrogram', valid_range=(-4.61, 6.5), levels=(1, 11), scale=dict(gaussian=0.3))),
            clean_share=0.5,
            mode='one',  # of a noisy clip one modality, each equally often
            start=0.5)),  # share of training
    neck=dict(
        _delete_=True,
        type='UDML',
        modalities=['visual', 'audio'],
        in_channels=dict(visual=64, audio=64),
        weights_from=0.6,  # share of training
        inner=dict(type='ConcatFusion', out_channels=64, norm=None, modality_dropout=0.3)),
    cls_head=dict(num_classes=10))
custom_hooks = [dict(type='FusionScheduleHook')]
