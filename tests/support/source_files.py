"""Small model files of every framework that tests of the sources open."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.support import tiny_nets


def tiny_pt2(path: Path) -> Path:
    """TinyNet as torch.export.save writes it, with a varying batch."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        tiny_nets.tiny().eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, path)
    return path


def tiny_torchscript(path: Path, module: torch.nn.Module | None = None) -> Path:
    """A scripted module, TinyNet unless another is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script((module or tiny_nets.tiny()).eval()), str(path))
    return path


def ocr_like(path: Path, *, opset: int = 11) -> Path:
    """A net as Paddle exports them: weights as Constant nodes, HardSigmoid, open sizes.

    [n, 3, h, w] to [n, w / 2, 7]: convolution, depthwise convolution, squeeze-and-excitation, a
    reshape whose shape is computed, a linear layer, Softmax.
    """
    draw = np.random.default_rng(1)

    def constant(name: str, value: Any) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name))

    def weight(name: str, *shape: int) -> onnx.NodeProto:
        return constant(name, (draw.standard_normal(shape) * 0.4).astype(np.float32))

    nodes = [
        weight("w1", 8, 3, 3, 3), weight("b1", 8), weight("w2", 8, 1, 3, 3),
        weight("w3", 8, 8, 1, 1), weight("w4", 8, 7), weight("b4", 7),
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], group=8, pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c2"], ["g"]),
        helper.make_node("Conv", ["g", "w3"], ["c3"]),
        helper.make_node("HardSigmoid", ["c3"], ["h"], alpha=0.2, beta=0.5),
        helper.make_node("Mul", ["c2", "h"], ["m"]),
        helper.make_node("ReduceMean", ["m"], ["p"], axes=[2], keepdims=0),
        helper.make_node("Transpose", ["p"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Shape", ["t"], ["s"]),
        constant("zero", np.asarray([0], np.int64)), constant("one", np.asarray([1], np.int64)),
        helper.make_node("Slice", ["s", "zero", "one", "zero"], ["batch"]),
        constant("rest", np.asarray([-1, 8], np.int64)),
        helper.make_node("Concat", ["batch", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["t", "shape"], ["f"]),
        helper.make_node("MatMul", ["f", "w4"], ["mm"]),
        helper.make_node("Add", ["mm", "b4"], ["a"]),
        helper.make_node("Softmax", ["a"], ["y"], axis=2),
    ]  # fmt: skip
    return save(
        path, nodes, {"x": ["n", 3, "h", "w"]}, {"y": ["n", "t", 7]}, opset=opset
    )  # fmt: skip


def stateful(path: Path) -> Path:
    """An LSTM whose state is outside: x [1, 1, 6], state [2, 1, 5] to y, next [2, 1, 5]."""
    draw = np.random.default_rng(2)
    weights = {
        name: (draw.standard_normal(shape) * 0.5).astype(np.float32)
        for name, shape in {"w": (1, 20, 6), "r": (1, 20, 5), "b": (1, 40)}.items()
    }
    ints = {"zero": [0], "one": [1], "two": [2]}
    nodes = [
        helper.make_node("Slice", ["state", "zero", "one", "zero"], ["h"]),
        helper.make_node("Slice", ["state", "one", "two", "zero"], ["c"]),
        helper.make_node(
            "LSTM", ["x", "w", "r", "b", "", "h", "c"], ["ys", "hn", "cn"], hidden_size=5
        ),
        helper.make_node("Squeeze", ["ys", "one"], ["y"]),
        helper.make_node("Concat", ["hn", "cn"], ["next"], axis=0),
    ]
    stored = weights | {name: np.asarray(value, np.int64) for name, value in ints.items()}
    return save(
        path, nodes, {"x": [1, 1, 6], "state": [2, 1, 5]}, {"y": [1, 1, 5], "next": [2, 1, 5]},
        opset=15, stored=stored,
    )  # fmt: skip


def listed_weights(path: Path) -> Path:
    """Opset 9 with weights among the inputs and sizes that the file fixes: [4, 3, 8, 8]."""
    draw = np.random.default_rng(3)
    stored = {"w": draw.standard_normal((6, 3, 3, 3)).astype(np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    return save(
        path, nodes, {"x": [4, 3, 8, 8], "w": [6, 3, 3, 3]}, {"y": [4, 6, 8, 8]},
        opset=9, stored=stored, ir_version=4,
    )  # fmt: skip


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    *,
    opset: int = 17,
    stored: dict[str, np.ndarray] | None = None,
    **more: Any,
) -> Path:
    """Write an ONNX file of float inputs and outputs; ``more`` are ir_version and domains."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (stored or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(domain, 1) for domain in more.get("domains", ())]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=more.get("ir_version", 8))
    onnx.save(model, str(path))
    return path
