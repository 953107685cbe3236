"""Hooks, schedules, checkpoints and the way from a command line to a Runner. Needs mmengine."""
from .schedule import FusionScheduleHook

__all__ = ["FusionScheduleHook"]
