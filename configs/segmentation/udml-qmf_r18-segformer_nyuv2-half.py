"""Dynamic fusion by energy (QMF-like), two ResNet-18 from scratch, NYU Depth v2 at half size.

Weights exp(-E), E = -logsumexp of a modality's own scores (a mean over positions); without QMF's ranking loss.
Flatter weights: --cfg-options model.neck.temperature=10
Run: python tools/train.py configs/segmentation/udml-qmf_r18-segformer_nyuv2-half.py
Cost: 1,200 iterations at batch 4, about an hour of one core.
Expect: this schedule has not been run; 600 iterations of 128x160 crops gave mIoU 3.3 (results/README.md, two seeds).
"""
_base_ = '../_base_/udml_nyuv2_half.py'
model = dict(
    neck=dict(
        quality='energy', law='exponential', temperature=1.0, form='residual', dependency=False, embedding=False))
