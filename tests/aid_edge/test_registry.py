"""Converters by entry point."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from typing import Any

import pytest

from aid_edge import registry
from aid_edge.errors import ConversionError, MissingDependencyError, UnknownRuntimeError


def _install(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    found = [metadata.EntryPoint(n, v, registry.GROUP) for n, v in points.items()]

    def entry_points(*, group: str, name: str | None = None) -> list[metadata.EntryPoint]:
        assert group == registry.GROUP
        return [p for p in found if name in {None, p.name}]

    monkeypatch.setattr(registry.metadata, "entry_points", entry_points)


def test_the_built_in_converters_are_found() -> None:
    assert {"onnx_runtime", "litert"} <= set(registry.available())


@pytest.mark.parametrize("runtime", ["onnx_runtime", "litert"])
def test_loading_a_converter_imports_no_toolchain(runtime: str) -> None:
    heavy = {"torch", "onnx", "onnxruntime", "litert_torch", "nncf", "keras"}
    code = (
        f"import sys; from aid_edge import registry; print(registry.load({runtime!r}).runtime,"
        f" *({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [runtime]


def test_an_unknown_runtime_lists_the_known() -> None:
    with pytest.raises(UnknownRuntimeError, match="no converter for runtime 'tpu'") as caught:
        registry.load("tpu")
    assert "litert" in caught.value.hint
    assert caught.value.exit_code == 2


def test_a_converter_without_its_toolchain_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, exotic="no_such_module:Converter")
    with pytest.raises(MissingDependencyError, match="no_such_module"):
        registry.load("exotic")


class Half:
    runtime = "half"


class Other:
    runtime = "other"
    accepts: Any = frozenset()
    methods: Any = frozenset()

    def check(self) -> None: ...

    def convert(self) -> None: ...


def test_what_is_no_converter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plugin_of_a_test", sys.modules[__name__])
    _install(monkeypatch, half="plugin_of_a_test:Half", wrong="plugin_of_a_test:Other")
    with pytest.raises(ConversionError) as caught:
        registry.load("half")
    assert "lacks accepts, methods, check, convert" in caught.value.cause
    with pytest.raises(ConversionError) as caught:
        registry.load("wrong")
    assert "its runtime is other" in caught.value.cause
