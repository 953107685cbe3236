"""SCFAE, two MiT-B2 and a SegFormer head, NYU Depth v2.

Run: python tools/train.py configs/segmentation/scfae_mitb2-segformer_nyuv2-480x640.py
Cost: the neck adds 14 % to the encoders' multiply-adds; 40k iterations at batch 8, meant for one large GPU.
Expect: not run here (neither the official data nor pretrained weights were at hand).
"""
_base_ = [
    '../_base_/default_runtime.py', '../_base_/data/nyuv2.py', '../_base_/models/rgbd_mitb2_segformer.py',
    '../_base_/schedules/poly_40k.py']
model = dict(
    data_preprocessor=dict(size=(480, 640)),
    # Pretrained encoders, as every published number has (needs the network):
    # backbone=dict(backbones=dict(
    #     rgb=dict(init_cfg=dict(
    #         type='Pretrained', checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/'
    #         'pretrain/segformer/mit_b2_20220624-66e8bf70.pth')),
    #     depth=dict(init_cfg=dict(
    #         type='Pretrained', checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/'
    #         'pretrain/segformer/mit_b2_20220624-66e8bf70.pth')))),
    neck=dict(type='SCFAE', width=0.40625, norm='layer', modality_dropout=0.3),
    decode_head=dict(num_classes=40))
