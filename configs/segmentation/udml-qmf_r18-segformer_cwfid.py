"""Dynamic fusion by energy (QMF-like), two ResNet-18 from scratch, CWFID.

Weights exp(-E), E = -logsumexp of a modality's own scores (a mean over positions); without QMF's ranking loss.
Flatter weights: --cfg-options model.neck.temperature=10
Run: python tools/train.py configs/segmentation/udml-qmf_r18-segformer_cwfid.py
Cost: about 4 minutes of a core.
Expect: 64.5 ± 0.8 mIoU clean, 41.8 ± 6.7 / 50.9 ± 0.2 with half of red / near infrared hidden (3 seeds; results/).
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/cwfid.py', '../_base_/models/udml_cwfid.py',
    '../_base_/schedules/cwfid.py']
model = dict(
    neck=dict(
        quality='energy', law='exponential', temperature=1.0, form='residual', dependency=False, embedding=False))
