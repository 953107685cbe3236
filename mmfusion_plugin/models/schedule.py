"""Parts that wait for a share of training: who has not been told how far it is."""
from __future__ import annotations

from torch import nn

from mmfusion_plugin.fusion.parts import parts_of

__all__ = ["check_progress"]

HOOK = "custom_hooks = [dict(type='FusionScheduleHook')]"


def check_progress(*parts: nn.Module | None) -> None:
    """Raises ValueError if a part waits for a stage of training that nothing will ever announce.

    Call it in each training step. A part says through ``awaits_progress`` what it waits for, until its
    ``set_progress`` is called in this process.
    """
    waiting = [what for part in parts_of(*parts)
               if hasattr(type(part), "awaits_progress") and (what := part.awaits_progress)]
    if waiting:
        raise ValueError(
            f"{'; '.join(waiting)}, but nothing tells the model how far training is; add to the config: {HOOK} "
            "(without mmengine's Runner call set_progress(share) on them before each step)"
        )
