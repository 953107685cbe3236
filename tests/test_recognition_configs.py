from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

pytest.importorskip("mmaction")

from mmaction.registry import DATASETS, MODELS
from mmaction.structures import ActionDataSample

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
LEAVES = sorted((CONFIGS / "recognition").glob("*.py"))
every_config = pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in LEAVES])

# One sample of each modality as the pipeline packs it, small where the encoder allows.
FRAMES, SOUND = (3, 3, 32, 32), (1, 1, 129, 63)


def load(path: Path) -> Config:
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    return cfg


def batch(cfg: Config, number: int = 4) -> dict:
    channels = cfg.model.backbone.in_channels
    streams = {"visual": FRAMES, "audio": SOUND} if set(channels) <= {"visual", "audio"} else {}
    shapes = {m: streams.get(m, (C,)) for m, C in channels.items()}  # ready-made features are vectors
    samples = [ActionDataSample().set_gt_label(i % cfg.model.cls_head.num_classes) for i in range(number)]
    return dict(inputs={m: [torch.rand(shape) for _ in range(number)] for m, shape in shapes.items()},
                data_samples=samples)


def in_the_last_stage(model):
    """What FusionScheduleHook tells at the end of training: noise and dynamic weights are on."""
    for part in model.modules():
        if hasattr(part, "set_progress"):
            part.set_progress(1.0)
    return model


@every_config
def test_the_model_trains_a_step_and_predicts(path):
    cfg = load(path)
    model = in_the_last_stage(MODELS.build(cfg.model))
    data = model.data_preprocessor(batch(cfg), training=True)
    loss, _ = model.parse_losses(model(**data, mode="loss"))
    loss.backward()
    alone = cfg.model.neck.get("modality")
    others = tuple(f"backbone.encoders.{m}." for m in cfg.model.backbone.modalities if alone not in (None, m))
    idle = [name for name, p in model.named_parameters()
            if p.requires_grad and p.grad is None and not name.startswith(others)]
    assert loss.isfinite() and not idle, f"no gradient reaches {idle}"

    model.eval()
    with torch.no_grad():
        predicted = model.test_step(batch(cfg))
    assert predicted[0].pred_score["fused"].shape == (cfg.model.cls_head.num_classes,)


@every_config
def test_names_and_classes_agree_between_parts(path):
    cfg = load(path)
    modalities = cfg.model.backbone.modalities
    assert isinstance(modalities, list), "order lives in a list"
    assert list(cfg.model.data_preprocessor.modalities) == modalities
    if cfg.model.neck.type == "SingleModality":  # single_*: the other encoders run idle, and say so
        assert cfg.model.neck.modality in modalities and (len(modalities) == 1 or path.stem.startswith("single_"))
    else:
        assert cfg.model.neck.modalities == modalities
    loaders = [cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader]
    for loader in loaders:
        packing = loader.dataset.pipeline[-1]
        assert packing.modalities == modalities
        frames = [step.num_frames for step in loader.dataset.pipeline if "num_frames" in step]
        assert frames == [n for m, n in cfg.model.get("frames_per_clip", {}).items() if m == "visual"]
    assert len({loader.dataset.data_root for loader in loaders}) == 1
    dataset = cfg.train_dataloader.dataset
    if dataset.type == "KineticsSoundDataset":
        from mmfusion_plugin.recognition.clip_lists import load_class_list

        classes = len(load_class_list(dataset.class_list))
    else:
        listed = dataset.get("metainfo") or DATASETS.get(dataset.type).METAINFO
        classes = dataset.get("num_classes") or len(listed["classes"])
    assert cfg.model.cls_head.num_classes == classes


@every_config
def test_evaluation_is_without_chance(path):
    cfg = load(path)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        for step in loader.dataset.pipeline:
            assert step.type != "LoadClip" or step.test_mode
            assert step.type not in ("RandomResizedCrop", "Flip")


@every_config
def test_every_lookup_survives_sorted_keys(path, tmp_path):
    """mmengine writes configs with sorted keys: what is read back must say the same."""
    cfg = load(path)
    cfg.dump(tmp_path / "dumped.py")
    again = Config.fromfile(tmp_path / "dumped.py")
    for part in ("model", "train_dataloader", "test_dataloader"):
        assert again[part] == cfg[part]


@every_config
def test_the_header_gives_command_and_expectation(path):
    header = path.read_text().split('"""')[1]
    assert f"configs/recognition/{path.name}" in header and "\nExpect: " in header
    assert not re.search("@@", path.read_text())


@every_config
def test_the_schedule_ends_with_the_training(path):
    cfg = load(path)
    ends = [step["end"] for step in cfg.param_scheduler if "end" in step]
    assert not ends or ends[-1] == cfg.train_cfg.max_epochs


def test_the_presets_shapes_are_what_the_configs_promise():
    """257 x 188 (CREMA-D) and 129 x 626 (Kinetics-Sound): numbers of UDML's scripts."""
    from mmfusion_plugin.recognition.spectrograms import PRESETS

    found = {}
    for name in ("crema-d", "kinetics-sound"):
        pipeline = load(CONFIGS / "recognition" / f"concat_r18_{name}.py").train_dataloader.dataset.pipeline
        sound, preset = pipeline[0].sound, PRESETS[next(s.preset for s in pipeline if s.type == "AudioSpectrogram")]
        samples = round(sound.sample_rate * sound.seconds)
        found[name] = (preset["n_fft"] // 2 + 1, 1 + samples // preset["hop"])
    assert found == {"crema-d": (257, 188), "kinetics-sound": (129, 626)}


def test_the_six_views_are_read(shared_data):
    cfg = load(CONFIGS / "recognition" / "scfae_handwritten6.py")
    options = dict(data_root=str(shared_data / "handwritten6"))
    train, test = (DATASETS.build(dict(part.dataset) | options) for part in (cfg.train_dataloader, cfg.test_dataloader))
    assert (len(train), len(test)) == (1600, 400)
    inputs = train[0]["inputs"]
    assert {m: len(x) for m, x in inputs.items()} == dict(cfg.model.backbone.in_channels)
    mean = torch.stack([train[i]["inputs"]["kar"] for i in range(1600)]).mean(0)
    assert mean.abs().max() < 1e-4, "standardised by the training part"


def test_the_sentiment_features_are_read(shared_data):
    cfg = load(CONFIGS / "recognition" / "scfae_cmu-mosi.py")
    options = dict(data_root=str(shared_data / "cmu_mosi"))
    train, test = (DATASETS.build(dict(part.dataset) | options) for part in (cfg.train_dataloader, cfg.test_dataloader))
    assert (len(train), len(test)) == (1447, 326)
    assert {m: len(x) for m, x in train[0]["inputs"].items()} == dict(cfg.model.backbone.in_channels)
    text = torch.stack([test[i]["inputs"]["text"] for i in range(326)])
    assert text.mean(0).abs().max() > 0.05, "standardised by the training part, not by its own"


@pytest.mark.parametrize(("data", "number"), [("digit-clips", 7), ("crema-d", 2), ("kinetics-sound", 2)])
def test_the_rows_of_udmls_table_differ_in_the_neck_alone(data, number):
    rows = [load(path).to_dict() for path in LEAVES if re.fullmatch(f"udml-.*_{data}", path.stem)]
    necks = [row["model"].pop("neck") for row in rows]
    assert len(rows) == number and all(row == rows[0] for row in rows)
    assert rows[0]["model"]["data_preprocessor"]["train_noise"]["start"] < necks[0]["weights_from"]
    assert all(neck["inner"]["modality_dropout"] == 0.3 for neck in necks if "modality_dropout" in neck["inner"])
    assert rows[0]["custom_hooks"] == [dict(type="FusionScheduleHook")]


def test_the_released_gamma_and_beta_stand_in_the_configs():
    """gamma 4.0 and 2.5, beta 1e-5 (two vectors of 512) and 0: cramed_auxi.sh and ks_auxi.sh of the released code."""
    for data, gamma, kl_weight in (("crema-d", 4.0, 2 * 512e-5), ("kinetics-sound", 2.5, 0.0)):
        for row in ("default", "scfae"):
            model = load(CONFIGS / "recognition" / f"udml-{row}_r18_{data}.py").model
            assert model.cls_head.aux_weight == gamma
            assert model.neck.kl_weight == pytest.approx(kl_weight, rel=0.01)


@pytest.mark.parametrize(("stem", "base"), [
    ("small_digit-clips", "udml_digit_clips"), ("r18_crema-d", "udml_av_r18")])
def test_the_documented_options_add_noise_at_test(stem, base):
    cfg = load(CONFIGS / "recognition" / f"udml-default_{stem}.py")
    text = (CONFIGS / "_base_" / "models" / f"{base}.py").read_text()
    options = dict(re.findall(r"(model\.data_preprocessor\.test_noise\S+)=(\w+)", text))
    cfg.merge_from_dict({key: int(value) if value.isdigit() else value for key, value in options.items()})
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    data = batch(cfg)
    for i, sample in enumerate(data["data_samples"]):
        sample.set_metainfo(dict(filename=f"test/{i}.mp4"))
    assert preprocessor(data)["data_samples"][0].noise_level == dict(visual=0.0, audio=14.0)
