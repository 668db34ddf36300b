"""Calibration inputs one inference at a time, with flat memory. Used in worker processes only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from aid_edge.converter import Arrays
from aid_edge.errors import ConversionError, DataError
from aid_edge.samples import Samples


class Feeds:
    """Goes through calibration inputs as often as wanted; each time from the start.

    A file on disk (:class:`Samples`) is read sample by sample, so memory does not grow with it.
    """

    def __init__(self, model: onnx.ModelProto, inputs: Arrays, most: int) -> None:
        """Feed ``model`` from ``inputs`` [n, ...], ``most`` inferences at most.

        An input whose first axis is fixed at k takes k rows per inference. A model without a
        batch axis takes whole samples: its arrays have one axis more than its inputs.

        Raises:
            DataError: There is not enough for a single inference.
        """
        values = {v.name: v for v in real_inputs(model)}
        lacking = sorted(set(values) - set(inputs))
        if lacking:
            raise DataError(f"calibration data: lacks {', '.join(lacking)}")
        self._names = tuple(values)
        self._inputs = inputs
        ranks = {n: len(v.type.tensor_type.shape.dim) for n, v in values.items()}
        self._is_whole = any(inputs[name].ndim > rank for name, rank in ranks.items())
        self._rows = {n: 1 if self._is_whole else _rows(v) for n, v in values.items()}
        held = min((len(inputs[n]) // rows for n, rows in self._rows.items()), default=0)
        self.count = min(most, held)
        if self.count < 1:
            raise DataError("calibration data: there are not enough samples for one inference")

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        for one in self._slices():
            yield {
                name: np.array(value[0] if self._is_whole else value, order="C")
                for name, value in one.items()
            }

    def _slices(self) -> Iterator[dict[str, NDArray[Any]]]:
        if isinstance(self._inputs, Samples) and set(self._rows.values()) == {1}:
            for batch in self._inputs.first(self.count).batches(1):
                yield {name: batch[name] for name in self._names}
            return
        for i in range(self.count):
            yield {n: self._inputs[n][i * k : (i + 1) * k] for n, k in self._rows.items()}


def real_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that are fed: old files list their weights among them."""
    weights = {t.name for t in model.graph.initializer}
    return [v for v in model.graph.input if v.name not in weights]


def session_of(model: onnx.ModelProto, outputs: Sequence[str], *, exact: bool = True) -> Any:
    """Return an inference session of ``model`` that gives exactly ``outputs``.

    Args:
        model: Changed in place: these tensors become its outputs.
        outputs: Names of any of its tensors.
        exact: Without graph optimization, which would fuse inner tensors away.

    Raises:
        ConversionError: The runtime refuses it.
    """
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_DISABLE_ALL if exact else level.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as e:  # ONNX Runtime's errors share no base class below Exception
        raise ConversionError(f"ONNX Runtime refuses the graph to calibrate: {e}") from e


def run(session: Any, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[Any]:
    """Return the outputs ``names`` for one inference.

    Raises:
        ConversionError: The runtime fails.
    """
    try:
        found: list[Any] = session.run(list(names), dict(feeds))
    except Exception as e:  # ONNX Runtime's errors share no base class below Exception
        raise ConversionError(f"ONNX Runtime fails on calibration data: {e}") from e
    return found


def _rows(value: onnx.ValueInfoProto) -> int:
    dims = value.type.tensor_type.shape.dim
    return max(dims[0].dim_value, 1) if dims else 1
