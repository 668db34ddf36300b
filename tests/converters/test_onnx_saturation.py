"""Weights that cannot overflow sixteen bits, with as little change as possible."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from converters.onnx_saturation import MAX_PAIR_SUM, avoid_saturation


def _model(op: str, weights: np.ndarray, axis: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return a QDQ layer with per-channel int8 weights and int32 bias, and the float weights."""
    other = tuple(i for i in range(weights.ndim) if i != axis)
    scale = (np.abs(weights).max(axis=other) / 127).astype(np.float32)
    scale[scale == 0] = 1
    shaped = scale.reshape([-1 if i == axis else 1 for i in range(weights.ndim)])
    codes = np.round(weights / shaped).astype(np.int8)
    tensors = {
        "w_quantized": codes,
        "w_scale": scale,
        "w_zero": np.zeros(len(scale), np.int8),
        "b_quantized": np.full(len(scale), 1000, np.int32),
        "b_scale": scale * np.float32(0.5),
    }
    nodes = [
        helper.make_node(
            "DequantizeLinear", ["w_quantized", "w_scale", "w_zero"], ["w"], axis=axis
        ),
        helper.make_node("DequantizeLinear", ["b_quantized", "b_scale"], ["b"], axis=0),
        helper.make_node(op, ["x", "w", "b"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    inits = [numpy_helper.from_array(a, n) for n, a in tensors.items()]
    quantized = helper.make_model(helper.make_graph(nodes, "q", [x], [y], inits))
    floating = helper.make_model(
        helper.make_graph([], "f", [x], [y], [numpy_helper.from_array(weights, "w")])
    )
    return quantized, floating


def _tensor(model: onnx.ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


@given(
    hnp.arrays(np.float32, (3, 4, 1, 1), elements=st.floats(-2, 2, width=32, allow_subnormal=False))
)
def test_no_pair_can_overflow_and_values_stay(weights: np.ndarray) -> None:
    quantized, floating = _model("Conv", weights, 0)
    avoid_saturation(quantized, floating)
    codes = _tensor(quantized, "w_quantized").astype(int).reshape(3, 4)
    scale = _tensor(quantized, "w_scale").reshape(3, 1)
    assert np.abs(codes[:, 0::2] + codes[:, 1::2]).max() <= MAX_PAIR_SUM
    error = np.abs(codes * scale - weights.reshape(3, 4))
    assert (error <= scale * 0.5 * (1 + 1e-4) + 1e-30).all()


def test_channels_without_such_a_pair_are_not_touched() -> None:
    weights = np.array([[1.0, -1.0, 0.2, 0.1], [1.0, 1.0, 0.0, 0.0]], np.float32)
    quantized, floating = _model("Conv", weights.reshape(2, 4, 1, 1), 0)
    before = _tensor(quantized, "w_quantized").copy()
    assert avoid_saturation(quantized, floating) == 1
    after = _tensor(quantized, "w_quantized")
    assert (after[0] == before[0]).all()
    assert after[1].reshape(-1).tolist() == [64, 64, 0, 0]


def test_the_bias_keeps_its_value() -> None:
    weights = np.ones((2, 4, 1, 1), np.float32)
    quantized, floating = _model("Conv", weights, 0)
    before = _tensor(quantized, "b_quantized") * _tensor(quantized, "b_scale")
    avoid_saturation(quantized, floating)
    after = _tensor(quantized, "b_quantized") * _tensor(quantized, "b_scale")
    np.testing.assert_allclose(after, before, rtol=1e-3)


def test_matrix_products_pair_along_their_inputs() -> None:
    weights = np.array([[1.0, 1.0], [1.0, -1.0]], np.float32)  # [inputs, outputs]
    quantized, floating = _model("MatMul", weights, 1)
    assert avoid_saturation(quantized, floating) == 1
    codes = _tensor(quantized, "w_quantized")
    assert codes[:, 0].tolist() == [64, 64]
    assert codes[:, 1].tolist() == [127, -127]


def test_depthwise_convolutions_need_no_care() -> None:
    quantized, floating = _model("Conv", np.ones((3, 1, 3, 3), np.float32), 0)
    assert avoid_saturation(quantized, floating) == 3
    quantized, floating = _model("Conv", np.ones((3, 1, 3, 3), np.float32), 0)
    quantized.graph.node[-1].attribute.append(helper.make_attribute("group", 3))
    assert avoid_saturation(quantized, floating) == 0


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 1, 1, 3)])
def test_an_odd_number_of_weights(shape: tuple[int, ...]) -> None:
    quantized, floating = _model("Conv", np.ones(shape, np.float32), 0)
    assert avoid_saturation(quantized, floating) == 2
