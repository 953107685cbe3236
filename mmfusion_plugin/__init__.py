"""Multimodal fusion for mmsegmentation and mmaction2.

In a config: ``custom_imports = dict(imports=['mmfusion_plugin'], allow_failed_imports=False)``. The
import cures what the released wheels lack (:mod:`mmfusion_plugin.compat`) and registers the parts
whose library is installed.
"""
from __future__ import annotations

import sys

from . import compat

__all__ = ["__version__", "compat"]
__version__ = "0.1.0"

# `python -m mmfusion_plugin.doctor` runs this file first, and the doctor is needed most where it fails.
if not ("-m" in sys.orig_argv and {f"{__name__}.doctor", f"{__name__}.starter"} & {*sys.orig_argv}):
    compat.apply()
    if compat.installed("mmengine"):
        from . import engine, models  # noqa: F401
    if compat.installed("mmseg"):
        from . import segmentation  # noqa: F401
    if compat.installed("mmaction"):
        from . import recognition  # noqa: F401
