"""``python -m mmfusion_plugin.starter``: a whole config for data of your own, to be filled in where it says CHANGE.

    python -m mmfusion_plugin.starter segmentation my_rooms.py rgb=color depth=depth
    python -m mmfusion_plugin.starter recognition my_clips.py
    python -m mmfusion_plugin.starter features my_features.py imu=24 gps=6 temperature=3

Needs nothing but Python. Exit code 0, or 2 for arguments that make no config and for a file that is there already.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path
from string import Template

__all__ = ["main", "starter"]

LOOK = ", look at what the model gets:\n    python tools/browse_dataset.py THIS_FILE --out pictures\nand"
NECKS = ("SCFAE", "UDML", "ConcatFusion", "SumFusion", "MLPFusion", "GatedFusion", "FiLMFusion", "CrossAttentionFusion")

HEAD = '''"""$title

Written by mmfusion_plugin.starter. Go through the lines that say CHANGE$look then train:
    python tools/train.py THIS_FILE
"""
default_scope = '$scope'
custom_imports = dict(imports=['mmfusion_plugin'], allow_failed_imports=False)
modalities = $modalities
# CHANGE. In it: $layout
data_root = 'data/mine'
classes = ['background', 'thing']  # CHANGE
'''

SEGMENTATION = Template(HEAD + '''# CHANGE. 0: labels 0..K-1, 255 ignored; 1: labels 1..K, 0 unlabelled
label_offset = 0
palette = [[(37 * i) % 256, (91 * i) % 256, (173 * i) % 256] for i in range(len(classes))]
crop_size = (480, 640)  # CHANGE. Height, width

# CHANGE. color: 8 bit; gray: 8 bit, or dtype='uint16' with mean, std and noise in its counts; image: encoded pictures
# such as HHA, channels as stored; depth: scale is metres per count, invalid the count that stands for no reading
sensors = dict(
$sensors)
load = [
    dict(type='LoadModalities', modalities=modalities, sensors=sensors),
    dict(type='LoadSegLabel')]
train_pipeline = [
    *load,
    dict(type='RandomResize', scale=crop_size[::-1], ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
$jitter    dict(type='PackModalities', modalities=modalities)]
test_pipeline = [*load, dict(type='PackModalities', modalities=modalities)]
files = dict(
    type='MultimodalSegDataset',
    data_root=data_root,
    modalities=modalities,
    data_prefix=dict($folders, seg_map_path='label'),
    suffixes=dict($suffixes, seg_map_path='.png'),
    metainfo=dict(classes=classes, palette=palette),
    allow_missing=[],  # names of sensors whose files may be absent
    label_offset=label_offset)
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(**files, ann_file='train.txt', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**files, ann_file='val.txt', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

norm_cfg = dict(type='BN', requires_grad=True)  # several GPUs: SyncBN
widths = [64, 128, 256, 512]
# any encoder of mmsegmentation; init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet18_v1c')
encoder = dict(type='ResNetV1c', depth=18, norm_cfg=norm_cfg, norm_eval=False)
model = dict(
    type='FusionEncoderDecoder',
    data_preprocessor=dict(
        type='MultimodalSegDataPreProcessor',
        modalities=modalities,
        # CHANGE. In the sensors' units: counts (of 16 bits: up to 65535); metres for depth
        mean=dict($mean),
        std=dict($std),
        bgr_to_rgb=$colours,
        invalid=dict($invalid),
        size=crop_size$noise),
    backbone=dict(
        type='MultimodalBackbone',
        modalities=modalities,
        in_channels=dict($channels),
        backbones=dict($encoders)),
    neck=$neck,
    decode_head=dict(
        type='SegformerHead',
        in_channels=widths,
        in_index=[0, 1, 2, 3],
        channels=256,
        num_classes=len(classes),
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, avg_non_ignore=True)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))  # large pictures: mode='slide', crop_size=..., stride=...

iterations = 20000  # CHANGE
optim_wrapper = dict(type='GuardedOptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.01))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=iterations // 20),
    dict(type='PolyLR', eta_min=0.0, power=0.9, by_epoch=False, begin=iterations // 20, end=iterations)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations // 10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=iterations // 10, max_keep_ckpts=2,
                    save_best='mIoU'),
    visualization=dict(type='SegVisualizationHook'))
${hooks}log_processor = dict(by_epoch=False)
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
randomness = dict(seed=0)
env_cfg = dict(mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl'))
''')

RECOGNITION = Template(HEAD + '''
load = dict(
    type='LoadClip',
    num_frames=3,  # of each clip
    clip_seconds=5.0,  # CHANGE. The window that frames and sound come from; None: the whole clip
    sound=dict(sample_rate=16000, seconds=5.0, pad='zero'),  # CHANGE, to the same window
    on_fault=dict())  # dict(audio='missing'): clips without (whole) sound go on without it
spectrogram = dict(n_fft=256, hop=128)  # samples; preset='kinetics-sound-udml': the same, of 5 s at 16 kHz alone
train_pipeline = [
    load,
    dict(type='RandomResizedCrop'),
    dict(type='Resize', scale=(224, 224), keep_ratio=False),
    dict(type='Flip', flip_ratio=0.5),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='AudioSpectrogram', **spectrogram),
    dict(type='PackAudioVisual', modalities=modalities)]
test_pipeline = [
    dict(**load, test_mode=True),
    dict(type='Resize', scale=(-1, 256)),
    dict(type='CenterCrop', crop_size=224),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='AudioSpectrogram', **spectrogram),
    dict(type='PackAudioVisual', modalities=modalities)]
dataset = dict(type='AudioVisualDataset', data_root=data_root, metainfo=dict(classes=classes))
$loaders
$model
$schedule''')

FEATURES = Template(HEAD + '''
dataset = dict(
    type='FeatureDataset',
    data_root=data_root,
    arrays=dict($arrays),  # each modality's array in the files, (samples, channels)
    label='label',
    metainfo=dict(classes=classes),
    standardize=dict(file='train.npz'),  # no statistics of test data
    pipeline=[dict(type='PackFeatures', modalities=modalities)])
$loaders
$model
$schedule''')

LOADERS = '''train_dataloader = dict(
    batch_size=32,
    num_workers=$workers,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**dataset, ann_file='$train'$train_steps))
val_dataloader = dict(
    batch_size=32,
    num_workers=$workers,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, ann_file='$val'$val_steps))
test_dataloader = val_dataloader
# topk: 5 says nothing of five classes or fewer
val_evaluator = dict(
    type='AccMetric', metric_list=('top_k_accuracy', ), metric_options=dict(top_k_accuracy=dict(topk=(1, ))))
test_evaluator = val_evaluator
'''
MODEL = '''model = dict(
    type='FusionRecognizer',
    data_preprocessor=dict(
        type='MultimodalActionDataPreProcessor', modalities=modalities$normalise$noise),
    backbone=dict(
        type='MultimodalBackbone',
        modalities=modalities,
        in_channels=dict($channels),
        backbones=dict(
$encoders)),
$frames    neck=$neck,
    cls_head=dict(
        type='FusionHead',
        num_classes=len(classes),
        in_channels=$width,
        modality_in_channels=widths,  # a classifier for each modality
        aux_weight=$aux,  # of those classifiers' losses; 0: they report and teach their encoders nothing
        topk=(1, )))
'''
SCHEDULE = '''epochs = 40  # CHANGE
optim_wrapper = dict(type='GuardedOptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01))
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=0, end=epochs, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_begin=1, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20),
    checkpoint=dict(
        type='SafeCheckpointHook', interval=1, save_best='acc/fused_top1', rule='greater', max_keep_ckpts=2))
${hooks}log_processor = dict(by_epoch=True)
visualizer = dict(type='ActionVisualizer', vis_backends=[dict(type='LocalVisBackend')])
randomness = dict(seed=0)
env_cfg = dict(mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl'))
'''
# what training injects, of levels 1 to 11
COUNTS = "dict(kind='image', valid_range=(0, 255), levels=(1, 11), scale=dict(gaussian=10.0))"  # of 16 bits: others
GREY_LEVELS = "dict(kind='image', levels=(1, 11), scale=dict(gaussian=10.0))"
METRES = "dict(kind='depth', valid_range=(0.1, 10.0), levels=(1, 11), scale=dict(gaussian=0.2))"
LOGARITHM = "dict(kind='spectrogram', levels=(1, 11), scale=dict(gaussian=0.3))"
DEVIATIONS = "dict(kind='vector', levels=(1, 11), scale=dict(gaussian=0.3))"


@dataclass(frozen=True)
class _Kind:
    """A sensor's kind as the config writes it."""

    sensor: str
    mean: Sequence[float]
    std: Sequence[float]
    noise: str = GREY_LEVELS
    suffix: str = "'.png'"


KINDS = dict(
    color=_Kind("dict(kind='color')", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], suffix="['.jpg', '.png']"),
    gray=_Kind("dict(kind='gray')", [128.0], [64.0], COUNTS),
    depth=_Kind("dict(kind='depth', dtype='uint16', scale=0.001, invalid=0, valid_range=(0.1, 10.0))", [2.8], [1.4],
                METRES),
    image=_Kind("dict(kind='image')", [128.0, 128.0, 128.0], [64.0, 64.0, 64.0]))


def starter(task: str, given: Mapping[str, str], neck: str = "SCFAE") -> str:
    """The config's text.

    Args:
        task: ``segmentation``, ``recognition`` (clips with sound) or ``features`` (ready-made vectors).
        given: by modality, in fusion order: its kind (:data:`KINDS`) for segmentation, its number of channels for
            features; empty for recognition, whose modalities are ``visual`` and ``audio``.
        neck: one of :data:`NECKS`.

    Raises: ValueError for what makes no config.
    """
    if neck not in NECKS:
        raise ValueError(f"neck must be one of {list(NECKS)}, got {neck!r}")
    if task == "recognition":
        if given:
            raise ValueError(
                f"recognition reads 'visual' and 'audio' from clips, and takes no modalities; got {dict(given)}")
        return _recognition(neck)
    if len(given) < 2:
        raise ValueError(f"fusion needs two or more modalities, got {dict(given)}")
    odd = [m for m in given if not m.isidentifier() or iskeyword(m) or m == "label"]
    if odd:
        raise ValueError(f"names of modalities are Python names here, such as 'rgb', and not 'label'; got {odd}")
    if task == "segmentation":
        unknown = {m: kind for m, kind in given.items() if kind not in KINDS}
        if unknown:
            raise ValueError(f"a sensor is one of {list(KINDS)}, got {unknown}")
        return _segmentation(given, neck)
    if task == "features":
        unknown = {m: number for m, number in given.items() if not number.isdecimal() or int(number) < 1}
        if unknown:
            raise ValueError(f"give each modality's number of channels, such as imu=24; got {unknown}")
        return _features(given, neck)
    raise ValueError(f"task must be segmentation, recognition or features, got {task!r}")


def _segmentation(kinds: Mapping[str, str], neck: str) -> str:
    names = list(kinds)
    colours = [m for m in names if kinds[m] == "color"]
    known = {m: KINDS[kind] for m, kind in kinds.items()}
    udml = neck == "UDML"
    return SEGMENTATION.substitute(
        title=f"Segmentation from {', '.join(names)}, fused by {neck}.", scope="mmseg", look=LOOK,
        modalities=repr(names),
        layout=f"{', '.join(f'{m}/' for m in names)}, label/, train.txt, val.txt (a frame's name in each line)",
        sensors=",\n".join(f"    {m}={kind.sensor}" for m, kind in known.items()),
        jitter="".join(f"    dict(type='ColorJitter', modality={m!r}),\n" for m in colours),
        folders=_each(names, "{m}={m!r}"),
        suffixes=", ".join(f"{m}={kind.suffix}" for m, kind in known.items()),
        mean=", ".join(f"{m}={kind.mean}" for m, kind in known.items()),
        std=", ".join(f"{m}={kind.std}" for m, kind in known.items()),
        colours=repr(colours), invalid=", ".join(f"{m}=0" for m in names if kinds[m] == "depth"),
        channels=", ".join(f"{m}={len(kind.mean)}" for m, kind in known.items()),
        encoders=_each(names, "{m}=encoder"),
        neck=_neck(neck, f"dict({_each(names, '{m}=widths')})", "widths", "width=0.125, ", 0.3, maps=True),
        noise=_noise({m: kind.noise for m, kind in known.items()}) if udml else "", hooks=_hooks(udml))


def _recognition(neck: str) -> str:
    udml = neck == "UDML"
    model = Template(MODEL).substitute(
        normalise=",\n        # None: log magnitudes as they are"
                  "\n        mean=dict(visual=[123.675, 116.28, 103.53], audio=None),\n"
                  "        std=dict(visual=[58.395, 57.12, 57.375], audio=None)",
        noise=_noise(dict(visual=GREY_LEVELS, audio=LOGARITHM)) if udml else "", channels="visual=3, audio=1",
        encoders="            visual=dict(type='ResNet', depth=18, norm_eval=False),\n"
                 "            audio=dict(type='ResNet', depth=18, norm_eval=False)",
        frames="    frames_per_clip=dict(visual=3),  # LoadClip.num_frames\n", width=512, aux=0.0,
        neck=_neck(neck, "widths", "512", "width=0.25, residual=True, head_reads='post_and_input', ", 0.3))
    return RECOGNITION.substitute(
        title=f"Recognition of clips from frames and sound, fused by {neck}.", scope="mmaction", look=LOOK,
        modalities="['visual', 'audio']",
        layout="clips with sound; train.txt, val.txt (in each line a clip's path and the number of its class)",
        loaders=_loaders("4", "train.txt", "val.txt", ", pipeline=train_pipeline", ", pipeline=test_pipeline"),
        model="widths = dict(visual=512, audio=512)\n" + model,
        schedule=Template(SCHEDULE).substitute(hooks=_hooks(udml)))


def _features(channels: Mapping[str, str], neck: str) -> str:
    names, udml = list(channels), neck == "UDML"
    model = Template(MODEL).substitute(
        normalise="", noise=_noise(dict.fromkeys(names, DEVIATIONS)) if udml else "",
        channels=", ".join(f"{m}={int(channels[m])}" for m in names),
        encoders=",\n".join(
            f"            {m}=dict(type='FeatureEncoder', hidden_channels=64, out_channels=64, dropout=0.5)"
            for m in names),
        frames="", width=64, aux=1.0,
        neck=_neck(
            neck, "widths", "64", "residual=True, head_reads='post_and_input', ", 0.3 if len(names) < 3 else 0.5))
    return FEATURES.substitute(
        title=f"Classification of ready-made features of {', '.join(names)}, fused by {neck}.", scope="mmaction",
        look=",",
        modalities=repr(names), layout="train.npz, val.npz with an array for each modality and label, (samples,)",
        arrays=_each(names, "{m}={m!r}"), loaders=_loaders("0", "train.npz", "val.npz", "", ""),
        model=f"widths = dict({_each(names, '{m}=64')})\n" + model,
        schedule=Template(SCHEDULE).substitute(hooks=_hooks(udml)))


def _each(names: Sequence[str], form: str) -> str:
    return ", ".join(form.format(m=m) for m in names)


def _neck(neck: str, widths: str, out: str, scfae: str, dropout: float, maps: bool = False) -> str:
    udml = neck == "UDML"
    options = f"out_channels={out}, {scfae if neck in ('SCFAE', 'UDML') else ''}"
    indent = " " * (19 if udml else 8)
    options += (f"\n{indent}" if len(options) > 60 else "") + f"modality_dropout={dropout}"
    options = options.replace(", \n", ",\n")
    outer = f"dict(\n        type={neck!r}, modalities=modalities,\n        in_channels={widths},\n        "
    if udml and maps:
        outer += "per_position=True,  # a fault of a part of the picture costs that part\n        "
    return f"{outer}inner=dict(type='SCFAE', {options}))" if udml else f"{outer}{options})"


def _noise(noise: Mapping[str, str]) -> str:
    """What UDML learns from."""
    lines = ",\n".join(f"                {m}={what}" for m, what in noise.items())
    return (",\n        train_noise=dict(  # CHANGE. scale: standard deviation of a level, in the sensor's unit\n"
            f"            noise=dict(\n{lines}),\n            clean_share=0.5, mode='one', start=0.5)")


def _hooks(udml: bool) -> str:
    return "custom_hooks = [dict(type='FusionScheduleHook')]\n" if udml else ""


def _loaders(workers: str, train: str, val: str, train_steps: str, val_steps: str) -> str:
    return Template(LOADERS).substitute(
        workers=workers, train=train, val=val, train_steps=train_steps, val_steps=val_steps)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mmfusion_plugin.starter", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["segmentation", "recognition", "features"])
    parser.add_argument("out", type=Path, help="the config to write")
    parser.add_argument("modalities", nargs="*", metavar="NAME=KIND",
                        help=f"in fusion order; segmentation: one of {', '.join(KINDS)}; features: number of channels")
    parser.add_argument("--neck", choices=NECKS, default="SCFAE")
    args = parser.parse_args(arguments)
    try:
        pairs = [text.partition("=") for text in args.modalities]
        given = {name: value for name, _, value in pairs}
        if len(given) < len(pairs):
            raise ValueError(f"a modality is named twice: {args.modalities}")
        text = starter(args.task, given, args.neck)
        with open(args.out, "x", encoding="utf-8") as file:
            file.write(text)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except FileExistsError:
        print(f"{args.out} is there already; remove it or name another file", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cannot write {args.out}: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.out}; {text.count('CHANGE') - 1} places in it say CHANGE")
    return 0


if __name__ == "__main__":
    sys.exit(main())
