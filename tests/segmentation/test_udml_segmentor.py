"""UDML in a segmentor: dependency and energies on maps, levels from the preprocessor."""
from __future__ import annotations

import pytest
import torch
from segmentation.scene import model_cfg
from segmentation.test_segmentor import batch, build, logits_of, losses_of

from mmfusion_plugin.fusion.dependency import response

RGBD = ["rgb", "depth"]
HEAD = dict(type="FCNHead", in_channels=64, in_index=3, channels=8, num_convs=1, num_classes=3, concat_input=False,
            norm_cfg=dict(type="BN"), align_corners=False)
NOISE = dict(rgb=dict(kind="image", levels=(1, 11), scale=dict(gaussian=10.0)),
             depth=dict(kind="depth", valid_range=(0.1, 10.0), levels=(1, 11), scale=dict(gaussian=0.1)))


def udml(share=1.0, **neck):
    plain = model_cfg()
    widths = plain["neck"]["in_channels"]
    noisy = dict(plain["data_preprocessor"], train_noise=dict(noise=NOISE, clean_share=0.0, seed=0))
    inner = dict(type="SCFAE", width=0.5, out_channels=widths["rgb"], modality_dropout=0.3)
    model = build(
        data_preprocessor=noisy, modality_heads=dict.fromkeys(RGBD, HEAD),
        neck=dict(type="UDML", modalities=RGBD, in_channels=widths, inner=inner, preset="released") | neck)
    for part in model.modules():
        if hasattr(part, "set_progress"):
            part.set_progress(share)
    return model


def test_one_step_with_noise_weights_and_dependency(frames):
    model = udml()
    total, logged = model.parse_losses(losses_of(model, batch(frames)))
    total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert {f"fusion.{what}.{m}" for what in ("weight", "noise", "dependency") for m in RGBD} <= set(logged)
    assert logged["fusion.loss_noise"] > 0 and "aux_rgb.loss_ce" in logged
    logits = logits_of(model, batch(frames))
    assert logits.isfinite().all()


def test_a_dependency_update_changes_no_gradient_and_no_statistic(frames):
    found = []
    for due in (True, False):
        model = udml(share=0.55, dependency_every=2)
        model.neck.udml.step.fill_(0 if due else 1)
        torch.manual_seed(1)
        model.parse_losses(losses_of(model, batch(frames)))[0].backward()
        kept = {n: x.clone() for n, x in model.state_dict().items() if "udml.step" not in n and "dependency" not in n}
        found.append(({n: p.grad for n, p in model.named_parameters()}, kept, model.neck.dependency.alpha_M.clone()))
    (gradients, statistics, alpha), (same, equal, initial) = found
    assert (alpha != initial).all()
    assert all(torch.equal(x, same[n]) for n, x in gradients.items())
    assert all(torch.equal(x, equal[n]) for n, x in statistics.items())


def test_the_dependency_is_the_size_of_predictions_with_one_sensor(frames):
    model = udml(share=0.1)
    model.eval()  # the encoders' BatchNorm as at test; UDML alone counts steps
    model.neck.udml.training = True
    model.loss(**model.data_preprocessor(batch(frames, [(1, "rgb")]), training=True))
    alpha = {m: a.clone() for m, a in model.neck.dependency().items()}
    model.neck.udml.training = False
    for m, other, rows in (("rgb", "depth", [0, 2]), ("depth", "rgb", [0, 1, 2])):
        data = model.data_preprocessor(batch(frames, [(i, other) for i in rows]), training=False)
        with torch.no_grad():
            logits = model(**data, mode="tensor")
        torch.testing.assert_close(alpha[m], response(logits)[rows].mean())


def test_energies_are_means_over_positions_of_each_sensors_head(frames):
    neck = dict(quality="energy", law="exponential", dependency=False)
    model = udml(**neck).eval()
    caught = {}
    model.neck.udml.weigh.register_forward_hook(lambda module, args, weights: caught.update(s=args[0]))
    data = model.data_preprocessor(batch(frames), training=False)
    with torch.no_grad():
        model(**data, mode="tensor")
        for m, levels in model.backbone(data["inputs"]).items():
            scores = model.modality_heads[m](levels)
            torch.testing.assert_close(caught["s"][m], -scores.exp().sum(1).log().mean((1, 2)))
    losses = losses_of(model, batch(frames, [(0, "rgb")]))
    assert losses["fusion.weight.rgb"] > 0
    with pytest.raises(ValueError, match=r"model.modality_heads names \['rgb'\]"):
        cfg = model_cfg()
        build(modality_heads=dict(rgb=HEAD),
              neck=dict(type="UDML", modalities=RGBD, in_channels=cfg["neck"]["in_channels"],
                        inner=dict(type="SumFusion", out_channels=8), **neck))


def test_gains_and_novelty_from_maps(frames):
    neck = dict(preset="default", law="expected_gain", novelty=["distance", "disagreement", "reconstruction"])
    model = udml(**neck)
    for _ in range(3):
        total, logged = model.parse_losses(losses_of(model, batch(frames, [(1, "rgb")])))
    total.backward()
    assert total.isfinite() and [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(f"fusion.novelty.{m}" in logged for m in RGBD)
    gain = model.neck.udml.weigh.gain
    assert (gain.count_MN.sum(1) > 0).all() and gain.sum_MN.sum() < gain.count_MN.sum()
    data = model.data_preprocessor(batch(frames), training=False)
    found = model.eval().fusion_output(**data).per_sample
    assert all(found[f"fusion.{what}.{m}"].shape == (3,) for what in ("weight", "level", "novelty") for m in RGBD)
    assert all(x.isfinite().all() for x in found.values())
    with pytest.raises(ValueError, match=r"law='expected_gain' reads .* model.modality_heads names"):
        cfg = model_cfg()
        build(neck=dict(type="UDML", modalities=RGBD, in_channels=cfg["neck"]["in_channels"], law="expected_gain",
                        inner=dict(type="SumFusion", out_channels=8)))


def test_each_samples_own_dependency(frames):
    model = udml(dependency="per_sample")
    losses = losses_of(model, batch(frames, [(2, "depth")]))
    assert all(losses[f"fusion.dependency.{m}"] > 0 for m in RGBD)
    together = logits_of(model, batch(frames))
    assert together.isfinite().all()
    data = batch(frames)
    alone = dict(inputs={m: x[1:2] for m, x in data["inputs"].items()}, data_samples=data["data_samples"][1:2])
    torch.testing.assert_close(logits_of(model, alone)[0], together[1], rtol=1e-3, atol=1e-4)


def test_without_the_hook_the_first_step_names_the_line_to_add(frames):
    cfg = model_cfg()
    model = build(data_preprocessor=dict(cfg["data_preprocessor"], train_noise=dict(noise=NOISE)))
    with pytest.raises(ValueError, match=r"train_noise starts at 0.5 .*type='FusionScheduleHook'"):
        losses_of(model, batch(frames))


@pytest.mark.parametrize("per_position", [False, True])
def test_the_default_reads_the_texture_of_the_whole_or_of_each_cell(frames, per_position):
    model = udml(preset="default", per_position=per_position)
    total, logged = model.parse_losses(losses_of(model, batch(frames)))
    total.backward()
    assert total.isfinite() and [name for name, p in model.named_parameters() if p.grad is None] == []
    assert {f"fusion.novelty.{m}" for m in RGBD} <= set(logged)
    data = model.data_preprocessor(batch(frames))
    output = model.fusion_output(**data)
    assert all(output.per_sample[f"fusion.weight.{m}"].shape == (len(data["data_samples"]),) for m in RGBD)
    assert logits_of(model, batch(frames)).isfinite().all()
