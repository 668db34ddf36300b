"""Keras models on TensorFlow: chosen where asked for or where torch is missing, and converted."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from aid_edge import isolate, runner
from aid_edge.errors import MissingDependencyError
from aid_edge.profiles import load_profile
from aid_edge.recipe import Float32, Recipe, StaticInt8
from aid_edge.runner import ConversionRequest
from aid_edge.sources import opening
from aid_edge.sources.opening import keras_backend, open_source, require
from device_agent.contract.tensors import TensorInfo
from tests.support import keras_models

needs_tensorflow = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("tensorflow", "tf2onnx")),
    reason="the extra tensorflow is not installed",
)


def _installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda n: n if n in names else None)


@pytest.mark.parametrize(
    ("asked", "installed", "expected"),
    [
        ("", ("torch", "tensorflow"), "torch"),
        ("torch", ("torch", "tensorflow"), "torch"),
        ("tensorflow", ("torch", "tensorflow"), "tensorflow"),
        ("", ("tensorflow",), "tensorflow"),
        ("torch", ("tensorflow",), "tensorflow"),
        ("", ("torch",), "torch"),
    ],
)
def test_the_backend(
    monkeypatch: pytest.MonkeyPatch, asked: str, installed: tuple[str, ...], expected: str
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", asked)
    _installed(monkeypatch, *installed)
    assert keras_backend() == expected


@pytest.mark.parametrize(
    ("asked", "installed", "lacking", "extra"),
    [
        ("", ("keras", "h5py", "numpy"), "torch or tensorflow", "convert"),
        ("tensorflow", ("keras", "h5py", "numpy", "torch"), "tensorflow", "tensorflow"),
        ("", ("tensorflow", "h5py", "numpy"), "keras", "tensorflow"),
        ("", ("torch", "h5py", "numpy"), "keras", "convert"),
    ],
)
def test_a_missing_backend_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    installed: tuple[str, ...],
    lacking: str,
    extra: str,
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", asked)
    _installed(monkeypatch, *installed)
    with pytest.raises(MissingDependencyError, match=f"needs {lacking}, which") as caught:
        require("keras")
    assert f"aid-edge[{extra}]" in caught.value.hint


@pytest.mark.slow
@pytest.mark.tensorflow
@needs_tensorflow
@pytest.mark.parametrize("runtime", ["onnx_runtime", "litert"])
@pytest.mark.parametrize("kind", ["plain", "several"])
def test_keras_converts_on_tensorflow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runtime: str, kind: str
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    path = tmp_path / "m.keras"
    isolate.run(keras_models.save, str(path), kind)
    model = open_source(str(path))
    profile, _ = load_profile("raspberry-pi-4")
    draw = np.random.default_rng(0)
    data = {t.name: draw.random((10, *t.shape[1:]), np.float32) for t in model.inputs}
    for recipe in (Recipe(Float32()), Recipe(StaticInt8(activations="int8"))):
        out = tmp_path / recipe.key
        result = runner.convert(
            ConversionRequest(model, recipe, runtime, profile, data, out, calibration=data)
        )
        # Their order counts: each input and output has a shape of its own.
        assert result.inputs == tuple(
            TensorInfo(t.name, t.datatype, (1, *t.shape[1:])) for t in model.inputs
        )
        assert [o.name for o in result.outputs] == [o.name for o in model.outputs]
        assert "tensorflow" in result.tools
        assert "torch" not in result.tools
        assert result.axes == {}
        assert result.closeness.cosine > 0.99


@pytest.mark.slow
@pytest.mark.tensorflow
@needs_tensorflow
def test_the_batch_stays_open_where_the_profile_permits_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    path = tmp_path / "m.h5"
    isolate.run(keras_models.save, str(path), "several")
    model = open_source(str(path))
    found, _ = load_profile("generic-x86_64")
    profile = replace(found, shapes=replace(found.shapes, static=False, max_batch=4))
    draw = np.random.default_rng(0)
    data = {t.name: draw.random((4, *t.shape[1:]), np.float32) for t in model.inputs}
    result = runner.convert(
        ConversionRequest(model, Recipe(Float32()), "onnx_runtime", profile, data, tmp_path / "out")
    )
    assert result.inputs == model.inputs
    assert result.outputs == model.outputs
    assert result.closeness.cosine > 0.999999
    assert str(tmp_path).encode() not in result.artifact.read_bytes()
