"""Keras models, read without TensorFlow and without running code of theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aid_edge import isolate, runner
from aid_edge.errors import SourceError
from aid_edge.profiles import load_profile
from aid_edge.recipe import Float32, Recipe, StaticInt8
from aid_edge.runner import ConversionRequest
from aid_edge.sources.opening import open_source
from device_agent.contract.tensors import TensorInfo
from tests.support import keras_models

# Each opens Keras in a process of its own, which takes seconds.
pytestmark = pytest.mark.slow


def _saved(path: Path, kind: str = "plain") -> Path:
    isolate.run(keras_models.save, str(path), kind)
    return path


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_keras_model_is_described(tmp_path: Path, suffix: str) -> None:
    model = open_source(str(_saved(tmp_path / f"m{suffix}")))
    assert model.framework == "keras"
    assert model.inputs == (TensorInfo("image", "FP32", (-1, 8, 8, 3)),)
    assert model.outputs == (TensorInfo("scores", "FP32", (-1, 5)),)
    assert model.operators == {"Conv2D": 1, "Dense": 1, "GlobalAveragePooling2D": 1}
    assert model.parameters == 8 * 3 * 9 + 8 + 8 * 5 + 5


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_code_in_a_keras_model_is_not_run(tmp_path: Path, suffix: str) -> None:
    path = _saved(tmp_path / f"m{suffix}", "lambda")
    with pytest.raises(SourceError, match="holds code") as caught:
        open_source(str(path))
    assert "registered layer" in caught.value.hint


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_truncated_keras_model(tmp_path: Path, suffix: str) -> None:
    path = _saved(tmp_path / f"m{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SourceError, match="is not a whole Keras model"):
        open_source(str(path))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_file_that_is_no_keras_model(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_text("this is a text file")
    with pytest.raises(SourceError, match="is not a whole Keras model") as caught:
        open_source(str(path))
    assert "not found: filepath" not in str(caught.value)


def test_weights_alone_are_no_model(tmp_path: Path) -> None:
    path = _saved(tmp_path / "m.weights.h5", "weights")
    with pytest.raises(SourceError, match="holds weights but no model"):
        open_source(str(path))


@pytest.mark.parametrize("runtime", ["onnx_runtime", "litert"])
def test_keras_converts_for_both_runtimes(tmp_path: Path, runtime: str) -> None:
    model = open_source(str(_saved(tmp_path / "m.keras")))
    profile, _ = load_profile("raspberry-pi-4")
    data = {"image": np.random.default_rng(0).random((10, 8, 8, 3), np.float32)}
    for recipe in (Recipe(Float32()), Recipe(StaticInt8(activations="int8"))):
        out = tmp_path / recipe.key
        result = runner.convert(
            ConversionRequest(model, recipe, runtime, profile, data, out, calibration=data)
        )
        assert result.inputs == (TensorInfo("image", "FP32", (1, 8, 8, 3)),)
        assert [o.name for o in result.outputs] == ["scores"]
        assert result.axes == {}
        assert result.closeness.cosine > 0.99
