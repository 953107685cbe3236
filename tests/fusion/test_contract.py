from __future__ import annotations

import pytest
import torch
from fusion.cases import features, present

from mmfusion_plugin.fusion import FusionOutput
from mmfusion_plugin.fusion.contract import check_batch, check_in_channels, check_modalities, positions

WIDTHS = dict(rgb=4, depth=2)


def check(feats, available=None):
    return check_batch(["rgb", "depth"], WIDTHS, feats, available)


def test_output_names_keep_losses_and_diagnostics_apart():
    with pytest.raises(ValueError, match="fusion.loss_"):
        FusionOutput(torch.zeros(1), losses={"fusion.recon": torch.zeros(())})
    with pytest.raises(ValueError, match="contains 'loss'"):
        FusionOutput(torch.zeros(1), diagnostics={"fusion.loss_share": torch.zeros(())})


def test_diagnostics_are_detached():
    x = torch.ones((), requires_grad=True)
    out = FusionOutput(torch.zeros(1), diagnostics={"fusion.x": x * 2})
    assert not out.diagnostics["fusion.x"].requires_grad


@pytest.mark.parametrize(
    "names", [["rgb"], ["rgb", "rgb"], "rgb", ["a.b", "c"], ["", "c"], [1, 2], ["type", "c"]]
)
def test_modalities_must_be_two_or_more_different_names(names):
    with pytest.raises(ValueError, match="modalit"):
        check_modalities(names)


@pytest.mark.parametrize(
    "widths",
    [dict(rgb=4), dict(rgb=4, nir=2), dict(rgb=4, depth=0), dict(rgb=4, depth=True), [4, 2]],
)
def test_widths_must_name_every_modality(widths):
    with pytest.raises(ValueError, match="in_channels"):
        check_in_channels(["rgb", "depth"], widths)


def test_no_mask_means_everything_is_there():
    available = check(features(WIDTHS))
    assert list(available) == ["rgb", "depth"]
    assert all(mask.all() and mask.shape == (4,) for mask in available.values())


def test_positions_of_each_rank():
    assert positions(torch.zeros(2, 5)) == ()
    assert positions(torch.zeros(2, 7, 5)) == (7,)
    assert positions(torch.zeros(2, 5, 3, 4)) == (3, 4)
    assert positions(torch.zeros(2, 5, 6, 3, 4)) == (6, 3, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.pop("depth"), "the batch holds"),
        (lambda f: f.update(nir=f["depth"]), "the batch holds"),
        (lambda f: f.update(depth=torch.zeros(4, 3)), "neck.in_channels.depth is 2"),
        (lambda f: f.update(depth=torch.zeros(3, 2)), "samples"),
        (lambda f: f.update(depth=torch.zeros(4, 2, 1, 1)), "positions"),
        (lambda f: f.update(depth=torch.zeros(4)), "expected \\(B, C\\)"),
    ],
)
def test_a_wrong_batch_is_named(change, words):
    feats = features(WIDTHS)
    change(feats)
    with pytest.raises(ValueError, match=words):
        check(feats)


def test_a_sample_without_any_modality_is_refused_by_number():
    available = present(WIDTHS, missing=dict(rgb=[1, 2], depth=[2]))
    with pytest.raises(ValueError, match=r"samples \[2\]"):
        check(features(WIDTHS), available)


def test_masks_must_be_boolean_and_of_the_batch():
    feats = features(WIDTHS)
    with pytest.raises(TypeError, match="bool"):
        check(feats, {m: torch.ones(4) for m in WIDTHS})
    with pytest.raises(ValueError, match="shape"):
        check(feats, present(WIDTHS, batch=3))
    with pytest.raises(ValueError, match="available holds"):
        check(feats, present(["rgb"]))


def test_a_model_that_takes_the_output_for_a_pyramid_is_told_what_to_use():
    with pytest.raises(TypeError, match="model.type='FusionEncoderDecoder'"):
        FusionOutput((torch.ones(1), ))[0]
