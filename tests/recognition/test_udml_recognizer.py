"""UDML in a recognizer: noise, stages, dependency and energies from the batch to the log."""
from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("mmaction")
from mmengine.runner import Runner
from recognition.model import AV, CLASSES, WIDTHS, batch, build, losses_of, model_cfg, scores_of
from recognition.test_recognizer import loader

from mmfusion_plugin.fusion.dependency import response
from mmfusion_plugin.fusion.input_statistics import NUM_STATISTICS, input_statistics

NOISE = dict(visual=dict(kind="image", levels=(1, 11), scale=dict(gaussian=10.0)),
             audio=dict(kind="spectrogram", levels=(1, 11), scale=dict(gaussian=0.3)))
STAGES = dict(clean=0.2, noise=0.55, weights=0.8)


def udml_cfg(neck=None, noise=True, **options):
    cfg = model_cfg(**options)
    inner = dict(type="ConcatFusion", out_channels=12, modality_dropout=0.3)
    cfg["neck"] = dict(type="UDML", modalities=AV, in_channels=dict(WIDTHS), inner=inner, preset="released",
                       dependency_every=2) | (neck or {})
    if noise:
        cfg["data_preprocessor"]["train_noise"] = dict(noise=NOISE, clean_share=0.3)
    return cfg


def at(model, share):
    for part in model.modules():
        if hasattr(part, "set_progress"):
            part.set_progress(share)
    return model


def state(model, skip=()):
    return {name: x.clone() for name, x in model.state_dict().items() if not any(part in name for part in skip)}


def test_levels_reach_the_estimator_and_the_log(tmp_path):
    inner = dict(type="ConcatFusion", out_channels=12)  # with modality dropout some samples' only weight is 1
    runner = Runner(
        model=udml_cfg(dict(inner=inner)), work_dir=str(tmp_path), default_scope="mmaction",
        train_dataloader=loader(True),
        train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=3), randomness=dict(seed=0),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.01)), custom_hooks=[dict(type="FusionScheduleHook")],
        default_hooks=dict(logger=dict(type="LoggerHook", interval=1)), experiment_name="udml-recognizer")
    runner.train()
    assert float(runner.model.neck.udml.progress) == pytest.approx(5 / 6)
    scalars = runner.message_hub.log_scalars
    names = [f"train/fusion.{what}.{m}" for what in ("weight", "noise", "dependency") for m in AV]
    assert set(names) <= set(scalars)
    losses = scalars["train/fusion.loss_noise"].data[0]
    assert [value > 0 for value in losses] == [False] * 3 + [True] * 3  # noise begins at half of six steps
    weights = [scalars[f"train/fusion.weight.{m}"].data[0] for m in AV]
    assert [value == 1 for value in weights[0]] == [True] * 4 + [False] * 2  # dynamic from 0.6: steps 4 and 5
    assert [a + b for a, b in zip(*weights)] == pytest.approx([2] * 6, abs=1e-5)


def test_without_the_hook_the_first_step_names_the_line_to_add():
    model = build(udml_cfg(dict(weights_from=0.0)))
    with pytest.raises(ValueError, match=r"data_preprocessor.train_noise starts at 0.5 .*type='FusionScheduleHook'"):
        losses_of(model, batch())
    with pytest.raises(ValueError, match="neck.weights_from=0.6"):
        losses_of(build(udml_cfg(noise=False)), batch())
    losses_of(build(udml_cfg(dict(quality=None), noise=False)), batch())


@pytest.mark.parametrize("share", STAGES.values(), ids=STAGES)
def test_a_dependency_update_changes_no_gradient_and_no_statistic(share):
    found = []
    for due in (True, False):
        model = at(build(udml_cfg()), share)
        model.neck.udml.step.fill_(0 if due else 1)
        torch.manual_seed(1)
        total, _ = model.parse_losses(losses_of(model, batch()))
        total.backward()
        found.append((total.detach(), {name: p.grad for name, p in model.named_parameters()},
                      state(model, ["udml.step", "dependency"]), model.neck.dependency.alpha_M.clone()))
    (one, gradients, statistics, alpha), (other, same, equal, initial) = found
    assert torch.equal(one, other) and (alpha != initial).all()
    assert gradients.keys() == same.keys() and all(torch.equal(g, same[n]) for n, g in gradients.items())
    assert all(torch.equal(x, equal[name]) for name, x in statistics.items())


def test_the_dependency_is_the_size_of_predictions_with_one_modality():
    model = at(build(udml_cfg(dict(preset="default"), noise=False)), 0.1)
    data = batch(missing=[(2, "audio")])
    model.neck.dependency.momentum = 1.0
    # the encoders' BatchNorm reads the batch in training and its running mean at test: compare on one of them
    model.backbone.eval()
    model.train = lambda mode=True: model
    losses_of(model, data)
    alpha = model.neck.dependency()
    del model.train
    model.eval()
    for m, other in (AV, AV[::-1]):
        alone = batch(missing=[(i, other) for i in range(4) if (i, m) != (2, "audio")])
        with torch.no_grad():
            logits = model(**model.data_preprocessor(alone), mode="tensor")["fused"]
        rows = [0, 1, 3] if m == "audio" else [0, 1, 2, 3]
        torch.testing.assert_close(alpha[m], response(logits[rows]).mean())


@pytest.mark.parametrize("share", STAGES.values(), ids=STAGES)
def test_resuming_in_each_stage_gives_the_losses_of_the_unbroken_run(share):
    steps, done = 20, round(20 * share) + 1
    batches = [batch(seed=i, missing=[(i % 4, AV[i % 2])]) for i in range(steps)]

    def train(model, optimizer, first, last):
        seen = []
        for i in range(first, last):
            total, _ = model.parse_losses(losses_of(at(model, i / steps), batches[i]))
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            seen.append(total.item())
        return seen

    def fresh():
        model = build(udml_cfg())
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    model, optimizer = fresh()
    train(model, optimizer, 0, done)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict())), torch.get_rng_state()
    expected = train(model, optimizer, done, steps)

    def resume(forget=()):
        (weights, moments), random = saved
        again, optimizer = fresh()
        again.data_preprocessor.noise.train_noise.seed += 1  # another process starts with another seed
        again.load_state_dict({k: v for k, v in weights.items() if not any(f in k for f in forget)}, strict=not forget)
        optimizer.load_state_dict(copy.deepcopy(moments))
        torch.set_rng_state(random)  # what a checkpoint hook keeps besides
        return train(again, optimizer, done, steps)

    assert resume() == expected
    assert resume(forget=["train_noise"]) != expected
    assert resume(forget=["dependency"]) != expected


def test_each_samples_own_dependency_in_training_and_at_test():
    model = at(build(udml_cfg(dict(dependency="per_sample", quality="given", preset="default", temperature=1.0,
                                   inner=dict(type="ConcatFusion", out_channels=12)), noise=False)), 1.0)
    data = batch(missing=[(1, "visual")])
    for sample in data["data_samples"]:
        sample.set_metainfo(dict(noise_level=dict.fromkeys(AV, 2.0)))  # equal: the weights are the dependency's
    losses = losses_of(model, data)
    sum(v for k, v in losses.items() if "loss" in k).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(losses[f"fusion.dependency.{m}"] > 0 for m in AV)
    caught = {}
    model.neck.udml.weigh.register_forward_hook(
        lambda module, args, weights: caught.update(alpha=args[1], weights=weights))
    model.zero_grad()
    scores_of(model, data)
    for i in (0, 2, 3):
        ratio = caught["weights"]["audio"][i] / caught["weights"]["visual"][i]
        torch.testing.assert_close(ratio, caught["alpha"]["visual"][i] / caught["alpha"]["audio"][i])
    assert caught["weights"]["visual"][1] == 0 and caught["weights"]["audio"][1] == 1
    assert caught["alpha"]["audio"].unique().numel() == 4
    batchwise = dict(caught["weights"])
    one = dict(inputs={m: x[3:] for m, x in data["inputs"].items()}, data_samples=data["data_samples"][3:])
    scores_of(model, one)
    torch.testing.assert_close(caught["weights"]["audio"], batchwise["audio"][3:])


def test_energies_come_from_each_modalitys_classifier():
    neck = dict(quality="energy", law="exponential", dependency=False, temperature=2.0)
    model = at(build(udml_cfg(neck, noise=False)), 1.0)
    caught = {}
    model.neck.udml.weigh.register_forward_hook(lambda module, args, weights: caught.update(s=args[0], w=weights))
    with torch.no_grad():
        logits = model.eval()(**model.data_preprocessor(batch()), mode="tensor")
    sure = {m: logits[m].exp().sum(1).log() for m in AV}
    for m in AV:
        torch.testing.assert_close(caught["s"][m], -sure[m])
    odds = {m: (sure[m] / 2).exp() for m in AV}
    torch.testing.assert_close(caught["w"]["audio"], 2 * odds["audio"] / sum(odds.values()))
    assert losses_of(model, batch(missing=[(0, "audio")]))["fusion.weight.audio"] > 0
    with pytest.raises(ValueError, match=r"model.cls_head.modality_in_channels names \['audio'\]"):
        build(udml_cfg(neck, head=dict(modality_in_channels=dict(audio=6))))


SIGNALS = ["distance", "disagreement", "reconstruction"]


def test_gains_and_novelty_are_learnt_from_the_noise_stage_on_and_saved():
    scfae = dict(type="SCFAE", out_channels=12, modality_dropout=0.3)
    neck = dict(preset="default", law="expected_gain", novelty=SIGNALS, inner=scfae)
    model, data = build(udml_cfg(neck)), batch(missing=[(1, "audio")])
    losses_of(at(model, 0.2), data)
    udml = model.neck.udml
    assert not udml.weigh.gain.count_MN.any() and not udml.novelty.curve.count_MN.any(), "no levels yet"
    for seed in range(6):
        total, logged = model.parse_losses(losses_of(at(model, 0.8), batch(seed=seed, missing=[(1, "audio")])))
        total.backward()
    assert total.isfinite() and [name for name, p in model.named_parameters() if p.grad is None] == []
    assert {f"fusion.novelty.{m}" for m in AV} <= set(logged)
    assert udml.weigh.chance == pytest.approx(1 / 5) and (udml.weigh.gain.count_MN.sum(1) > 0).all()
    assert all(udml.novelty.scale[m][name].ready for m in AV for name in SIGNALS)
    again = build(udml_cfg(neck))
    again.load_state_dict(model.state_dict())
    one, other = (part.eval().fusion_output(**part.data_preprocessor(copy.deepcopy(data))) for part in (model, again))
    assert all(torch.equal(x, other.per_sample[name]) for name, x in one.per_sample.items())
    assert {f"fusion.{what}.{m}" for what in ("weight", "noise", "level", "novelty") for m in AV} <= set(one.per_sample)
    with pytest.raises(ValueError, match=r"law='expected_gain' reads .* names \['audio'\]"):
        build(udml_cfg(dict(law="expected_gain"), head=dict(modality_in_channels=dict(audio=6))))


@pytest.mark.parametrize("neck", [dict(), dict(preset="default"), dict(dependency="per_sample"),
                                  dict(quality="variance"), dict(law="learned_monotone"),
                                  dict(law="expected_gain"), dict(novelty=["distance", "disagreement"]),
                                  dict(quality="energy", law="exponential"), dict(quality=None)])
@pytest.mark.parametrize("share", STAGES.values(), ids=STAGES)
def test_a_batch_without_one_modality_trains(neck, share):
    model = at(build(udml_cfg(neck)), share)
    data = batch(missing=[(i, "audio") for i in range(4)])
    data["inputs"]["audio"] = [torch.full_like(x, torch.nan) for x in data["inputs"]["audio"]]
    total, _ = model.parse_losses(losses_of(model, data))
    total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert total.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())
    if model.neck.dependency is not None:
        assert model.neck.dependency()["audio"] == 1 != model.neck.dependency()["visual"]
    assert scores_of(model, data)["fused"].shape == (4, CLASSES)


@pytest.mark.parametrize("inner", ["ConcatFusion", "SCFAE"])
@pytest.mark.parametrize("preset", ["released", "default"])
@pytest.mark.parametrize("share", STAGES.values(), ids=STAGES)
def test_a_last_batch_of_one_clip_trains(preset, inner, share):
    model = at(build(udml_cfg(dict(preset=preset, inner=dict(type=inner, out_channels=12)))), share)
    total, _ = model.parse_losses(losses_of(model, batch(number=1)))
    total.backward()
    assert total.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_default_reads_the_texture_of_every_clip_and_resumes():
    """Frames of a clip are one sample to the neck, whose statistics are the frames' mean."""
    cfg = udml_cfg(dict(preset="default"))
    model = build(cfg)
    seen = []
    inner = model.neck.udml.known.forward
    model.neck.udml.known.forward = lambda statistics, *rest: (seen.append(statistics), inner(statistics, *rest))[1]
    for seed in range(4):
        losses_of(at(model, 0.8), batch(seed=seed))
    data = model.data_preprocessor(batch(seed=9))
    model.eval().fusion_output(**data)
    x = data["inputs"]["visual"]
    one = torch.stack([input_statistics(frame[None])[0] for frame in x[1]]).mean(0)
    assert seen[-1]["visual"].shape == (4, NUM_STATISTICS)
    torch.testing.assert_close(seen[-1]["visual"][1], one)
    scores = model.neck.udml.known
    assert all(scores.inputs[m].ready and scores.scale[m].ready for m in AV)
    again = build(cfg).eval()
    again.load_state_dict(model.state_dict())
    for name, value in model.fusion_output(**data).per_sample.items():
        assert torch.equal(value, again.fusion_output(**data).per_sample[name]), name


def test_dependency_and_auxiliary_predictions_share_the_steps_one_encoder_pass():
    model = at(build(udml_cfg(dict(dependency_every=1))), 1.0)
    passes = {m: 0 for m in AV}
    for m, encoder in model.backbone.encoders.items():
        encoder.register_forward_hook(lambda *_, m=m: passes.update({m: passes[m] + 1}))
    before = model.neck.dependency.alpha_M.clone()
    losses_of(model, batch())
    assert passes == {m: 1 for m in AV}
    assert not torch.equal(model.neck.dependency.alpha_M, before)
