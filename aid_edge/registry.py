"""Converters, found by entry point: built-in and foreign alike."""

from __future__ import annotations

from importlib import metadata

from aid_edge.converter import Converter
from aid_edge.errors import ConversionError, MissingDependencyError, UnknownRuntimeError

GROUP = "aid_edge.converters"


def available() -> list[str]:
    """Return the names of all installed converters, sorted; imports none of them."""
    return sorted({point.name for point in metadata.entry_points(group=GROUP)})


def load(runtime: str) -> Converter:
    """Return the converter for ``runtime``; imports exactly one module.

    Raises:
        UnknownRuntimeError: None is installed; lists those that are.
        MissingDependencyError: It is, but not what it needs.
        ConversionError: It is not a converter for this runtime.
    """
    point = next(iter(metadata.entry_points(group=GROUP, name=runtime)), None)
    if point is None:
        raise UnknownRuntimeError(runtime, available())
    try:
        converter = point.load()()
    except ModuleNotFoundError as e:
        raise MissingDependencyError(f"the converter {runtime}", e.name or "?", "convert") from e
    lacking = [
        name for name in ("runtime", "accepts", "methods", "check", "convert")
        if not hasattr(converter, name)
    ]  # fmt: skip
    if lacking or converter.runtime != runtime:
        raise ConversionError(
            f"{point.value} is not a converter for {runtime}",
            cause=f"it lacks {', '.join(lacking)}"
            if lacking
            else f"its runtime is {converter.runtime}",
            hint="docs/writing-a-converter.md says what one is.",
        )
    found: Converter = converter
    return found
