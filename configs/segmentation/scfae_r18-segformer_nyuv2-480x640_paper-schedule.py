"""SCFAE, two ResNet-18 and a SegFormer head, NYU Depth v2, with the paper's own schedule.

AdamW, 2.5e-5 to 5e-4 over the first 20 %, then cosine; lambda = 1.

Run: python tools/train.py configs/segmentation/scfae_r18-segformer_nyuv2-480x640_paper-schedule.py
Cost: at an eighth of the width the neck adds 3 % to the encoders' multiply-adds; wider ones were level with it on
    CWFID (results/README.md). 40k iterations at batch 8, meant for one large GPU.
Expect: not run here (neither the official data nor pretrained weights were at hand).
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/nyuv2.py', '../_base_/models/rgbd_r18_segformer.py',
    '../_base_/schedules/scfae_40k.py']
model = dict(
    data_preprocessor=dict(size=(480, 640)),
    # Pretrained encoders, as every published number has (needs the network):
    # backbone=dict(backbones=dict(
    #     rgb=dict(init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet18_v1c')),
    #     depth=dict(init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet18_v1c')))),
    neck=dict(type='SCFAE', width=0.125, norm='layer', modality_dropout=0.3, recon_weight=1.0),
    decode_head=dict(num_classes=40))
