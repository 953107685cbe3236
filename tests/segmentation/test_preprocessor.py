from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from segmentation.scene import model_cfg


def build(**options):
    return MODELS.build(model_cfg()["data_preprocessor"] | options)


def item(size=(4, 5), available=None, depth=None):
    rng = np.random.default_rng(0)
    sample = SegDataSample(metainfo=dict(img_path="frame.png", available=available or dict(rgb=True, depth=True)))
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, *size, dtype=torch.long))
    inputs = dict(
        rgb=torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8)),
        depth=torch.full((1, *size), 3.0) if depth is None else depth,
    )
    return dict(inputs=inputs, data_samples=sample)


def run(preprocessor, *items, training=False):
    return preprocessor(pseudo_collate(list(items)), training)


def test_every_sensor_is_normalised_in_its_own_unit():
    x = item()
    out = run(build(size=None), x)["inputs"]
    assert out.shape == (1, 4, 4, 5)
    torch.testing.assert_close(out[0, :3], (x["inputs"]["rgb"].flip(0).float() - 120) / 60)
    torch.testing.assert_close(out[0, 3], torch.full((4, 5), 1.0))


def test_copies_to_the_device_wait_for_nothing_where_the_config_says_so():
    assert build(non_blocking=True)._non_blocking and not build()._non_blocking  # what mmengine's cast_data reads


def test_invalid_depth_and_padding_are_zero():
    depth = torch.full((1, 4, 5), 3.0)
    depth[0, 1, 2] = 0
    out = run(build(size=(6, 8)), item(depth=depth), training=True)
    assert out["inputs"].shape == (1, 4, 6, 8)
    assert out["inputs"][0, 3, 1, 2] == 0
    assert not out["inputs"][0, :, 4:].any()
    assert (out["data_samples"][0].gt_sem_seg.data[0, 4:] == 255).all()


def test_non_finite_readings_are_invalid():
    depth = torch.full((1, 4, 5), 3.0)
    depth[0, 0, 0], depth[0, 0, 1] = float("nan"), float("inf")
    out = run(build(size=None), item(depth=depth))["inputs"]
    assert torch.isfinite(out).all()
    assert out[0, 3, 0, :3].tolist() == [0, 0, 1]


def test_a_file_with_non_finite_values_is_named_once(monkeypatch):
    said = []
    monkeypatch.setattr("mmfusion_plugin.models.samples.print_log", lambda text, **_: said.append(text))
    preprocessor = build(size=None)
    for path in ("a.png", "a.png", "b.png"):
        x = item(depth=torch.full((1, 4, 5), float("nan")))
        x["data_samples"].set_metainfo(dict(modality_paths=dict(rgb="rgb.png", depth=path)))
        run(preprocessor, x)
    assert [text.split(" holds")[0] for text in said] == ["'depth' of a.png", "'depth' of b.png"]


def test_padding_in_evaluation_is_recorded():
    out = run(build(test_cfg=dict(size_divisor=8)), item())
    assert out["inputs"].shape == (1, 4, 8, 8)
    assert [int(n) for n in out["data_samples"][0].img_padding_size] == [0, 3, 0, 4]


def test_images_that_cannot_be_stacked_are_named():
    with pytest.raises(ValueError, match="batch_size=1"):
        run(build(), item(), item(size=(6, 5)))
    with pytest.raises(ValueError, match=r"RandomCrop\.crop_size"):
        run(build(size=(4, 5)), item(), item(size=(6, 5)), training=True)
    x = item()
    with pytest.raises(ValueError, match="different numbers of samples"):
        build()(dict(inputs=dict(rgb=[x["inputs"]["rgb"]] * 2, depth=[x["inputs"]["depth"]]), data_samples=None))


def test_a_missing_sensor_is_zero_and_recorded():
    out = run(build(size=None), item(available=dict(rgb=True, depth=False)), item())
    assert not out["inputs"][0, 3].any()
    assert out["inputs"][1, 3].any()
    assert [s.metainfo["available"]["depth"] for s in out["data_samples"]] == [False, True]


def test_test_missing_hides_in_evaluation_alone():
    preprocessor = build(test_missing=["depth"], size=(4, 5))
    tested, trained = run(preprocessor, item()), run(preprocessor, item(), training=True)
    assert not tested["inputs"][0, 3].any()
    assert not tested["data_samples"][0].metainfo["available"]["depth"]
    assert trained["inputs"][0, 3].any()
    with pytest.raises(ValueError, match="has no modality left"):
        run(preprocessor, item(available=dict(rgb=False, depth=True)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(mean=dict(rgb=[0.0] * 3)), "data_preprocessor.mean names"),
        (dict(std=dict(rgb=[1.0] * 3, depth=[0.0])), "std positive"),
        (dict(std=dict(rgb=[1.0], depth=[1.0])), "one value per channel"),
        (dict(test_missing=["nir"]), "data_preprocessor.test_missing names"),
        (dict(test_missing=["rgb", "depth"]), "leave at least one"),
        (dict(invalid=dict(nir=0)), "data_preprocessor.invalid names"),
        (dict(bgr_to_rgb=["nir"]), "data_preprocessor.bgr_to_rgb names"),
        (dict(bgr_to_rgb=["depth"]), "has 1 channels"),
        (dict(bgr_to_rgb=True), r"bgr_to_rgb must be a list such as \[.rgb.\], got True"),
        (dict(test_missing="depth"), "must be a list"),
        (dict(mean=dict(rgb=[0.0] * 3, depth=2.0)), "mean.depth must list one value"),
        (dict(modalities=["rgb", "rgb", "depth"]), "different names"),
        (dict(size_divisor=32), "both size"),
        (dict(test_cfg=dict(size=(8, 8), size_divisor=8)), "data_preprocessor.test_cfg sets both"),
        (dict(test_cfg=dict(crop=8)), "it takes size or size_divisor"),
    ],
)
def test_wrong_options_name_the_key(options, words):
    with pytest.raises(ValueError, match=words):
        build(**options)


def test_wrong_inputs_are_named():
    with pytest.raises(ValueError, match="the pipeline packs"):
        x = item()
        x["inputs"].pop("depth")
        run(build(), x)
    with pytest.raises(ValueError, match="has 2 channels"):
        run(build(), item(depth=torch.zeros(2, 4, 5)))
    with pytest.raises(ValueError, match="must be registered"):
        run(build(), item(depth=torch.zeros(1, 3, 5)))
    with pytest.raises(ValueError, match="PackModalities"):
        build()(dict(inputs=[torch.zeros(3, 4, 5)], data_samples=[None]))
    with pytest.raises(ValueError, match="data_preprocessor.size"):
        run(build(size=None), item(), training=True)


NOISE = dict(
    rgb=dict(kind="image", levels=(1, 11), scale=dict(gaussian=10.0)),
    depth=dict(kind="depth", valid_range=(0.1, 10.0), levels=(1, 11), scale=dict(gaussian=0.1, depth_holes=0.05)))
BARE = {m: {key: value for key, value in noise.items() if key != "levels"} for m, noise in NOISE.items()}


def frame(i, size=(16, 20)):
    x = item(size, depth=torch.full((1, *size), 3.0))
    x["inputs"]["rgb"] = torch.full((3, *size), 128, dtype=torch.uint8)
    x["inputs"]["depth"][0, :, :5] = 0
    x["inputs"]["depth"][0, 0, 6] = float("nan")
    x["data_samples"].set_metainfo(dict(img_path=f"data/RGB/{i}.png"))
    return x


def injected(out, b):
    """Readings after the noise, back in the sensors' units."""
    rgb, depth = out["inputs"][b, :3] * 60 + 120, out["inputs"][b, 3] * 1 + 2
    return dict(rgb=rgb, depth=depth)


def test_training_noise_has_the_recorded_level_in_physical_units():
    preprocessor = build(size=(64, 64), train_noise=dict(noise=NOISE, mode="independent", start=0, seed=3))
    out = run(preprocessor, *(frame(i, (64, 64)) for i in range(8)), training=True)
    seen = set()
    for b, sample in enumerate(out["data_samples"]):
        for m, x in injected(out, b).items():
            level, clean = sample.noise_level[m], 128.0 if m == "rgb" else 3.0
            x = x[..., 10:]
            spread = dict(rgb=10.0, depth=0.1)[m] * level
            assert sample.noise_type[m] == ("gaussian" if level else "clean")
            # 8-bit values are clipped on both sides: a large spread is squeezed
            assert (x - clean).std().item() == pytest.approx(spread, rel=0.1 if spread < 50 else 0.35, abs=1e-4)
            seen.add((m, level > 0))
    assert len(seen) == 4, "both sensors were clean once and noisy once"


def test_training_noise_leaves_invalid_readings_invalid():
    preprocessor = build(size=(16, 20), train_noise=dict(noise=NOISE, clean_share=0.0, mode="independent", start=0))
    out = run(preprocessor, frame(0), frame(1), training=True)
    assert not out["inputs"][:, 3, :, :5].any()
    assert not out["inputs"][:, 3, 0, 6].any()
    assert (out["inputs"][:, 3, 1:, 6] != 1).all()
    gray = dict(rgb=dict(NOISE["rgb"], scale=dict(gaussian=40.0)))
    kept = build(size=(16, 20), invalid=dict(rgb=128, depth=0), train_noise=dict(noise=gray, clean_share=0.0, start=0))
    assert not run(kept, frame(0), training=True)["inputs"][0, :3].any()


def test_a_missing_sensor_gets_no_noise_and_level_0():
    preprocessor = build(size=(4, 5), train_noise=dict(noise=NOISE, clean_share=0.0, mode="independent", start=0))
    out = run(preprocessor, item(available=dict(rgb=True, depth=False)), training=True)
    sample = out["data_samples"][0]
    assert not out["inputs"][0, 3].any()
    assert sample.noise_level["rgb"] > 0 == sample.noise_level["depth"]
    assert sample.noise_type == dict(rgb="gaussian", depth="clean")


def test_noise_waits_for_its_share_of_training():
    preprocessor = build(size=(16, 20), train_noise=dict(noise=NOISE, clean_share=0.0))
    clean = run(build(size=(16, 20)), frame(0), training=True)["inputs"]
    for share, noisy in ((0.49, False), (0.5, True)):
        preprocessor.noise.set_progress(share)
        out = run(preprocessor, frame(0), training=True)
        assert torch.equal(out["inputs"], clean) != noisy
        assert ("noise_level" in out["data_samples"][0].metainfo) == noisy
    assert torch.equal(run(preprocessor, frame(0))["inputs"], run(build(size=(16, 20)), frame(0))["inputs"])


def test_noise_at_test_depends_on_the_samples_name_alone():
    options = dict(size=None, test_noise=dict(rgb=dict(type="gaussian", level=4, **BARE["rgb"]),
                                              depth=dict(type="depth_holes", level=5, **BARE["depth"])))
    together = run(build(**options), frame(0), frame(1))
    assert not torch.equal(together["inputs"][0], together["inputs"][1])
    alone = build(**options)
    for i in (1, 0):
        again = run(alone, frame(i))
        assert torch.equal(again["inputs"][0], together["inputs"][i])
        assert again["data_samples"][0].noise_level == dict(rgb=4.0, depth=5.0)
        assert again["data_samples"][0].noise_type == dict(rgb="gaussian", depth="depth_holes")
    moved = frame(0)
    moved["data_samples"].set_metainfo(dict(img_path="elsewhere/RGB/0.png"))
    assert torch.equal(run(alone, moved)["inputs"][0], together["inputs"][0])
    nameless = frame(0)
    nameless["data_samples"].set_metainfo(dict(img_path=None))
    with pytest.raises(ValueError, match="data_preprocessor.test_noise draws each sample's noise from its name"):
        run(alone, nameless)


def test_the_depth_that_means_no_value_must_agree():
    with pytest.raises(ValueError, match="data_preprocessor.train_noise.noise.depth reads 0 .*invalid.depth is -1"):
        build(invalid=dict(depth=-1), train_noise=dict(noise=NOISE))
    with pytest.raises(ValueError, match="data_preprocessor.test_noise.depth reads 0 .*invalid.depth is None"):
        build(invalid=None, test_noise=dict(depth=dict(type="gaussian", level=1, **BARE["depth"])))


@pytest.mark.parametrize("when", ["train_noise", "test_noise"])
def test_noise_does_not_clip_counts_of_sixteen_bits_at_grey_levels(when):
    def noisy(**more):
        described = {key: value for key, value in NOISE["rgb"].items() if key != "levels"} | more
        noise = dict(train_noise=dict(noise=dict(rgb=dict(described, levels=(1, 2))), start=0, clean_share=0.0)) \
            if when == "train_noise" else dict(test_noise=dict(rgb=dict(described, type="gaussian", level=2)))
        x = frame(0)
        x["inputs"]["rgb"] = torch.full((3, 16, 20), 28000.0)
        x["data_samples"].set_metainfo(dict(not_8_bit=["rgb"]))
        return run(build(size=(16, 20), **noise), x, training=when == "train_noise")

    with pytest.raises(ValueError, match=rf"{when}.*rgb clips at \(0.0, 255.0\).*valid_range=\(lowest, highest\)"):
        noisy()
    assert injected(noisy(valid_range=(0, 65535)), 0)["rgb"].mean() == pytest.approx(28000, rel=0.01)
