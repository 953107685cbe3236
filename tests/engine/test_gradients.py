"""The gradient analysis: right numbers, and a training that is the same to the bit."""
from __future__ import annotations

import copy
import json
import random

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmfusion_plugin.engine.gradients import GradientAnalysisHook, group_losses, untouched

HOOK = dict(type="GradientAnalysisHook", interval=2)
SCHEDULE = dict(type="FusionScheduleHook")


class Draws(Hook):
    """What the global generators give after each step: they must not notice the analysis."""

    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append((random.random(), float(np.random.rand()), float(torch.rand(()))))


def trained(folder, name, hooks, steps=6, **options):
    draws = Draws()
    runner = Runner(
        work_dir=str(folder / name), randomness=dict(seed=3), custom_hooks=[SCHEDULE, *hooks], log_level="WARNING",
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.05, momentum=0.9)), experiment_name=f"{folder.name}-{name}",
        default_hooks=dict(logger=dict(type="LoggerHook", interval=1),
                           checkpoint=dict(type="CheckpointHook", interval=steps, by_epoch=False)), **options)
    runner.register_hook(draws)
    runner.train()
    return runner, draws.seen


def scalars(folder):
    lines = [json.loads(line) for path in sorted(folder.glob("*/vis_data/scalars.json"))
             for line in path.read_text().splitlines()]
    return [line for line in lines if any(name.startswith("gradient/") for name in line)]


def check_untouched(tmp_path, **options):
    runner, draws = trained(tmp_path, "with", [HOOK], **copy.deepcopy(options))
    plain, expected = trained(tmp_path, "without", [], **copy.deepcopy(options))
    states = runner.model.state_dict()
    assert any("running_mean" in name for name in states) and any("step" in name for name in states)
    for name, x in plain.model.state_dict().items():
        assert torch.equal(x, states[name]), name
    assert draws == expected
    lines = scalars(tmp_path / "with")
    assert [line["step"] for line in lines] == [0, 2, 4] and not scalars(tmp_path / "without")
    return lines


def test_a_recognizer_trains_to_the_same_bits(tmp_path):
    pytest.importorskip("mmaction")
    from recognition.test_recognizer import loader
    from recognition.test_udml_recognizer import udml_cfg

    cfg = udml_cfg(dict(inner=dict(type="SCFAE", out_channels=12, modality_dropout=0.3)), head=dict(dropout=0.4))
    lines = check_untouched(
        tmp_path, model=cfg, default_scope="mmaction", train_dataloader=loader(True),
        train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=3))
    for line in lines:
        for m, other in (("visual", "audio"), ("audio", "visual")):
            for place in ("output", "parameters"):
                assert line[f"gradient/norm_{place}/{m}"] > 0
                assert -1 <= line[f"gradient/cosine_{place}/{m}/recon"] <= 1
                assert f"gradient/cosine_{place}/{m}/aux_{m}" in line
                assert f"gradient/cosine_{place}/{m}/aux_{other}" not in line, "it reaches the other encoder alone"
    name = "output/audio/aux_audio"
    seen = [line[f"gradient/cosine_{name}"] < 0 for line in lines]
    assert [line[f"gradient/negative_{name}"] for line in lines] == [sum(seen[: i + 1]) / (i + 1) for i in range(3)]


def test_a_segmentor_trains_to_the_same_bits(tmp_path):
    pytest.importorskip("mmseg")
    from segmentation.scene import LOAD, PACK, dataset_cfg, model_cfg, write_frames

    write_frames(tmp_path / "frames")
    model = model_cfg()
    model["neck"]["modality_dropout"] = 0.3
    model["decode_head"]["dropout_ratio"] = 0.4
    crop = dict(type="RandomCrop", crop_size=(32, 32))
    lines = check_untouched(
        tmp_path, model=model, default_scope="mmseg", train_cfg=dict(type="IterBasedTrainLoop", max_iters=6),
        train_dataloader=dict(batch_size=2, num_workers=0, sampler=dict(type="InfiniteSampler", shuffle=True),
                              dataset=dataset_cfg(tmp_path / "frames", [*LOAD, crop, PACK])))
    assert {"gradient/cosine_output/depth/recon", "gradient/norm_parameters/rgb"} <= set(lines[0])


def test_numbers_are_those_of_separate_backward_passes():
    pytest.importorskip("mmaction")
    from recognition.model import batch, build

    model, data = build().train(), batch()
    found = GradientAnalysisHook().analyse(model, data)

    def gradient(term, m):
        copied = copy.deepcopy(model)
        losses = copied(**copied.data_preprocessor(copy.deepcopy(data), True), mode="loss")
        losses[term].backward()
        return torch.cat([p.grad.flatten() for p in copied.backbone.encoders[m].parameters()])

    for m in ("visual", "audio"):
        task = gradient("loss_cls", m)
        assert found[f"norm_parameters/{m}"] == pytest.approx(float(task.norm()), rel=1e-4)
        for term, name in ((f"aux_{m}.loss_cls", f"aux_{m}"), ("fusion.loss_recon", "recon")):
            cosine = torch.cosine_similarity(task, gradient(term, m), dim=0)
            assert found[f"cosine_parameters/{m}/{name}"] == pytest.approx(float(cosine), abs=1e-4)


def test_shares_go_on_after_a_resume(tmp_path):
    pytest.importorskip("mmaction")
    from recognition.model import model_cfg
    from recognition.test_recognizer import loader

    options = dict(model=model_cfg(), default_scope="mmaction", train_dataloader=loader(True))
    loop = dict(type="IterBasedTrainLoop", max_iters=4)
    trained(tmp_path, "run", [HOOK], 4, train_cfg=loop, **copy.deepcopy(options))
    runner, _ = trained(tmp_path, "run", [HOOK], 6, train_cfg=dict(loop, max_iters=6), resume=True, **options)
    counts = runner.message_hub.get_info("gradient_analysis")
    assert {number for _, number in counts.values()} == {3}, "steps 0, 2 and 4"


def test_losses_are_told_apart_as_the_trainer_sums_them():
    one = torch.ones(3)
    terms = group_losses({
        "decode.loss_ce": one, "decode.acc_seg": one, "loss_cls": [one, 2 * one], "fusion.loss_recon": 4 * one,
        "aux_0.loss_ce": one, "aux_0.loss_dice": one, "probe_a.loss_cls": one, "fusion.weight.a": one})
    assert {name: float(x) for name, x in terms.items()} == dict(task=4, recon=4, aux_0=2)
    with pytest.raises(ValueError, match="none is the task's"):
        group_losses({"fusion.loss_recon": one})
    with pytest.raises(ValueError, match="interval"):
        GradientAnalysisHook(0)


def test_gradients_of_a_broken_analysis_are_given_back():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    model(torch.randn(4, 2)).sum().backward()
    before = [p.grad for p in model.parameters()], model[1].running_mean.clone(), torch.get_rng_state()
    with pytest.raises(RuntimeError), untouched(model):
        model.eval().train()(torch.randn(4, 2)).sum().backward()
        model[1].running_mean = torch.full((2,), 9.0)
        raise RuntimeError
    assert all(p.grad is g for p, g in zip(model.parameters(), before[0]))
    assert torch.equal(model[1].running_mean, before[1]) and torch.equal(torch.get_rng_state(), before[2])
    with pytest.raises(ValueError, match="MultimodalBackbone"):
        GradientAnalysisHook().analyse(model, {})
