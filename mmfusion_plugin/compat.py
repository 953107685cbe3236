"""What released OpenMMLab wheels need on a current torch: symptom, condition, cure.

:func:`apply` is called first by ``import mmfusion_plugin``. Each cure acts only where its symptom
exists and may be applied any number of times. Optional libraries are found with ``find_spec``:
catching ``ImportError`` would hide a broken install.

Verified with torch 2.13, numpy 2.4, mmengine 0.10.7 and 0.10.4, mmcv-lite 2.1.0 and mmcv 2.1.0
compiled, mmsegmentation 1.2.2 and mmaction2 1.2.0 on Python 3.11, on 3.13 with numpy 2.5 and
PyAV 19, and on 3.10 with torch 2.6; beside mmdet 3.3.0, mmpretrain 1.2.0 and transformers 5.24.
"""
from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from packaging.version import Version

__all__ = ["CURES", "Clash", "Cure", "apply", "clashes", "installed", "installed_version"]

# Wheels, in order of preference, that bring an importable name.
WHEELS = {
    "torch": ("torch",),
    "numpy": ("numpy",),
    "mmengine": ("mmengine", "mmengine-lite"),
    "mmcv": ("mmcv", "mmcv-lite", "mmcv-full"),
    "mmseg": ("mmsegmentation",),
    "mmaction": ("mmaction2",),
    "cv2": ("opencv-python", "opencv-python-headless", "opencv-contrib-python",
            "opencv-contrib-python-headless"),
}
# Imported by a wheel that does not declare it.
UNDECLARED = {"mmseg": ("ftfy", "regex"), "mmaction": ("importlib_metadata",)}
# These releases and earlier ones assert mmcv < 2.2.0 when they are imported.
MMCV_BELOW = Version("2.2.0")
ASSERTS_MMCV = {"mmseg": Version("1.2.2"), "mmaction": Version("1.2.0")}
INSTALL = ("pip install 'mmfusion_plugin[seg]' (segmentation) or 'mmfusion_plugin[action]' (recognition), "
           "and mmcv-lite==2.1.0 unless mmcv is there")


def installed(name: str) -> bool:
    """Whether the top-level module ``name`` can be found. Imports nothing."""
    if sys.modules.get(name) is not None:
        return True
    return find_spec(name) is not None


def installed_version(name: str) -> str | None:
    """``'mmcv-lite 2.1.0'``: the wheel that brings module ``name``, or None if it is not installed."""
    if not installed(name):
        return None
    for wheel in WHEELS.get(name, (name,)):
        try:
            return f"{wheel} {version(wheel)}"
        except PackageNotFoundError:
            continue
    return f"{name} (version unknown)"


def _number(name: str) -> Version | None:
    label = (installed_version(name) or "").split()
    return Version(label[1]) if label and label[1][0].isdigit() else None


def _has_submodule(name: str) -> bool:
    """Whether ``a.b.c`` exists on disk. Unlike ``find_spec`` it does not import ``a`` and ``a.b``."""
    root, *rest = name.split(".")
    if not installed(root):
        return False
    spec = find_spec(root)
    for i, _ in enumerate(rest, start=1):
        if spec is None or spec.submodule_search_locations is None:
            return False
        full = ".".join([root, *rest[:i]])
        spec = PathFinder.find_spec(full, list(spec.submodule_search_locations))
    return spec is not None


@dataclass(frozen=True)
class Cure:
    """One known break of a released wheel.

    Args:
        name: short name, as printed by the doctor.
        symptom: what a user sees without the cure.
        cure: what :meth:`apply` does about it.
        condition: whether the symptom exists in this environment.
        action: applies the cure; idempotent.
    """

    name: str
    symptom: str
    cure: str
    condition: Callable[[], bool]
    action: Callable[[], None]

    def needed(self) -> bool:
        """Whether the symptom exists in this environment, cured or not."""
        return self.condition()

    def apply(self) -> None:
        """Cure it. Harmless when it is already cured."""
        self.action()


@dataclass(frozen=True)
class Clash:
    """Installed libraries that cannot work together, which no code of ours can cure.

    Args:
        symptom: what is wrong.
        cure: what the user has to do.
        blocks: whether the import of the plugin has to stop.
    """

    symptom: str
    cure: str
    blocks: bool = True


# --- mmcv._ext -----------------------------------------------------------------------------------


def _refuse(what: str) -> NoReturn:
    raise RuntimeError(
        f"{what} is a compiled operator, and the installed mmcv (mmcv-lite) has none; install full mmcv "
        "('mmcv>=2.0.0rc4,<2.2.0', compiled for your torch) instead of mmcv-lite")


class _ExtStandIn(ModuleType):
    """Stands in for ``mmcv._ext``: every operator exists, and calling one says what to install."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)

        def operator(*args: Any, **kwargs: Any) -> NoReturn:
            _refuse(f"mmcv.ops: {name}")

        operator.__name__ = operator.__qualname__ = name
        return operator


def _stand_in(name: str, cls: type[ModuleType] = ModuleType) -> ModuleType:
    module = cls(name, "Stand-in of mmfusion_plugin.compat, because the installed wheel lacks it.")
    # A spec without a loader: pkgutil.find_loader gives None, so mmengine's mmcv_full_available()
    # still tells the truth.
    module.__spec__ = ModuleSpec(name, None)
    return module


def _mmcv_has_no_ext() -> bool:
    return installed("mmcv") and not _has_submodule("mmcv._ext")


def _add_ext() -> None:
    if "mmcv._ext" not in sys.modules:
        sys.modules["mmcv._ext"] = _stand_in("mmcv._ext", _ExtStandIn)


# --- mmaction.models.localizers.drn --------------------------------------------------------------

_DRN = "mmaction.models.localizers.drn"


class _MissingDRN:
    """Stands in for ``mmaction.models.localizers.DRN``, which the mmaction2 wheel leaves out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            "the localizer DRN is not part of the installed mmaction2 wheel (folder "
            "models/localizers/drn); install mmaction2 from its source repository to use it")


def _drn_is_missing() -> bool:
    return installed("mmaction") and _has_submodule("mmaction.models.localizers") and not _has_submodule(_DRN)


def _add_drn() -> None:
    if _DRN in sys.modules:
        return
    package, module = _stand_in(_DRN), _stand_in(f"{_DRN}.drn")
    package.__path__ = []
    module.DRN = _MissingDRN
    package.drn = module
    sys.modules[package.__name__] = package
    sys.modules[module.__name__] = module


# --- transformers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Multimodal:
    """What a library imports wherever transformers >= 4.28 and ``beside`` are installed: it knows no upper end."""

    library: str
    folder: str
    called: str
    beside: tuple[str, ...] = ()

    def misses(self) -> list[str]:
        """What their modules import and the installed transformers no longer has. Imports nothing."""
        number = _number("transformers")
        if number is None or number < Version("4.28") or not all(map(installed, (self.library, *self.beside))):
            return []
        own, theirs = (Path(find_spec(name).submodule_search_locations[0]) for name in (self.library, "transformers"))
        wanted: dict[str, set[str]] = {}
        for source in sorted((own / self.folder).rglob("*.py")):
            for node in _run_at_import(ast.parse(source.read_bytes())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers."):
                    wanted.setdefault(node.module, set()).update(alias.name for alias in node.names)
        missing = []
        for module, names in wanted.items():
            place = theirs.joinpath(*module.split(".")[1:])
            if place.is_dir():  # a package, whose names come from its modules
                continue
            file = place.with_suffix(".py")
            words = set(re.findall(r"\w+", file.read_text("utf8"))) if file.is_file() else set()
            missing += [f"{module}.{name}" for name in sorted(names - words)]
        return missing

    def leave_out(self) -> None:
        """Let the library do as without transformers; whoever builds such a model is told what to install."""
        dependency = import_module(f"{self.library}.utils.dependency")
        why = (f"{self.called} of {installed_version(self.library)} import {', '.join(self.misses())}, which "
               f"{installed_version('transformers')} does not have; install 'transformers>=4.28,<4.56' to use them")

        class Missing:
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                raise RuntimeError(why)

        def register(names: Sequence[str], registry: Any) -> None:
            for name in names:
                registry.register_module(name=name, module=Missing, force=True)

        dependency.WITH_MULTIMODAL = False
        dependency.register_multimodal_placeholder = register


def _run_at_import(module: ast.Module) -> list[ast.stmt]:
    """Statements outside functions and classes; some of these imports stand in a ``try`` whose failure fails later."""
    return [*module.body, *(inner for node in module.body if isinstance(node, ast.Try) for inner in node.body)]


_MMACTION = _Multimodal("mmaction", "models/multimodal/vindlu", "the VindLU models")
_MMPRETRAIN = _Multimodal(
    "mmpretrain", "models/multimodal", "the multimodal models (BLIP, CLIP, ...)", ("pycocotools",))


# --- torch.load ----------------------------------------------------------------------------------


def _torch_load_is_strict() -> bool:
    if not (installed("mmengine") and installed("torch")):
        return False
    import torch

    return Version(torch.__version__) >= Version("2.6")


def _stored_getattr(owner: Any, name: str) -> Any:
    """``getattr`` for checkpoints: only the methods that mmengine itself stores.

    The builtin would let a checkpoint reach any attribute of any allowed object.
    """
    if (owner, name) not in _stored_methods():
        from pickle import UnpicklingError

        raise UnpicklingError(
            f"the checkpoint asks for attribute {name!r} of {owner!r}, which mmengine never stores; "
            "do not load it unless you know who wrote it")
    return getattr(owner, name)


def _stored_methods() -> set[tuple[Any, str]]:
    from mmengine.logging.history_buffer import HistoryBuffer
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

    return {(HistoryBuffer, method) for method in ("min", "max", "current", "mean")} | {
        (OneCycleParamScheduler, method) for method in ("_annealing_cos", "_annealing_linear")}


def _stored_types() -> list[Any]:
    """Exactly what a checkpoint of mmengine's Runner holds beside tensors and plain containers.

    The message hub stores ``HistoryBuffer`` objects (numpy arrays, and its statistics as
    ``getattr(HistoryBuffer, 'mean')``) and best scores as numpy scalars; the one-cycle schedule
    stores its annealing function.
    """
    import numpy as np
    from mmengine.logging.history_buffer import HistoryBuffer
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

    numbers = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
               "float16", "float32", "float64")
    reconstruct, scalar = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    # numpy 1 wrote its own module as numpy.core, numpy 2 writes numpy._core: files of either load.
    names = [(function, f"numpy.{core}.multiarray.{function.__name__}")
             for function in (reconstruct, scalar) for core in ("core", "_core")]
    dtypes = {type(np.dtype(number)) for number in numbers}
    return [HistoryBuffer, OneCycleParamScheduler, (_stored_getattr, "builtins.getattr"),
            np.ndarray, np.dtype, *names, *sorted(dtypes, key=lambda dtype: dtype.__name__)]


def _allow_stored_types() -> None:
    from torch.serialization import add_safe_globals

    add_safe_globals(_stored_types())


# --- load_url ------------------------------------------------------------------------------------


def _urls_run_pickles() -> bool:
    if not (installed("mmengine") and installed("torch")):
        return False
    import inspect

    from torch.hub import load_state_dict_from_url

    return inspect.signature(load_state_dict_from_url).parameters["weights_only"].default is False


def _load_urls_as_weights() -> None:
    """torch.load became strict with 2.6, the function that mmengine downloads with did not."""
    from functools import partial

    from mmengine.runner import checkpoint

    if not isinstance(checkpoint.load_url, partial):
        checkpoint.load_url = partial(checkpoint.load_url, weights_only=True)


# --- all of them ---------------------------------------------------------------------------------

CURES: tuple[Cure, ...] = (
    Cure(
        "mmcv-ext",
        "mmcv-lite has no compiled operators: importing mmseg.models or mmaction.models fails with "
        "ModuleNotFoundError: No module named 'mmcv._ext'",
        "a stand-in module; an operator says what to install when it is called",
        _mmcv_has_no_ext, _add_ext),
    Cure(
        "mmaction-drn",
        "the mmaction2 wheel lacks a folder: importing mmaction.models fails with ModuleNotFoundError: "
        f"No module named '{_DRN}'",
        "a stand-in module; building the localizer DRN says what to install",
        _drn_is_missing, _add_drn),
    Cure(
        "mmaction-transformers",
        "mmaction2 imports its VindLU models wherever transformers is installed, and transformers 4.56 dropped what "
        "they need: importing mmaction.models fails with ImportError: cannot import name 'apply_chunking_to_forward' "
        "from 'transformers.modeling_utils'",
        "those models are left out; building one says what to install",
        lambda: bool(_MMACTION.misses()), _MMACTION.leave_out),
    Cure(
        "mmpretrain-transformers",
        "mmpretrain, which mmaction2 imports where it is installed, needs the same for its multimodal models: "
        "importing either's models fails with TypeError: NoneType takes no arguments",
        "those models are left out; building one says what to install",
        lambda: bool(_MMPRETRAIN.misses()), _MMPRETRAIN.leave_out),
    Cure(
        "torch-load",
        "torch >= 2.6 loads weights only: --resume and tools/test.py fail with UnpicklingError: "
        "Unsupported global (HistoryBuffer, numpy)",
        "allow-lists the types that mmengine stores; weights_only stays True",
        _torch_load_is_strict, _allow_stored_types),
    Cure(
        "url-load",
        "torch.hub loads downloads with weights_only=False: load_from or init_cfg.checkpoint='https://...' and "
        "'torchvision://...' run any code that the file holds",
        "mmengine's downloads are loaded with weights_only=True",
        _urls_run_pickles, _load_urls_as_weights),
)


def clashes() -> list[Clash]:
    """What is installed and cannot work together, as far as metadata shows. Imports nothing."""
    found = []
    users = [name for name in ("mmseg", "mmaction") if installed(name)]
    labels = " and ".join(installed_version(name) or name for name in users)
    if users and not installed("mmengine"):
        found.append(Clash(f"{labels} needs mmengine, which is not installed",
                           "pip install 'mmengine>=0.10.4,<1'"))
    if users and not installed("mmcv"):
        found.append(Clash(f"{labels} needs mmcv, which is not installed",
                           "pip install mmcv-lite==2.1.0 (a wheel; or compile mmcv>=2.0.0rc4,<2.2.0)"))
    mmcv = _number("mmcv")
    for name in users:
        own = _number(name)
        if mmcv and own and mmcv >= MMCV_BELOW and own <= ASSERTS_MMCV[name]:
            label = installed_version("mmcv") or ""
            found.append(Clash(f"{installed_version(name)} refuses {label}: it wants mmcv >=2.0.0rc4,<2.2.0",
                               f"pip uninstall -y {label.split()[0]} && pip install mmcv-lite==2.1.0"))
    for name, modules in UNDECLARED.items():
        missing = [module for module in modules if installed(name) and not installed(module)]
        if missing:
            found.append(Clash(f"{installed_version(name)} imports {', '.join(missing)} without declaring it",
                               f"pip install {' '.join(missing)}"))
    if installed("mmengine") and not installed("pkg_resources"):
        found.append(Clash(
            "mmengine imports pkg_resources, which setuptools no longer brings: _base_ = 'mmseg::...' fails",
            "pip install 'setuptools<81'", blocks=False))
    if installed("mmengine") and sys.version_info >= (3, 14):
        found.append(Clash("mmengine uses pkgutil.find_loader, which Python 3.14 has removed: training fails",
                           "use Python 3.10 to 3.13", blocks=False))
    return found


def apply() -> list[Cure]:
    """Apply every cure that this environment needs, and return those.

    Idempotent. Warns (UserWarning) when neither mmsegmentation nor mmaction2 is installed.

    Raises: ImportError naming what clashes and what to install.
    """
    blocking = [clash for clash in clashes() if clash.blocks]
    if blocking:
        raise ImportError("mmfusion_plugin: " + "; ".join(
            f"{clash.symptom}. Cure: {clash.cure}" for clash in blocking))
    if not installed("mmseg") and not installed("mmaction"):
        warnings.warn(
            "mmfusion_plugin: neither mmsegmentation nor mmaction2 is installed; only the torch parts work "
            f"(mmfusion_plugin.fusion). To train, {INSTALL}", UserWarning, stacklevel=2)
    needed = [cure for cure in CURES if cure.needed()]
    for cure in needed:
        cure.apply()
    return needed
