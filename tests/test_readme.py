"""What README prints to be copied is run as it stands, and its links lead somewhere."""
from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import mmfusion_plugin  # noqa: F401  cures the installed wheels

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def printed(words: str) -> str:
    found = [block for block in BLOCKS if words in block]
    assert len(found) == 1, f"{len(found)} blocks of README hold {words!r}"
    return found[0]


@pytest.mark.parametrize(("stock", "head"), [
    *((name, {}) for name in ("segformer_mit-b0", "pspnet_r50-d8", "deeplabv3plus_r50-d8", "upernet_swin", "fpn_r50")),
    ("upernet_r50", dict(decode_head=dict(num_classes=40), auxiliary_head=dict(in_channels=256, num_classes=40)))])
def test_the_changes_make_a_stock_segmentation_model_a_fusion_of_two_streams(stock, head, tmp_path):
    pytest.importorskip("mmseg")
    base = Path(find_spec("mmseg").origin).parent / ".mim" / "configs" / "_base_" / "models" / f"{stock}.py"
    if not base.is_file():
        pytest.skip("this mmsegmentation has no .mim/configs (not a wheel)")
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    block = printed("type='FusionEncoderDecoder'")
    if stock == "fpn_r50":  # a base with a neck of its own
        block = block.replace("neck=dict(", "neck=dict(_delete_=True,")
    if head:  # the heads that the stock config has, on the neck's widths
        block = re.sub(r" *auxiliary_head=None,.*\n", "", block)
        block = re.sub(r"decode_head=dict\(.*?num_classes=40\)", "decode_head=dict(in_channels=[64, 128, 256, 512])",
                       block, flags=re.DOTALL)
    config = tmp_path / "mine.py"
    config.write_text(f"_base_ = {str(base)!r}\n{block}")
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(dict(model=head))
    init_default_scope(cfg.default_scope)
    cfg.model.data_preprocessor.size = (64, 96)
    model = MODELS.build(cfg.model).train()
    samples = []
    for _ in range(2):
        sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 40, (1, 64, 96))))
        sample.set_metainfo(dict(img_shape=(64, 96)))
        samples.append(sample)
    streams = [dict(rgb=torch.rand(3, 64, 96) * 255, depth=torch.rand(1, 64, 96) * 5) for _ in range(2)]
    batch = dict(inputs=streams, data_samples=samples)
    data = model.data_preprocessor(batch, training=True)
    losses = model.loss(**data)
    assert "fusion.loss_recon" in losses and all(torch.as_tensor(x).isfinite().all() for x in losses.values())


def test_the_recognizer_builds_and_learns():
    pytest.importorskip("mmaction")
    from mmengine.registry import MODELS, init_default_scope

    cfg: dict = {}
    exec(printed("type='FusionRecognizer'"), cfg)
    init_default_scope(cfg["default_scope"])
    model = MODELS.build(cfg["model"])
    assert model.neck.levels[0].out_channels == cfg["model"]["cls_head"]["in_channels"]
    assert [step["type"] for step in cfg["train_pipeline"]][0] == "LoadClip"


@pytest.mark.parametrize("stock", ["tsn_r50", "tsm_r50", "slowonly_r50"])
def test_the_recognizer_lies_over_a_stock_one(stock, tmp_path):
    pytest.importorskip("mmaction")
    base = Path(find_spec("mmaction").origin).parent / ".mim" / "configs" / "_base_" / "models" / f"{stock}.py"
    if not base.is_file():
        pytest.skip("this mmaction2 has no .mim/configs (not a wheel)")
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    block = re.sub(r"\b(data_preprocessor|backbone|cls_head)=dict\(", r"\1=dict(_delete_=True, ",
                   printed("type='FusionRecognizer'"))
    (tmp_path / "mine.py").write_text(f"_base_ = {str(base)!r}\n{block}")
    cfg = Config.fromfile(tmp_path / "mine.py")
    init_default_scope(cfg.default_scope)
    assert set(MODELS.build(cfg.model).neck.modalities) == {"visual", "audio"}


def test_a_clip_of_ones_own_is_predicted(tmp_path, monkeypatch):
    pytest.importorskip("mmaction")
    import numpy as np
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    from mmfusion_plugin.recognition.media import write_clip

    monkeypatch.chdir(tmp_path)
    config = ROOT / "configs" / "recognition" / "scfae_small_demo-clips.py"
    Path("CONFIG.py").write_text(f"_base_ = {str(config)!r}\n")
    cfg = Config.fromfile("CONFIG.py")
    init_default_scope(cfg.default_scope)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), "CHECKPOINT.pth")
    frames = [np.full((32, 32, 3), 9 * i, np.uint8) for i in range(20)]
    write_clip("clip.mp4", frames, 20, np.sin(np.arange(8000) / 3).astype(np.float32), 8000)
    given: dict = {}
    exec(printed("inference_recognizer(model, 'clip.mp4')"), given)
    assert given["scores"].shape == (6,) and 0 <= given["label"] < 6
    assert given["result"].available == dict(visual=True, audio=False)


def test_plain_torch():
    given = dict(head=torch.nn.Linear(256, 3), task_loss=lambda logits: logits.square().mean())
    exec(printed("from mmfusion_plugin.fusion import SCFAE"), given)
    assert given["out"].fused.shape == (8, 256) and given["loss"].isfinite()


def test_udml_in_plain_torch():
    from mmfusion_plugin.fusion import FUSIONS, UDML, input_statistics

    x = dict(rgb=torch.randn(2, 3, 32, 32), depth=torch.randn(2, 1, 32, 32))
    feats = {m: torch.randn(2, 8) for m in x}
    fusion = UDML(list(x), dict.fromkeys(x, 8), FUSIONS["SCFAE"](list(x), dict.fromkeys(x, 8)))
    out = fusion(feats, None, None, statistics={m: input_statistics(x[m]) for m in x})
    assert out.fused.isfinite().all()


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", ["README.md", "results/README.md", "tools/benchmarks/README.md"])
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8"))
             if not link.startswith("http")]
    lost = []
    for link in links:
        name, _, part = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        headings = re.findall(r"(?m)^#+ (.+)$", target.read_text(encoding="utf-8")) if part and target.is_file() else []
        if not target.exists() or part and part not in map(anchor, headings):
            lost.append(link)
    assert links
    assert lost == []
