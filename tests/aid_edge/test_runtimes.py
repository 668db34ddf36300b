"""Quantizing at the edge of int8 models, and what opening a broken artifact says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aid_edge.errors import ConversionError, UnknownRuntimeError
from aid_edge.runtimes import Placement, open_artifact
from aid_edge.runtimes.litert import dequantized, quantized

DETAIL = {"quantization": (0.5, -3), "dtype": np.int8}


def test_values_are_rounded_shifted_and_clipped() -> None:
    found = quantized(np.array([0.0, 1.0, -1.3, 1000.0, -1000.0], np.float32), DETAIL)
    assert found.dtype == np.int8
    assert found.tolist() == [-3, -1, -6, 127, -128]


def test_there_and_back_is_within_half_a_step() -> None:
    values = np.linspace(-60, 60, 101, dtype=np.float32)
    back = dequantized(quantized(values, DETAIL), DETAIL)
    assert back.dtype == np.float32
    assert np.abs(back - values).max() <= 0.25


def test_what_is_not_quantized_passes_unchanged() -> None:
    plain = {"quantization": (0.0, 0), "dtype": np.int32}
    values = np.array([1, 2, 3], np.int32)
    assert quantized(values, plain).tolist() == [1, 2, 3]
    assert dequantized(values, plain) is values


def test_the_share_of_integer_operators() -> None:
    assert Placement(3, 1, {}).integer_share == 0.75
    assert Placement(0, 0, {}).integer_share == 0.0


@pytest.mark.parametrize("runtime", ["onnx_runtime", "litert"])
def test_a_broken_artifact_is_refused(runtime: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"not a model at all, but long enough to look at")
    with pytest.raises(ConversionError, match="refuses it"):
        open_artifact(path, runtime)


def test_an_unknown_runtime(tmp_path: Path) -> None:
    with pytest.raises(UnknownRuntimeError, match="tpu"):
        open_artifact(tmp_path / "m", "tpu")
