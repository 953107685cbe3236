from __future__ import annotations

from types import SimpleNamespace

import torch

from mmfusion_plugin.models import samples
from mmfusion_plugin.models.samples import NonFiniteReports


def test_a_sensor_that_is_always_broken_does_not_fill_the_log(monkeypatch):
    said = []
    monkeypatch.setattr(samples, "print_log", lambda text, **_: said.append(text))
    reports = NonFiniteReports("they are left out")
    for i in range(300):
        for _ in range(2):  # each file once
            known = reports.note("depth", torch.tensor([True, False]), SimpleNamespace(
                metainfo=dict(modality_paths=dict(depth=f"{i}.png"))))
            assert not known
    assert len(said) == samples.FIRST + 3 and "299.png holds 1 non-finite" in said[-1] and "(number 300 of" in said[-1]
