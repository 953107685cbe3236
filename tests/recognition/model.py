"""Small recognizers and batches for them: sampled frames and spectrograms, clips, ready-made features."""
from __future__ import annotations

import copy

import torch
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope

import mmfusion_plugin.models.small_cnn
import mmfusion_plugin.recognition  # noqa: F401

CLASSES, FRAMES = 5, 2
AV = ["visual", "audio"]
WIDTHS = dict(visual=8, audio=6)
NECKS = ["SCFAE", "SumFusion", "ConcatFusion", "MLPFusion", "GatedFusion", "FiLMFusion", "CrossAttentionFusion"]
# mmaction2's own, as thin as they get: its 2D ResNet always begins with 64 channels
RESNET = dict(type="ResNet", depth=18, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
SLOWONLY = dict(type="ResNet3dSlowOnly", depth=18, num_stages=2, base_channels=4, spatial_strides=(1, 2),
                temporal_strides=(1, 1), dilations=(1, 1), out_indices=(1,), inflate=(0, 1), conv1_kernel=(1, 7, 7),
                norm_eval=False)
R2PLUS1D = dict(SLOWONLY, type="ResNet2Plus1d", pretrained2d=False, inflate=(1, 1), conv1_kernel=(3, 7, 7),
                conv_cfg=dict(type="Conv2plus1d"), norm_cfg=dict(type="BN3d"))


def small_cnn(width: int, **options) -> dict:
    return dict(type="SmallCNN", channels=[width], pools=[4], **options)


def model_cfg(neck=None, head=None, backbones=None, widths=WIDTHS, **options) -> dict:
    """Two small CNNs for frames and spectrograms, SCFAE, fused and per-modality classifiers."""
    return dict(
        type="FusionRecognizer",
        data_preprocessor=dict(type="MultimodalActionDataPreProcessor", modalities=AV,
                               mean=dict(visual=[120.0] * 3, audio=[-5.0]), std=dict(visual=[60.0] * 3, audio=[2.0])),
        backbone=dict(type="MultimodalBackbone", modalities=AV, in_channels=dict(visual=3, audio=1),
                      backbones={m: small_cnn(C) for m, C in WIDTHS.items()} | (backbones or {})),
        neck=dict(type="SCFAE", modalities=AV, in_channels=dict(widths), out_channels=12) | (neck or {}),
        cls_head=dict(type="FusionHead", num_classes=CLASSES, in_channels=12, modality_in_channels=dict(widths),
                      aux_weight=0.5, init_std=0.5) | (head or {}),
        frames_per_clip=dict(visual=FRAMES)) | options


def feature_cfg(widths, neck=None, **options) -> dict:
    """One vector or sequence per modality, handed to the neck as it is."""
    names = list(widths)
    return dict(
        type="FusionRecognizer",
        data_preprocessor=dict(type="MultimodalActionDataPreProcessor", modalities=names),
        backbone=dict(type="MultimodalBackbone", modalities=names, in_channels=dict(widths),
                      backbones={m: dict(type="FeatureEncoder") for m in names}),
        neck=dict(type="SCFAE", modalities=names, in_channels=dict(widths), out_channels=12) | (neck or {}),
        cls_head=dict(type="FusionHead", num_classes=CLASSES, in_channels=12, modality_in_channels=dict(widths),
                      aux_weight=0.5)) | options


def build(cfg: dict | None = None):
    init_default_scope("mmaction")
    torch.manual_seed(0)
    model = MODELS.build(Config(dict(model=copy.deepcopy(model_cfg() if cfg is None else cfg))).model)
    model.init_weights()
    return model


def batch(shapes=None, number=4, missing=(), seed=1) -> dict:
    """As mmengine's pseudo_collate gives it. ``missing``: pairs (sample, modality)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes or dict(visual=(FRAMES, 3, 16, 16), audio=(1, 1, 16, 24))
    inputs, samples = {m: [] for m in shapes}, []
    for i in range(number):
        for m, shape in shapes.items():
            # every view with a level of its own: noise alone looks the same in all of them
            level = torch.randn(shape[0], generator=generator).view(-1, *[1] * (len(shape) - 1))
            x = torch.randn(shape, generator=generator) + level
            inputs[m].append((x * 60 + 120).clamp(0, 255).to(torch.uint8) if m == "visual" else x)
        sample = ActionDataSample().set_gt_label(i % CLASSES)
        sample.set_metainfo(dict(filename=f"{i}.mp4", available={m: (i, m) not in missing for m in shapes}))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def losses_of(model, data) -> dict:
    data = model.data_preprocessor(copy.deepcopy(data), training=True)
    return model.train()(**data, mode="loss")


def scores_of(model, data) -> dict:
    """{name: (B, K)} as the samples' ``pred_score`` holds them."""
    with torch.no_grad():
        scores = [sample.pred_score for sample in model.eval().test_step(copy.deepcopy(data))]
    return {name: torch.stack([score[name] for score in scores]) for name in scores[0]}
