"""Converters that misbehave, each in one way, found by entry points that a test installs.

They write a linear layer [n, 4] to [n, 2] as ONNX, with one thing wrong.
"""

from __future__ import annotations

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
