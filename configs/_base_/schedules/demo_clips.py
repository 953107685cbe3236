"""Less than a minute on one core: 10 epochs, AdamW 3e-3, one epoch warm-up, cosine to 0; one evaluation."""
optim_wrapper = dict(
    type='GuardedOptimWrapper', optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.01, fused=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=1, end=10, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=10, val_begin=10, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
