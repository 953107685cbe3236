"""Dynamic fusion by probabilistic embedding: weights 1 / sigma^2, two ResNet-18 from scratch, CWFID.

The uncertainty is the embedding's own sigma, which nobody has taught what noise is.
Run: python tools/train.py configs/segmentation/udml-pe_r18-segformer_cwfid.py
Cost: about 4 minutes of a core.
Expect: 63.3 ± 1.7 mIoU clean, 40.8 ± 9.0 / 51.2 ± 0.6 with half of red / near infrared hidden (3 seeds; results/).
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/cwfid.py', '../_base_/models/udml_cwfid.py',
    '../_base_/schedules/cwfid.py']
model = dict(
    neck=dict(
        quality='variance', dependency=False, law='inverse_square', temperature=1.0, form='residual', norm='batch'))
