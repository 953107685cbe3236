"""UDML, the default, two ResNet-18 from scratch, CREMA-D, the recipe of UDML's scripts.

Weights (s alpha)^(-1/3): s from the noise estimator, or from novelty where that is larger; alpha the dependency.
Run: python tools/train.py configs/recognition/udml-default_r18_crema-d.py
Expect: not run yet (no copy of the data at hand).
"""
_base_ = [
    '../_base_/recognition_runtime_resumable.py', '../_base_/data/crema_d.py', '../_base_/models/udml_av_r18.py',
    '../_base_/schedules/sgd_100e.py']
model = dict(
    # released beta: 1e-5, of a KL summed over channels, positions and modalities. The neck reads two vectors of 512:
    # the weight of the mean is 1e-5 x 512 x 2; on the released maps (512x7x7 frames, 512x9x6 sound) it was 0.53
    neck=dict(preset='default', kl_weight=1.02e-2),
    # released gamma: 4.0, times the mean cross entropy of each modality's own classifier, as here
    cls_head=dict(num_classes=6, aux_weight=4.0))
