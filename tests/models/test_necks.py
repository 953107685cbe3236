from __future__ import annotations

import pickle

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmfusion_plugin.fusion import FUSIONS, FusionOutput, cuda_graphs
from mmfusion_plugin.fusion.input_statistics import NUM_STATISTICS
from mmfusion_plugin.models import NECKS

PYRAMID = dict(rgb=[4, 8], depth=[2, 6])


def build(**cfg):
    torch.manual_seed(0)
    return MODELS.build({"type": "SCFAE", "modalities": ["rgb", "depth"], "in_channels": PYRAMID, **cfg})


def pyramid(batch=3, sizes=((4, 6), (2, 3))):
    return {
        m: tuple(torch.randn(batch, C, *size).requires_grad_() for C, size in zip(widths, sizes))
        for m, widths in PYRAMID.items()
    }


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_every_block_is_a_neck_of_the_root_registry(name):
    neck = build(type=name, out_channels=[4, 8])
    out = neck(pyramid())
    assert [tuple(x.shape) for x in out.fused] == [(3, 4, 4, 6), (3, 8, 2, 3)]
    assert isinstance(neck, NECKS[name])


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_a_neck_can_be_pickled(name):
    able = cuda_graphs.SAVED_TENSOR_HOOKS is not None
    neck, feats = build(type=name, out_channels=[4, 8], cuda_graphs=able).eval(), pyramid()
    again = pickle.loads(pickle.dumps(neck))
    torch.testing.assert_close(again(feats).fused, neck(feats).fused)


def test_each_level_is_the_block_and_losses_are_their_mean():
    neck, feats = build(out_channels=[4, 8]), pyramid()
    out = neck(feats)
    levels = [neck.levels[i]({m: feats[m][i] for m in feats}) for i in range(2)]
    for fused, level in zip(out.fused, levels):
        torch.testing.assert_close(fused, level.fused)
    expected = (levels[0].losses["fusion.loss_recon"] + levels[1].losses["fusion.loss_recon"]) / 2
    torch.testing.assert_close(out.losses["fusion.loss_recon"], expected)


def test_a_level_without_a_loss_counts_as_zero():
    feats = pyramid()
    for silent in (0, 1):
        options = [dict(recon_weight=0) if i == silent else {} for i in range(2)]
        neck = build(out_channels=[4, 8], level_options=options)
        other = 1 - silent
        alone = neck.levels[other]({m: feats[m][other] for m in feats}).losses["fusion.loss_recon"]
        torch.testing.assert_close(neck(feats).losses["fusion.loss_recon"], alone / 2)


def test_diagnostics_carry_their_level_where_there_are_several():
    assert "fusion.recon_similarity.depth.1" in build()(pyramid()).diagnostics
    single = build(in_channels=dict(rgb=4, depth=2))
    names = single(dict(rgb=torch.randn(3, 4), depth=torch.randn(3, 2))).diagnostics
    assert "fusion.recon_similarity.depth" in names


def test_one_level_gives_a_tensor():
    neck = build(in_channels=dict(rgb=4, depth=2), out_channels=5)
    assert neck(dict(rgb=torch.randn(3, 4), depth=torch.randn(3, 2))).fused.shape == (3, 5)


def test_dropout_hides_a_modality_on_every_level_at_once():
    neck = build(type="ConcatFusion", modality_dropout=0.99)
    fused = neck(pyramid(batch=32)).fused
    gone = [torch.stack([x[:, :C].flatten(1).any(1) for x, C in zip(fused, PYRAMID["rgb"])], 1)]
    assert (gone[0][:, 0] == gone[0][:, 1]).all()
    assert not gone[0].all()


def test_other_grids_are_brought_to_the_first_ones():
    feats = pyramid()
    small = {m: tuple(x if m == "rgb" else x[..., ::2, ::2] for x in feats[m]) for m in feats}
    assert [tuple(x.shape[2:]) for x in build()(small).fused] == [(4, 6), (2, 3)]
    assert [tuple(x.shape[2:]) for x in build(align="depth")(small).fused] == [(2, 3), (1, 2)]
    with pytest.raises(ValueError, match="positions"):
        build(align="none")(small)


@pytest.mark.parametrize("rank", ["sequence", "map"])
def test_a_coarser_grid_is_interpolated_between_the_centres_of_its_cells(rank):
    step, shape = torch.tensor([0.0, 1.0]), dict(sequence=(1, 4, 4), map=(1, 4, 4, 6))[rank]
    depth = step[:, None].expand(1, 2, 2) if rank == "sequence" else step[:, None].expand(1, 2, 2, 3)
    neck = build(type="ConcatFusion", in_channels=dict(rgb=4, depth=2))
    fused = neck(dict(rgb=torch.zeros(shape), depth=depth)).fused
    fused = fused[0, :, 4:] if rank == "sequence" else fused[0, 4:].movedim(0, -1)
    expected = torch.tensor([0.0, 0.25, 0.75, 1.0])
    torch.testing.assert_close(fused, expected.reshape(4, *[1] * (fused.ndim - 1)).expand_as(fused))


def test_level_options_lie_over_the_common_ones():
    neck = build(width=0.5, level_options=[dict(width=dict(rgb=1, depth=1)), {}])
    assert [level.pre["rgb"].swiglu.gate.in_features for level in neck.levels] == [1, 4]


def test_a_config_that_mmengine_wrote_builds_the_same_neck(tmp_path):
    cfg = Config(dict(model=dict(type="SCFAE", modalities=["rgb", "depth"], in_channels=PYRAMID)))
    cfg.dump(tmp_path / "dumped.py")
    reloaded = Config.fromfile(tmp_path / "dumped.py").model
    assert list(reloaded.in_channels) == ["depth", "rgb"]  # mmengine sorts: the trap is real
    neck, again = MODELS.build(cfg.model), MODELS.build(reloaded)
    again.load_state_dict(neck.state_dict())
    feats = pyramid()
    for x, y in zip(neck(feats).fused, again(feats).fused):
        assert torch.equal(x, y)


def test_single_modality_reads_its_own_stream_alone():
    neck = MODELS.build(dict(type="SingleModality", modality="depth", in_channels=[2, 6], out_channels=[3, 3]))
    feats = pyramid()
    out = neck(feats)
    assert isinstance(out, FusionOutput)
    sum(x.sum() for x in out.fused).backward()
    assert feats["depth"][0].grad.any()
    assert feats["rgb"][0].grad is None
    with pytest.raises(ValueError, match="missing in a sample"):
        neck(feats, dict(depth=torch.tensor([True, False, True]), rgb=torch.ones(3, dtype=torch.bool)))


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        (dict(modalities=["rgb", "nir"]), "neck.in_channels names"),
        (dict(in_channels=dict(rgb=[4, 8], depth=[2])), "different numbers of levels"),
        (dict(in_channels=dict(rgb=[4, 8], depth=2)), "mixes"),
        (dict(out_channels=[1]), "neck.out_channels has 1"),
        (dict(align="nir"), "neck.align"),
        (dict(level_options=[{}]), "neck.level_options"),
        (dict(level_options=[dict(out_channels=4), {}]), r"sets \['out_channels'\].*set neck.out_channels"),
        (dict(level_options=[{}, dict(align="none")]), r"sets \['align'\].*set neck.align"),
        (dict(level_options=[dict(modality_dropout=0.1), {}]), "set neck.modality_dropout"),
        (dict(in_channels=dict(rgb=[], depth=[])), "lists no level"),
        (dict(in_channels=dict(rgb=4.0, depth=2.0)), "neck.in_channels.rgb must be a number"),
    ],
)
def test_wrong_configs_name_the_key(cfg, words):
    with pytest.raises(ValueError, match=words):
        build(**cfg)


def test_wrong_features_name_the_key():
    neck, feats = build(), pyramid()
    with pytest.raises(ValueError, match="gives 1 levels"):
        neck({**feats, "depth": feats["depth"][:1]})
    with pytest.raises(ValueError, match="the batch holds"):
        neck({"rgb": feats["rgb"], "nir": feats["depth"]})
    with pytest.raises(ValueError, match="neck.in_channels.depth is 2"):
        neck({**feats, "depth": feats["rgb"]})
    with pytest.raises(ValueError, match="different numbers of axes, {'rgb': 4, 'depth': 2}"):
        neck({**feats, "depth": [x.mean((2, 3)) for x in feats["depth"]]})


def test_udml_names_wrong_features_as_its_inner_neck_does():
    neck, feats = build(type="UDML", inner=dict(type="SCFAE"), reads=["variance"], novelty=None), pyramid()
    neck(feats)
    for levels in (1, 3):
        with pytest.raises(ValueError, match=f"'depth' encoder gives {levels} levels, neck.in_channels.depth lists 2"):
            neck({**feats, "depth": (*feats["depth"], feats["depth"][1])[:levels]})
    with pytest.raises(ValueError, match="have 4 channels .*neck.in_channels.depth is 2"):
        neck({**feats, "depth": feats["rgb"]})


def test_udml_takes_one_level_as_a_tensor_or_a_tuple():
    neck = build(
        type="UDML", in_channels=dict(rgb=4, depth=2), inner=dict(type="SCFAE"), reads=["variance"], novelty=None)
    whole = {m: x[0] for m, x in pyramid().items()}
    expected = neck.eval()(whole).fused
    torch.testing.assert_close(neck({"rgb": whole["rgb"], "depth": (whole["depth"],)}).fused, expected)


@pytest.mark.parametrize("inner", sorted(FUSIONS))
def test_udml_wraps_any_neck_in_one_line_of_config(inner):
    widths = dict(rgb=[8, 16], depth=[8, 16])
    neck = MODELS.build(dict(type="UDML", modalities=["rgb", "depth"], in_channels=widths,
                             inner=dict(type=inner, out_channels=[8, 8])))
    feats = {m: (torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)) for m in widths}
    levels = dict(rgb=torch.tensor([0.0, 4.0]), depth=torch.zeros(2))
    out = neck(feats, None, levels, statistics={m: torch.randn(2, NUM_STATISTICS) for m in widths})
    assert [tuple(x.shape) for x in out.fused] == [(2, 8, 8, 8), (2, 8, 4, 4)]
    assert neck.out_channels == [8, 8] and neck.pyramid and "fusion.loss_noise" in out.losses


def test_udml_without_an_inner_fusion_is_an_error():
    with pytest.raises(ValueError, match="neck.inner must be a fusion neck's config"):
        MODELS.build(dict(type="UDML", modalities=["a", "b"], in_channels=dict(a=4, b=4), inner="SCFAE"))


def test_udml_drops_modalities_for_its_inner_fusion():
    def udml(inner, **options):
        return MODELS.build(dict(type="UDML", modalities=["rgb", "depth"], in_channels=PYRAMID,
                                 inner=dict(type="SCFAE", **inner), **options))

    for neck in (udml(dict(modality_dropout=0.3)), udml({}, modality_dropout=0.3)):
        assert neck.udml.modality_dropout.p == 0.3 and neck.udml.inner.modality_dropout.p == 0
    with pytest.raises(ValueError, match="neck.inner.modality_dropout are one thing"):
        udml(dict(modality_dropout=0.3), modality_dropout=0.3)


def test_weights_of_a_pyramid_follow_features_that_are_resized():
    neck, feats = build(type="ConcatFusion", align="depth"), pyramid(sizes=((4, 6), (2, 3)))
    feats["rgb"] = tuple(torch.ones(3, C, 8, 12) for C in PYRAMID["rgb"])
    one = torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1, 1)
    cells = torch.full((3, 1, 8, 12), 0.25)
    weights = dict(rgb=(one, cells), depth=(one, one))
    fused = neck(feats, None, weights).fused
    torch.testing.assert_close(fused[0][:, :4], one.expand(3, 4, 4, 6))
    torch.testing.assert_close(fused[1][:, :8], torch.full((3, 8, 2, 3), 0.25))
    torch.testing.assert_close(fused[1][:, 8:], feats["depth"][1] * one)


def test_a_torch_that_hides_what_a_recording_must_know_is_refused(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "SAVED_TENSOR_HOOKS", None)
    with pytest.raises(RuntimeError, match=r"cuda_graphs=True needs torch 2.8 or newer, found .*; set it to False"):
        build(type="SCFAE", out_channels=[4, 8], cuda_graphs=True)


def test_options_that_a_neck_does_not_take_are_named():
    with pytest.raises(TypeError, match=r"type SCFAE has no options \['modality_drop'\]; it takes .*'recon_weight'"):
        build(modality_drop=0.3)
    with pytest.raises(TypeError, match="it takes .*'align', .*'cuda_graphs', .*'level_options'"):
        build(cuda_graph=True)
    with pytest.raises(TypeError, match="it takes .*'novelty', .*'per_position', .*'weights_from'"):
        MODELS.build(dict(type="UDML", modalities=["rgb", "depth"], in_channels=PYRAMID, per_positon=True,
                          inner=dict(type="SumFusion", out_channels=[4, 8])))
    with pytest.raises(TypeError, match=r"has no options \['widht'\]"):
        build(level_options=[dict(widht=0.5), {}])
    with pytest.raises(TypeError, match=r"no options \['out_channels'\] \(those of the fusion go into neck.inner\)"):
        MODELS.build(dict(type="UDML", modalities=["rgb", "depth"], in_channels=PYRAMID, out_channels=[4, 8],
                          inner=dict(type="SCFAE")))
