"""Small ONNX networks with the faults and shapes that quantizers stumble over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[Any, ...]],
    outputs: dict[str, tuple[Any, ...]],
    constants: dict[str, NDArray[Any]],
    *,
    opset: int = 17,
    kinds: dict[str, int] | None = None,
) -> onnx.ModelProto:
    """Return a checked model; ``kinds`` are element types of inputs that are not float."""
    of = kinds or {}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, of.get(n, FLOAT), s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def draws(*shape: int, seed: int = 0, scale: float = 0.3) -> NDArray[np.float32]:
    """Return normal random numbers."""
    found = np.random.default_rng(seed).standard_normal(shape) * scale
    return found.astype(np.float32)


def depthwise(outlier: float = 0.0) -> onnx.ModelProto:
    """Return a net of ReLU6 and depthwise convolutions: images [n, 3, 16, 16] to scores [n, 5].

    With ``outlier``, one weight per channel of the convolution ``middle`` is that large, on an
    input channel that is always zero: it changes no float output and ruins the layer's scales.
    """
    first = draws(16, 3, 3, 3, seed=1)
    first[0] = 0.0
    middle = draws(16, 16, 1, 1, seed=3)
    middle[:, 0] = outlier
    bias = draws(16, seed=6, scale=0.5)
    bias[0] = 0.0
    constants = {
        "w1": first, "b1": bias, "six": np.array(6.0, np.float32),
        "zero": np.array(0.0, np.float32),
        "w2": draws(16, 1, 3, 3, seed=2), "b2": draws(16, seed=7),
        "w3": middle, "b3": draws(16, seed=8), "w4": draws(16, 5, seed=4, scale=1.0),
        "b4": draws(5, seed=5),
    }  # fmt: skip
    constants["w2"][0], constants["b2"][0] = 0.0, 0.0
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "first", **same),
        helper.make_node("Clip", ["c1", "zero", "six"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "depthwise", group=16, **same),
        helper.make_node("Clip", ["c2", "zero", "six"], ["r2"], "relu2"),
        helper.make_node("Conv", ["r2", "w3", "b3"], ["c3"], "middle", kernel_shape=[1, 1]),
        helper.make_node("Clip", ["c3", "zero", "six"], ["r3"], "relu3"),
        helper.make_node("GlobalAveragePool", ["r3"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["y"], "last"),
    ]
    return model(nodes, {"x": ("n", 3, 16, 16)}, {"y": ("n", 5)}, constants)


def encoder(*, residual: bool = False) -> onnx.ModelProto:
    """Return a layer normalization with outlier channels before two matrix products.

    Tokens [n, 6, 16] to [n, 6, 8]; with ``residual`` the normalized activation is an output too.
    """
    gamma = np.ones(16, np.float32)
    gamma[[3, 11]] = 60.0
    first = draws(16, 8, seed=2)
    first[[3, 11]] /= 60.0
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["h"], "norm", axis=-1),
        helper.make_node("MatMul", ["h", "w1"], ["q"], "query"),
        helper.make_node("Add", ["q", "b1"], ["qb"], "query_bias"),
        helper.make_node("MatMul", ["h", "w2"], ["k"], "key"),
        helper.make_node("Mul", ["qb", "k"], ["y"], "product"),
    ]
    outputs = {"y": ("n", 6, 8)} | ({"h": ("n", 6, 16)} if residual else {})
    return model(
        nodes, {"x": ("n", 6, 16)}, outputs,
        {"gamma": gamma, "beta": draws(16, seed=9), "w1": first, "b1": draws(8, seed=3),
         "w2": first[::-1].copy()[::-1] * np.float32(0.5)},
    )  # fmt: skip


def save(made: onnx.ModelProto, path: Path) -> Path:
    """Write a model."""
    onnx.save(made, str(path))
    return path
