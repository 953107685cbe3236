from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
LEAVES = sorted((CONFIGS / "segmentation").glob("*.py"))
SLOW = ("r50-", "mitb2")


def leaves(slow: bool) -> list:
    """All configs; with ``slow``, those with large encoders are left to ``-m slow``."""
    late = [path for path in LEAVES if slow and any(s in path.stem for s in SLOW)]
    return [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path in late else []) for path in LEAVES]


def load(path: Path) -> Config:
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    return cfg


def dicts(node: object):
    """Every dict below ``node``."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from dicts(item)


def batch(cfg: Config, size: int = 64, number: int = 2) -> dict:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    channels = cfg.model.backbone.in_channels
    classes = cfg.model.decode_head.num_classes
    meta = dict(img_shape=(size, size), ori_shape=(size, size), available=dict.fromkeys(channels, True))
    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, classes, (1, size, size))), metainfo=meta)
        for _ in range(number)]
    inputs = {m: [torch.rand(C, size, size) * 5 for _ in range(number)] for m, C in channels.items()}
    return dict(inputs=inputs, data_samples=samples)


def in_the_last_stage(model):
    """What FusionScheduleHook tells at the end of training: noise and dynamic weights are on."""
    for part in model.modules():
        if hasattr(part, "set_progress"):
            part.set_progress(1.0)
    return model


@pytest.mark.parametrize("path", leaves(slow=True))
def test_the_model_trains_a_step_and_predicts(path):
    cfg = load(path)
    cfg.model.data_preprocessor.size = (64, 64)
    model = in_the_last_stage(MODELS.build(cfg.model))
    data = model.data_preprocessor(batch(cfg), training=True)
    loss, _ = model.parse_losses(model.loss(**data))
    loss.backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert loss.isfinite() and not idle, f"no gradient reaches {idle}"

    model.eval()
    data = model.data_preprocessor(batch(cfg), training=False)
    with torch.no_grad():
        predicted = model.predict(**data)
    assert predicted[0].seg_logits.data.shape == (cfg.model.decode_head.num_classes, 64, 64)


@pytest.mark.parametrize("path", leaves(slow=False))
def test_names_and_sizes_agree_between_parts(path):
    cfg = load(path)
    modalities = cfg.model.backbone.modalities
    assert isinstance(modalities, list), "order lives in a list"
    neck = cfg.model.neck
    others = [cfg.model.data_preprocessor.modalities, neck.get("modalities", [neck.get("modality")])]
    loaders = [cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader]
    for loader in loaders:
        others += [step.modalities for step in dicts(loader.dataset.pipeline) if "modalities" in step]
        others.append(loader.dataset.modalities)
    others += [step.modalities for step in dicts(cfg.tta_pipeline) if "modalities" in step]
    assert all(names == modalities for names in others)
    crop = next(step.crop_size for step in cfg.train_dataloader.dataset.pipeline if step.type == "RandomCrop")
    assert tuple(cfg.model.data_preprocessor.size) == tuple(crop)
    assert len({loader.dataset.data_root for loader in loaders}) == 1


@pytest.mark.parametrize("path", leaves(slow=False))
def test_every_lookup_survives_sorted_keys(path, tmp_path):
    """mmengine writes configs with sorted keys: what is read back must say the same."""
    cfg = load(path)
    cfg.dump(tmp_path / "dumped.py")
    again = Config.fromfile(tmp_path / "dumped.py")
    for part in ("model", "train_dataloader", "test_dataloader", "tta_pipeline"):
        assert again[part] == cfg[part]


@pytest.mark.parametrize("path", leaves(slow=False))
def test_the_number_of_classes_is_the_data_set_s(path):
    from mmseg.registry import DATASETS

    cfg = load(path)
    classes = DATASETS.get(cfg.train_dataloader.dataset.type).METAINFO["classes"]
    heads = [cfg.model.decode_head, cfg.model.get("auxiliary_head") or cfg.model.decode_head]
    assert {head.num_classes for head in heads} == {len(classes)}


@pytest.mark.parametrize("path", leaves(slow=False))
def test_pretrained_weights_are_named_in_comments_only(path):
    assert not [node for node in dicts(load(path).to_dict()) if node.get("type") == "Pretrained"]
    if "nyuv2-480x640" in path.stem:
        assert re.search(r"^ *#.*type='Pretrained'", path.read_text(), re.M)


def test_the_commented_pretrained_lines_are_valid_config(tmp_path):
    for path in LEAVES:
        if "nyuv2-480x640" not in path.stem:
            continue
        text = path.read_text().replace("'../_base_", f"'{CONFIGS}/_base_").replace("'./", f"'{path.parent}/")
        text = re.sub(r"^    # (?!Pretrained encoders)", "    ", text, flags=re.M)
        (tmp_path / path.name).write_text(text)
        encoders = Config.fromfile(tmp_path / path.name).model.backbone.backbones
        assert [encoders[m].init_cfg.type for m in ("rgb", "depth")] == ["Pretrained"] * 2
        assert encoders.rgb.init_cfg.checkpoint.startswith(("open-mmlab://resnet", "https://download.openmmlab.com/"))


@pytest.mark.parametrize("path", leaves(slow=False))
def test_the_schedule_ends_with_the_training(path):
    cfg = load(path)
    assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin
    assert cfg.param_scheduler[1].end == cfg.train_cfg.max_iters


def test_the_documented_options_move_all_three_data_roots():
    cfg = load(LEAVES[0])
    documented = set()
    for base in (CONFIGS / "_base_" / "data").glob("*.py"):
        documented |= set(re.findall(r"(\w+_dataloader\.dataset\.data_root)=DIR", base.read_text()))
    cfg.merge_from_dict(dict.fromkeys(documented, "elsewhere"))
    loaders = (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
    assert [loader.dataset.data_root for loader in loaders] == ["elsewhere"] * 3


@pytest.mark.parametrize("path", leaves(slow=False))
def test_the_header_gives_command_cost_and_expectation(path):
    header = path.read_text().split('"""')[1]
    assert f"configs/segmentation/{path.name}" in header
    assert "\nCost: " in header and "\nExpect: " in header


@pytest.mark.parametrize("neck", ["scfae", "concat"])
def test_half_size_differs_from_full_size_in_data_size_schedule_and_width_alone(neck):
    folder = CONFIGS / "segmentation"
    half = load(folder / f"{neck}_r18-segformer_nyuv2-half.py").model
    full = load(folder / f"{neck}_r18-segformer_nyuv2-480x640.py").model
    assert [m.data_preprocessor.pop("size") for m in (half, full)] == [(192, 256), (480, 640)]
    if neck == "scfae":  # the half-size results were published at 9/32
        assert [m.neck.pop("width") for m in (half, full)] == [0.28125, 0.125]
    assert half == full


@pytest.mark.parametrize("stem, folder, size, values", [
    # (modality, channels, smallest and largest plausible value)
    ("scfae_r18-segformer_nyuv2-half", "nyuv2_half", (240, 320), [("rgb", 3, 0, 255), ("depth", 1, 0.1, 10)]),
    ("scfae_r18-segformer_cwfid", "cwfid", (483, 648), [("red", 1, 0, 255), ("nir", 1, 0, 255)]),
    ("nir_r18-segformer_cwfid", "cwfid", (483, 648), [("nir", 1, 0, 255)])])
def test_pipelines_read_real_data(shared_data, stem, folder, size, values):
    from mmseg.registry import DATASETS

    cfg = load(CONFIGS / "segmentation" / f"{stem}.py")
    options = dict(data_root=str(shared_data / folder), indices=2)
    trained = DATASETS.build(dict(cfg.train_dataloader.dataset) | options)[0]
    assert trained["data_samples"].gt_sem_seg.shape == next(iter(trained["inputs"].values())).shape[-2:]
    tested = DATASETS.build(dict(cfg.test_dataloader.dataset) | options)[0]
    assert list(tested["inputs"]) == [m for m, *_ in values]
    assert tested["data_samples"].gt_sem_seg.shape == size
    for m, channels, low, high in values:
        x = tested["inputs"][m]
        assert x.shape == (channels, *size) and low <= x.min() and x.max() <= high
    pipeline = dict(pipeline=cfg.tta_pipeline)
    augmented = DATASETS.build(dict(cfg.test_dataloader.dataset) | options | pipeline)[0]
    scales = len(cfg.tta_pipeline[1].transforms[0])
    assert len(augmented["data_samples"]) == 2 * scales
    assert all(sample.gt_sem_seg.shape == size for sample in augmented["data_samples"])


@pytest.mark.parametrize(("data", "number"), [("cwfid", 7), ("nyuv2-480x640", 2), ("nyuv2-half", 7)])
def test_the_rows_of_udmls_table_differ_in_the_neck_alone(data, number):
    rows = [load(path).to_dict() for path in LEAVES if re.fullmatch(f"udml-.*_{data}", path.stem)]
    necks = [row["model"].pop("neck") for row in rows]
    for row in rows:  # the estimator's rate: what it learns reaches nothing but the weights
        paramwise = row["optim_wrapper"].setdefault("paramwise_cfg", {})
        if set(paramwise.get("custom_keys", {})) == {"neck.udml.estimate"}:
            del paramwise["custom_keys"]
    assert len(rows) == number and all(row == rows[0] for row in rows)
    assert rows[0]["model"]["data_preprocessor"]["train_noise"]["start"] < necks[0]["weights_from"]
    assert rows[0]["custom_hooks"] == [dict(type="FusionScheduleHook")]
    decode_head, heads = rows[0]["model"]["decode_head"], rows[0]["model"]["modality_heads"]
    decode_head["channels"] = heads[next(iter(heads))]["channels"]  # NYU's is wider
    assert all(head == decode_head for head in heads.values())


@pytest.mark.parametrize(("stem", "base", "levels"), [
    ("cwfid", "udml_cwfid", dict(red=0.0, nir=14.0)), ("nyuv2-half", "udml_rgbd_r18", dict(rgb=0.0, depth=14.0))])
def test_udmls_documented_options_add_noise_at_test(stem, base, levels):
    cfg = load(CONFIGS / "segmentation" / f"udml-default_r18-segformer_{stem}.py")
    text = (CONFIGS / "_base_" / "models" / f"{base}.py").read_text()
    options = dict(re.findall(r"(model\.data_preprocessor\.test_noise\S+)=(\w+)", text))
    cfg.merge_from_dict({key: int(value) if value.isdigit() else value for key, value in options.items()})
    data = batch(cfg)
    for i, sample in enumerate(data["data_samples"]):
        sample.set_metainfo(dict(img_path=f"{i}.png"))
    tested = MODELS.build(cfg.model.data_preprocessor)(data, training=False)
    assert tested["data_samples"][0].noise_level == levels
