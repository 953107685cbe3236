from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("mmaction")
from mmaction.registry import MODELS
from mmengine.config import Config
from recognition.model import AV, batch

from mmfusion_plugin.engine import launch

STATISTICS = dict(mean=dict(visual=[10.0, 20.0, 30.0], audio=[-5.0]), std=dict(visual=[1.0, 2.0, 4.0], audio=[2.0]))


def build(**options):
    cfg = dict(type="mmaction.MultimodalActionDataPreProcessor", modalities=AV, **STATISTICS)
    return MODELS.build({**cfg, **options})


def test_frames_and_spectrograms_are_stacked_and_normalised_per_channel():
    data = batch()
    out = build()(data)["inputs"]
    assert out["visual"].dtype == out["audio"].dtype == torch.float32
    assert out["visual"].shape == (4, 2, 3, 16, 16)
    expected = torch.stack([(x[:, 1].double() - 20) / 2 for x in data["inputs"]["visual"]])
    torch.testing.assert_close(out["visual"][:, :, 1], expected.float())
    torch.testing.assert_close(out["audio"], (torch.stack(data["inputs"]["audio"]) + 5) / 2)


@pytest.mark.parametrize(("shape", "axis"), [((3,), 0), ((7, 3), 1), ((3, 5, 5), 0), ((2, 3, 5, 5), 1),
                                             ((2, 3, 4, 5, 5), 1)])
def test_the_channel_axis_of_every_rank(shape, axis):
    data = batch(dict(visual=(1, 3, 4, 4), audio=shape), number=1)
    x = data["inputs"]["audio"][0]
    options = dict(mean=dict(visual=None, audio=[1.0, 2.0, 3.0]), std=dict(visual=None, audio=[2.0, 2.0, 2.0]))
    got = build(**options)(data)["inputs"]["audio"][0]
    for c in range(3):
        torch.testing.assert_close(got.select(axis, c), (x.select(axis, c) - (c + 1)) / 2)


def test_one_number_serves_all_channels_and_none_leaves_the_values():
    data = batch()
    out = build(mean=dict(visual=128.0, audio=None), std=dict(visual=64.0, audio=None))(data)["inputs"]
    torch.testing.assert_close(out["visual"], (torch.stack(data["inputs"]["visual"]).float() - 128) / 64)
    assert torch.equal(out["audio"], torch.stack(data["inputs"]["audio"]))


def test_a_missing_modality_becomes_zero_whatever_its_tensor_holds():
    data = batch(missing=[(1, "audio")])
    data["inputs"]["audio"][1][:] = torch.nan
    out = build()(data)
    assert not out["inputs"]["audio"][1].any()
    assert out["inputs"]["audio"][0].any()
    assert out["data_samples"][1].available == dict(visual=True, audio=False)


def test_non_finite_values_become_the_mean():
    data = batch()
    data["inputs"]["audio"][2][0, 0, 3, 3] = torch.inf
    out = build()(data)["inputs"]["audio"][2, 0, 0]
    assert out[3, 3] == 0
    assert torch.isfinite(out).all()
    assert out[3, 2] != 0


def test_withheld_modalities_are_missing_in_evaluation_alone():
    preprocessor = build(test_missing=["visual"])
    held = preprocessor(batch())
    assert not held["inputs"]["visual"].any()
    assert all(sample.available == dict(visual=False, audio=True) for sample in held["data_samples"])
    assert preprocessor(batch(), training=True)["inputs"]["visual"].any()


def test_the_test_tools_missing_option_reaches_it():
    cfg = Config(dict(model=dict(data_preprocessor=dict(type="MultimodalActionDataPreProcessor", modalities=AV))))
    launch.withhold(cfg, ["audio"])
    assert MODELS.build(dict(cfg.model.data_preprocessor, _scope_="mmaction")).test_missing == ("audio",)


def test_samples_are_optional():
    out = build()(dict(inputs=batch()["inputs"]))
    assert out["data_samples"] is None
    assert out["inputs"]["audio"].any()


def test_a_list_of_dicts_is_taken_too():
    data = batch()
    rows = [{m: data["inputs"][m][i] for m in AV} for i in range(4)]
    expected = build()(copy.deepcopy(data))["inputs"]
    got = build()(dict(data, inputs=rows))["inputs"]
    assert all(torch.equal(got[m], expected[m]) for m in AV)


def test_statistics_are_no_part_of_the_checkpoint():
    assert not build().state_dict()


def _without(data, modality):
    del data["inputs"][modality]
    return data


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: _without(d, "audio"), "the pipeline packs"),
        (lambda d: {**d, "inputs": list(d["inputs"]["audio"])}, "PackAudioVisual"),
        (lambda d: {**d, "inputs": []}, "PackAudioVisual"),
        (lambda d: {**d, "data_samples": d["data_samples"][:2]}, "4 inputs and 2 data samples"),
        (lambda d: {**d, "inputs": {**d["inputs"], "audio": d["inputs"]["audio"][:3]}}, "different numbers of samples"),
        (lambda d: d["inputs"]["audio"].__setitem__(1, torch.zeros(1, 1, 16, 25)) or d, "'audio' of sizes .*1.mp4"),
        (lambda d: d["inputs"]["visual"].__setitem__(0, torch.zeros(2, 1, 16, 16)) or d, "visual"),
        (lambda d: d["inputs"].update(audio=[torch.zeros(2, 2, 8, 8)] * 4) or d, "'audio' has 2 channels in sample 0"),
        (lambda d: d["inputs"].update(audio=[torch.zeros(())] * 4) or d, r"shape \(\) in sample 0.mp4"),
    ])
def test_wrong_batches_are_named(spoil, words):
    with pytest.raises(ValueError, match=words):
        build()(spoil(batch()))


def test_a_sample_without_anything_is_an_error():
    with pytest.raises(ValueError, match="sample 2.mp4 has no modality left"):
        build()(batch(missing=[(2, "visual"), (2, "audio")]))
    with pytest.raises(ValueError, match=r"its files give \['audio'\], and .*test_missing hides \['audio'\]"):
        build(test_missing=["audio"])(batch(missing=[(0, "visual")]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(modalities="visual"), "list of different names"),
        (dict(modalities=["visual", "visual"]), "list of different names"),
        (dict(test_missing="audio"), r"such as \['audio'\]"),
        (dict(test_missing=["depth"]), "names .'depth'."),
        (dict(test_missing=["audio", "visual"]), "every modality"),
        (dict(std=None), "both mean and std"),
        (dict(mean=dict(visual=[0.0] * 3)), "data_preprocessor.mean names"),
        (dict(mean=dict(visual=None, audio=[0.0])), "give both or neither"),
        (dict(std=dict(visual=[1.0, 1.0, 0.0], audio=[1.0])), "finite and positive"),
        (dict(std=dict(visual=[1.0, 1.0], audio=[1.0])), "mean.visual lists 3 values, std.visual 2"),
        (dict(mean=dict(visual="123", audio=[0.0])), "data_preprocessor.mean.visual must be"),
    ])
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        build(**options)


NOISE = dict(visual=dict(kind="image", levels=(1, 11), scale=dict(gaussian=10.0)),
             audio=dict(kind="spectrogram", levels=(1, 11), scale=dict(gaussian=0.1)))


def gray(number=6, offset=0):
    data = batch(number=number)
    for i in range(number):
        data["inputs"]["visual"][i][:] = 128
        data["inputs"]["audio"][i][:] = -5.0
        data["data_samples"][i].set_metainfo(dict(filename=f"clips/{i + offset}.mp4"))
    return data


def test_training_noise_has_the_recorded_level_in_physical_units():
    preprocessor = build(mean=None, std=None, train_noise=dict(noise=NOISE, mode="independent", start=0, seed=1))
    out = preprocessor(gray(), training=True)
    seen = set()
    for b, sample in enumerate(out["data_samples"]):
        for m, unit in dict(visual=10.0, audio=0.1).items():
            level, spread = sample.noise_level[m], out["inputs"][m][b].std().item()
            assert spread == pytest.approx(unit * level, rel=0.15 if unit * level < 50 else 0.4, abs=1e-4)
            assert sample.noise_type[m] == ("gaussian" if level else "clean")
            seen.add((m, level > 0))
    assert len(seen) == 4, "both modalities were clean once and noisy once"
    assert "noise_level" not in preprocessor(gray())["data_samples"][0].metainfo
    told = preprocessor.eval()(gray(), training=True)["data_samples"]
    assert any(sample.noise_level["visual"] for sample in told), "whatever the mode of the model"


def test_noise_at_test_does_not_depend_on_batch_and_order():
    preprocessor = build(train_noise=dict(noise=NOISE, clean_level=0.5),
                         test_noise=dict(audio=dict(type="gaussian", level=7)))
    together = preprocessor(gray())["inputs"]
    for first in (3, 0):
        parts = preprocessor(gray(3, offset=first))
        for m in AV:
            assert torch.equal(parts["inputs"][m], together[m][first:first + 3])
        assert parts["data_samples"][0].noise_level == dict(visual=0.5, audio=7.0)
    assert not torch.equal(together["audio"][0], together["audio"][1])
    described = dict(type="gaussian", level=7, kind="spectrogram", scale=dict(gaussian=0.2))
    out = build(train_noise=dict(noise=NOISE, clean_level=0.5), test_noise=dict(audio=described))(gray())
    assert out["data_samples"][0].noise_level == dict(visual=0.5, audio=7.0)
    other = build(train_noise=dict(noise=NOISE), test_noise=dict(audio=dict(type="gaussian", level=7, seed=1)))
    assert not torch.equal(other(gray())["inputs"]["audio"], together["audio"])


def test_level_0_at_test_is_told_and_changes_nothing():
    unit = dict(kind="spectrogram", empty=0.0, scale=dict(gaussian=0.1, occlusion=1.5))  # level 1 would be no occlusion
    for type in ("gaussian", "occlusion"):
        out = build(test_noise=dict(audio=dict(type=type, level=0, **unit)))(gray())
        assert torch.equal(out["inputs"]["audio"], build()(gray())["inputs"]["audio"])
        assert out["data_samples"][0].noise_level == dict(visual=0.0, audio=0.0)


def test_a_missing_modality_gets_no_noise():
    data = batch(missing=[(0, "audio")])
    out = build(train_noise=dict(noise=dict(audio=NOISE["audio"]), clean_share=0.0, start=0))(data, training=True)
    assert not out["inputs"]["audio"][0].any()
    assert [sample.noise_level["audio"] > 0 for sample in out["data_samples"]] == [False, True, True, True]


def test_a_resumed_run_draws_what_the_unbroken_one_draws():
    def fresh():
        preprocessor = build(train_noise=dict(noise=NOISE, clean_share=0.2))
        preprocessor.noise.set_progress(0.5)
        return preprocessor

    unbroken = fresh()
    unbroken(gray(), training=True)
    saved = copy.deepcopy(unbroken.state_dict())
    expected = unbroken(gray(), training=True)
    torch.manual_seed(5)  # another process starts with another seed
    resumed, forgetful = build(train_noise=dict(noise=NOISE, clean_share=0.2)), fresh()
    resumed.load_state_dict(saved)
    out = resumed(gray(), training=True)
    assert all(torch.equal(out["inputs"][m], expected["inputs"][m]) for m in AV)
    assert [s.noise_level for s in out["data_samples"]] == [s.noise_level for s in expected["data_samples"]]
    assert not torch.equal(forgetful(gray(), training=True)["inputs"]["visual"], expected["inputs"]["visual"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(train_noise=NOISE), "data_preprocessor.train_noise must be a dict such as"),
        (dict(train_noise=dict(noise=NOISE, start=1.5)), "data_preprocessor.train_noise.start is a share"),
        (dict(train_noise=dict(noise=NOISE, share=0.5)), r"data_preprocessor.train_noise has \['share'\]"),
        (dict(train_noise=dict(noise=NOISE, clean_share=2)), "data_preprocessor.train_noise.clean_share must"),
        (dict(train_noise=dict(noise=dict(depth={}))), r"data_preprocessor.train_noise.noise names \['depth'\]"),
        (dict(train_noise=dict(noise=dict(audio=dict(NOISE["audio"], levels=(0, 3))))),
         "data_preprocessor.train_noise.noise.audio: levels must be"),
        (dict(train_noise=dict(noise=dict(visual=dict(NOISE["visual"], scale=dict(salt_and_pepper=0.2),
                                                      types=["salt_and_pepper"])))),
         "data_preprocessor.train_noise.noise.visual: level 11: strength of 'salt_and_pepper' is 2.2"),
        (dict(test_noise=dict(depth=dict(type="gaussian", level=1))), "data_preprocessor.test_noise names"),
        (dict(test_noise=dict(type="gaussian")), "data_preprocessor.test_noise must be a dict by modality"),
        (dict(test_noise=dict(audio=dict(level=1))), r"data_preprocessor.test_noise.audio .*lacks \['type'\]"),
        (dict(test_noise=dict(audio=dict(type="gaussian", level=1))), "what a level means is not stated"),
        (dict(train_noise=dict(noise=NOISE), test_noise=dict(audio=dict(type="gaussian", level=-1))),
         "data_preprocessor.test_noise.audio: .*must be a positive number, got -1"),
        (dict(train_noise=dict(noise=NOISE), test_noise=dict(audio=dict(type="blur", level=1))),
         "data_preprocessor.test_noise.audio: .*scale has no entry for 'blur'"),
    ])
def test_wrong_noise_names_the_key(options, words):
    with pytest.raises(ValueError, match=words):
        build(**options)


def test_readings_that_are_not_the_sensors_name_the_key():
    preprocessor = build(train_noise=dict(noise=dict(visual=dict(NOISE["visual"], kind="vector")), start=0))
    with pytest.raises(ValueError, match="data_preprocessor.train_noise.noise: the batch's 'visual' has shape"):
        preprocessor(gray(), training=True)
