"""The share of training done reaches the parts that wait for it."""
from __future__ import annotations

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

import mmfusion_plugin.engine  # noqa: F401
from mmfusion_plugin.fusion import FUSIONS
from mmfusion_plugin.fusion.udml import UDML
from mmfusion_plugin.models.schedule import check_progress

EPOCH = 5  # batches


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        inner = FUSIONS["SumFusion"](["a", "b"], dict(a=2, b=2))
        self.fusion = UDML(["a", "b"], dict(a=2, b=2), inner, reads=["variance"], novelty=None)
        self.seen = []

    def forward(self, a, b, mode="loss"):
        check_progress(self.fusion)
        self.seen.append((round(float(self.fusion.progress), 4), self.fusion.dynamic))
        out = self.fusion(dict(a=a, b=b))
        return dict(loss=out.fused.square().mean() + out.losses["fusion.loss_noise"])


def runner(folder, loop, hooks=(dict(type="FusionScheduleHook"),), **options):
    torch.manual_seed(0)
    data = torch.utils.data.DataLoader([dict(a=torch.randn(2), b=torch.randn(2)) for _ in range(2 * EPOCH)], 2)
    return Runner(
        Model(), str(folder), train_dataloader=data, train_cfg=loop, optim_wrapper=dict(
            optimizer=dict(type="SGD", lr=0.1)), custom_hooks=list(hooks), log_level="ERROR",
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", by_epoch="max_epochs" in loop, interval=1)),
        experiment_name=f"{folder.name}-{len(options)}-{torch.rand(()).item()}", **options)


ITERATIONS, EPOCHS = dict(type="IterBasedTrainLoop", max_iters=10), dict(type="EpochBasedTrainLoop", max_epochs=2)


@pytest.mark.parametrize("loop", [ITERATIONS, EPOCHS], ids=["iterations", "epochs"])
def test_the_share_of_steps_done_is_told_before_each(tmp_path, loop):
    run = runner(tmp_path, loop)
    run.train()
    assert run.model.seen == [(i / 10, i >= 6) for i in range(10)]


def test_averaged_weights_are_in_the_stage_that_training_is_in(tmp_path):
    """An average of the buffers would stay below 0.6 and be tested with weights of 1."""
    run = runner(tmp_path, ITERATIONS, [dict(type="FusionScheduleHook"),
                                        dict(type="EMAHook", momentum=0.02, update_buffers=True)])
    run.train()
    average, = (hook.ema_model.module.fusion for hook in run.hooks if hasattr(hook, "ema_model"))
    assert average.progress.item() == pytest.approx(run.model.fusion.progress.item()) and average.dynamic


def test_whole_epochs(tmp_path):
    run = runner(tmp_path, EPOCHS, [dict(type="FusionScheduleHook", by_epoch=True)])
    run.train()
    assert run.model.seen == [(0.0, False)] * EPOCH + [(0.5, False)] * EPOCH
    with pytest.raises(ValueError, match="by_epoch=True needs"):
        runner(tmp_path / "no", ITERATIONS, [dict(type="FusionScheduleHook", by_epoch=True)]).train()


class Stop(Hook):
    def __init__(self, at):
        self.at = at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [3, 8])
def test_a_resumed_run_goes_on_in_its_stage(tmp_path, at):
    stopped = runner(tmp_path, ITERATIONS)
    stopped.register_hook(Stop(at), priority="LOWEST")
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    run = runner(tmp_path, ITERATIONS, resume=True)
    run.train()
    assert run.model.seen == [(i / 10, i >= 6) for i in range(at, 10)]


def test_without_the_hook_training_stops_with_the_line_to_add(tmp_path):
    with pytest.raises(ValueError, match=r"neck.weights_from=0.6 .*custom_hooks = \[dict\(type='FusionScheduleHook'"):
        runner(tmp_path, ITERATIONS, hooks=()).train()
    model = Model()
    model.fusion.weights_from = 0.0
    check_progress(model)
    model = Model()
    model.fusion.set_progress(0.3)
    check_progress(model, None, nn.Identity())
    again = Model()
    again.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="weights_from"):  # a loaded value is no announcement
        check_progress(again)


def test_an_estimator_that_nobody_teaches_is_told_of(tmp_path, monkeypatch):
    from mmfusion_plugin.engine import schedule
    from mmfusion_plugin.models.injection import BatchNoise

    said = []
    monkeypatch.setattr(schedule, "print_log", lambda text, *_: said.append(text))
    runner(tmp_path, ITERATIONS).train()
    assert len(said) == 1 and "neck.quality='estimated' learns from noise" in said[0]
    taught = runner(tmp_path / "taught", ITERATIONS)
    taught.model.noise = BatchNoise(["a", "b"], dict(noise=dict(a=dict(
        kind="vector", levels=(1, 11), scale=dict(gaussian=1.0)))), None)
    static = runner(tmp_path / "static", ITERATIONS)
    static.model.fusion.quality = None
    for run in (taught, static):
        schedule.FusionScheduleHook().before_train(run)
    assert len(said) == 1
