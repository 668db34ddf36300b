"""The door to the runtimes: one module each, imported only when an artifact of it is opened."""

from __future__ import annotations

import importlib
import importlib.util
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import cast

from aid_edge.errors import MissingDependencyError, UnknownRuntimeError
from aid_edge.runtimes.session import Inspection, Placement, Session

RUNTIMES = ("onnx_runtime", "litert", "openvino", "executorch", "coreml", "tflite_micro")
"""Runtimes that this program can open: module ``aid_edge.runtimes.<name>`` with

``DISTRIBUTION`` (the module and the distribution that carry the runtime), ``open_session`` and
``place``; where artifacts cannot be run on this kind of host, also ``inspect``; where another
interpreter than the distribution's may run them, also ``version``. None of them imports its runtime
before an artifact is opened.
"""

_OWN_EXTRA = frozenset({"openvino", "executorch", "coreml"})


def version(runtime: str) -> str:
    """Return the installed version of ``runtime``.

    Raises:
        UnknownRuntimeError: This program cannot open artifacts of it.
        MissingDependencyError: It is not installed.
    """
    module, distribution = _module(runtime).DISTRIBUTION
    if importlib.util.find_spec(module) is None:
        extra = runtime if runtime in _OWN_EXTRA else "convert"
        raise MissingDependencyError(f"opening {runtime} artifacts", distribution, extra)
    own = getattr(_module(runtime), "version", None)
    return cast("str", own()) if own is not None else metadata.version(distribution)


def open_artifact(path: Path, runtime: str, *, threads: int = 1, exact: bool = False) -> Session:
    """Return the artifact at ``path``, loaded in ``runtime``.

    Args:
        path: The artifact.
        runtime: Its runtime.
        threads: Threads for one inference.
        exact: Integer arithmetic as every processor but an x86 without VNNI does it, slower there:
            so that this machine answers what the device will.

    Raises:
        ConversionError: The runtime refuses it.
        UnknownRuntimeError: This program cannot open artifacts of ``runtime``.
        MissingDependencyError: It is not installed.
    """
    version(runtime)
    return cast("Session", _module(runtime).open_session(path, threads, exact))


def placement(path: Path, runtime: str, scratch: Path) -> Placement:
    """Return where the operators of an artifact run.

    Args:
        path: The artifact.
        runtime: Its runtime.
        scratch: A folder for temporary files.

    Raises:
        ConversionError: The runtime refuses it.
    """
    version(runtime)
    return cast("Placement", _module(runtime).place(path, scratch))


def inspect(path: Path, runtime: str, scratch: Path) -> Inspection:
    """Return what can be known of an artifact that cannot be run here.

    Args:
        path: The artifact.
        runtime: Its runtime.
        scratch: A folder for temporary files.

    Raises:
        ConversionError: It is damaged, or of another kind.
    """
    version(runtime)
    return cast("Inspection", _module(runtime).inspect(path, scratch))


def _module(runtime: str) -> ModuleType:
    if runtime not in RUNTIMES:
        raise UnknownRuntimeError(runtime, sorted(RUNTIMES))
    return importlib.import_module(f"aid_edge.runtimes.{runtime}")
