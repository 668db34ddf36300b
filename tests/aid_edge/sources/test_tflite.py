"""TFLite files: facts by the schema, numbers by LiteRT, refusals by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from aid_edge.errors import SourceError
from aid_edge.sources import tflite_source
from aid_edge.sources.inputs import parse_input
from aid_edge.sources.inspection import SourceRequest
from device_agent.contract.tensors import TensorInfo

SCALE, ZERO = 0.5, 3


def relu_file(
    path: Path, *, integer: bool = False, change: Callable[[Any], None] | None = None
) -> Path:
    """A file with one RELU over [1, 4], written by the schema; int8 at scale 0.5 if asked."""
    model = schema.ModelT()
    model.version = 3
    model.buffers = [schema.BufferT()]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RELU
    code.version = 1
    model.operatorCodes = [code]
    graph = schema.SubGraphT()
    graph.tensors = [_tensor(name, integer=integer) for name in ("x", "y")]
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = [0], [1]
    graph.operators, graph.inputs, graph.outputs = [operator], [0], [1]
    model.subgraphs = [graph]
    if change is not None:
        change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _tensor(name: str, *, integer: bool) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer = name.encode(), [1, 4], 0
    tensor.type = schema.TensorType.INT8 if integer else schema.TensorType.FLOAT32
    if integer:
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = [SCALE], [ZERO]
    return tensor


def request(path: Path, *inputs: str) -> SourceRequest:
    return SourceRequest(str(path), None, tuple(map(parse_input, inputs)))


def test_a_float_file(tmp_path: Path) -> None:
    wanted = request(relu_file(tmp_path / "m.tflite"))
    found = tflite_source.inspect(wanted)
    assert found.inputs == (TensorInfo("x", "FP32", (1, 4)),)
    assert found.outputs == (TensorInfo("y", "FP32", (1, 4)),)
    assert [(use.type, use.count, use.max_rank) for use in found.uses] == [("RELU", 1, 2)]
    assert not found.quantized
    x = np.asarray([[-1, 0, 1, 2], [3, -3, 0, 5]], np.float32)
    parts = list(tflite_source.run(wanted, {"x": x}, [slice(0, 1), slice(1, 2)]))
    np.testing.assert_array_equal(np.concatenate([p[0] for p in parts]), np.maximum(x, 0))


def test_integers_at_the_edge_are_floats_to_users(tmp_path: Path) -> None:
    wanted = request(relu_file(tmp_path / "m.tflite", integer=True))
    found = tflite_source.inspect(wanted)
    assert found.inputs == (TensorInfo("x", "FP32", (1, 4)),)
    assert found.quantized
    assert "quantized already (inputs and outputs too)" in found.notes[0]
    x = np.asarray([[-1.0, 0.0, 1.5, 40.0]], np.float32)
    (part,) = tflite_source.run(wanted, {"x": x}, [slice(0, 1)])
    np.testing.assert_allclose(part[0], np.clip(np.maximum(x, 0), 0, (127 - ZERO) * SCALE))


def test_custom_and_flex_operators_are_named(tmp_path: Path) -> None:
    for name, what in (("FlexErf", "TensorFlow"), ("Landmarks", "custom")):

        def change(model: Any, name: str = name) -> None:
            code = model.operatorCodes[0]
            code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
            code.customCode = name.encode()

        with pytest.raises(SourceError, match=f"needs {what}.*operators.*{name}"):
            tflite_source.inspect(request(relu_file(tmp_path / "m.tflite", change=change)))


def test_broken_files(tmp_path: Path) -> None:
    path = relu_file(tmp_path / "m.tflite")
    whole = path.read_bytes()
    for data, message in (
        (b"", "is empty"),
        (b"no model at all", "is not a TFLite model"),
        (whole[:60], "is not a whole TFLite model|refuses"),
    ):
        path.write_bytes(data)
        with pytest.raises(SourceError, match=message):
            tflite_source.inspect(request(path))


def test_sizes_that_do_not_fit(tmp_path: Path) -> None:
    path = relu_file(tmp_path / "m.tflite")
    with pytest.raises(SourceError, match="fixed size 4 in axis 1, declared 5"):
        tflite_source.inspect(request(path, "x=1x5"))
