"""Hooks, schedules, checkpoints and the way from a command line to a Runner. Needs mmengine."""
from .checkpoint import SafeCheckpointHook
from .checkpoint_files import CheckpointError
from .schedule import FusionScheduleHook

__all__ = ["CheckpointError", "FusionScheduleHook", "SafeCheckpointHook"]
