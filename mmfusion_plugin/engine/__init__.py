"""Hooks, schedules, checkpoints, optimiser wrappers and the way from a command line to a Runner. Needs mmengine."""
from .checkpoint import SafeCheckpointHook
from .checkpoint_files import CheckpointError
from .gradients import GradientAnalysisHook
from .guarded_optim import GuardedAmpOptimWrapper, GuardedOptimWrapper, NonFiniteError
from .memory import ChannelsLastHook, ConstantWeightsHook
from .schedule import FusionScheduleHook

__all__ = [
    "ChannelsLastHook", "CheckpointError", "ConstantWeightsHook", "FusionScheduleHook", "GradientAnalysisHook",
    "GuardedAmpOptimWrapper", "GuardedOptimWrapper", "NonFiniteError", "SafeCheckpointHook",
]
