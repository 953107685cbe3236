"""Hooks, schedules and checkpoints that both tasks share. Needs mmengine; registers in its root registries."""
