from __future__ import annotations

from torch import nn

from mmfusion_plugin.fusion import SCFAE
from mmfusion_plugin.fusion.parts import parts_of


def test_parts_are_those_that_torch_names_in_its_order_each_once():
    shared = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.ModuleDict(dict(a=shared, b=nn.Sequential(shared, nn.Linear(2, 2)), c=SCFAE(["a", "b"], dict(a=4, b=6))))
    model.empty = None
    model.register_module("nothing", None)
    assert parts_of(model) == list(model.modules())
    assert parts_of(None, model["b"], model, None) == [*model["b"].modules(), *(
        part for part in model.modules() if part not in set(model["b"].modules()))]
    assert parts_of() == []
