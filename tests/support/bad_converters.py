"""Converters that misbehave, each in one way, found by entry points that a test installs.

They write a linear layer [n, 4] to [n, 2] as ONNX, with one thing wrong.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from aid_edge.converter import Artifact


class GoodConverter:
    """Writes the right file; the others change one thing."""

    runtime = "onnx_runtime"
    accepts = frozenset({"onnx"})
    methods = frozenset({"float32"})
    file = "model.onnx"
    names = ("x", "y")
    factor = 1.0

    def check(self, model: Any, profile: Any) -> None:
        """Accept everything."""

    def convert(
        self, model: Any, recipe: Any, calibration: Any, profile: Any, out: Path
    ) -> Artifact:
        x, y = self.names
        matrix = np.arange(8, dtype=np.float32).reshape(4, 2) * self.factor
        graph = helper.make_graph(
            [helper.make_node("MatMul", [x, "w"], [y])],
            "g",
            [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, 4])],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 2])],
            [numpy_helper.from_array(matrix, "w")],
        )
        path = out / self.file
        opset = [helper.make_opsetid("", 18)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
        return Artifact(path, tools={"onnx": onnx.__version__})


class OutsideConverter(GoodConverter):
    """Writes beside the folder it was given."""

    file = "../elsewhere.onnx"


class RenamingConverter(GoodConverter):
    """Calls the output something else."""

    names = ("x", "z")


class NotANumberConverter(GoodConverter):
    """Computes NaN."""

    factor = float("nan")


class WrongConverter(GoodConverter):
    """Computes something else than the source."""

    factor = -1.0


class EmptyConverter(GoodConverter):
    """Says that it wrote a file, and did not."""

    def convert(
        self, model: Any, recipe: Any, calibration: Any, profile: Any, out: Path
    ) -> Artifact:
        return Artifact(out / "nothing.onnx")


class GarbageConverter(GoodConverter):
    """Writes a file that no runtime loads."""

    def convert(
        self, model: Any, recipe: Any, calibration: Any, profile: Any, out: Path
    ) -> Artifact:
        (out / self.file).write_bytes(b"garbage")
        return Artifact(out / self.file)


class CrashingConverter(GoodConverter):
    """Takes its process down."""

    def convert(
        self, model: Any, recipe: Any, calibration: Any, profile: Any, out: Path
    ) -> Artifact:
        os.abort()


class HangingConverter(GoodConverter):
    """Never finishes."""

    def convert(
        self, model: Any, recipe: Any, calibration: Any, profile: Any, out: Path
    ) -> Artifact:
        time.sleep(3600)
        raise AssertionError


class GreedyConverter(GoodConverter):
    """Takes more memory with every step."""

    def convert(
        self, model: Any, recipe: Any, calibration: Any, profile: Any, out: Path
    ) -> Artifact:
        taken = []
        while True:
            taken.append(np.ones(2**22))
            time.sleep(0.005)


class ChattyConverter(GoodConverter):
    """Prints without end, and then works."""

    def convert(
        self, model: Any, recipe: Any, calibration: Any, profile: Any, out: Path
    ) -> Artifact:
        for _ in range(20_000):
            sys.stdout.write("on and on and on " * 8 + "\n")
        return super().convert(model, recipe, calibration, profile, out)


class UntidyConverter(GoodConverter):
    """Names a further file that lies elsewhere."""

    def convert(
        self, model: Any, recipe: Any, calibration: Any, profile: Any, out: Path
    ) -> Artifact:
        (out.parent / "elsewhere.cc").write_text("x")
        made = super().convert(model, recipe, calibration, profile, out)
        return Artifact(made.path, tools=made.tools, extras={"c": out.parent / "elsewhere.cc"})


class BatchDependentConverter(GoodConverter):
    """Computes something else for batches of more than 64."""

    def convert(
        self, model: Any, recipe: Any, calibration: Any, profile: Any, out: Path
    ) -> Artifact:
        matrix = np.arange(8, dtype=np.float32).reshape(4, 2)
        constants = {
            "w": matrix,
            "first": np.array([0], np.int64),
            "most": np.array([64], np.int64),
            "error": np.array([100.0, -100.0], np.float32),
        }
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["right"]),
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Gather", ["shape", "first"], ["batch"]),
            helper.make_node("Greater", ["batch", "most"], ["is_large"]),
            helper.make_node("Cast", ["is_large"], ["factor"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["factor", "error"], ["wrong"]),
            helper.make_node("Add", ["right", "wrong"], ["y"]),
        ]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        path = out / self.file
        opset = [helper.make_opsetid("", 18)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
        return Artifact(path, tools={"onnx": onnx.__version__})
