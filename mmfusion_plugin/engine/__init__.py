"""Hooks, schedules, checkpoints and the way from a command line to a Runner. Needs mmengine."""
from .gradients import GradientAnalysisHook
from .schedule import FusionScheduleHook

__all__ = ["FusionScheduleHook", "GradientAnalysisHook"]
