"""ONNX models in ONNX Runtime on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aid_edge.errors import ConversionError
from aid_edge.runtimes.session import Placement, counted, first_line
from aid_edge.sources.inspection import DATATYPES
from device_agent.contract.tensors import TensorInfo

DISTRIBUTION = ("onnxruntime", "onnxruntime")

_ORT_TYPES: dict[str, str] = {"float": "FP32", "double": "FP64", "float16": "FP16", "bool": "BOOL"}

# Operators that do the arithmetic: what "is it really int8" is counted over.
_INTEGER = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger",
     "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits", "QAttention"}
)  # fmt: skip
_FLOATING = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm",
     "FusedGemm", "Attention", "MultiHeadAttention", "LSTM", "GRU"}
)  # fmt: skip


def open_session(path: Path, threads: int, exact: bool) -> OnnxRuntimeSession:
    """Return the model at ``path``, loaded; see :func:`aid_edge.runtimes.open_artifact`."""
    return OnnxRuntimeSession(path, threads, exact)


class OnnxRuntimeSession:
    """An ONNX model in ONNX Runtime on the CPU."""

    def __init__(self, path: Path, threads: int, exact: bool) -> None:
        self._path = path
        self._session = _session(path, threads, exact=exact)
        self.inputs = tuple(_info(i) for i in self._session.get_inputs())
        self.outputs = tuple(_info(o) for o in self._session.get_outputs())
        self._names = [o.name for o in self.outputs]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs for one batch of inputs."""
        try:
            values = self._session.run(self._names, dict(feeds))
        except Exception as e:  # ONNX Runtime's errors share no base class below Exception
            raise ConversionError(f"{self._path.name}: ONNX Runtime fails: {first_line(e)}") from e
        return dict(zip(self._names, values, strict=True))


def _session(path: Path, threads: int, *, exact: bool, optimized: Path | None = None) -> Any:
    import onnxruntime  # noqa: PLC0415 -- only in worker processes

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if exact:
        # Without VNNI, u8 x s8 kernels of x86 saturate: take those of u8 x u8.
        options.add_session_config_entry("session.x64quantprecision", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # ONNX Runtime's errors share no base class below Exception
        raise ConversionError(
            f"{path.name}: ONNX Runtime {onnxruntime.__version__} refuses it: {first_line(e)}"
        ) from e


def _info(node: Any) -> TensorInfo:
    name = node.type.removeprefix("tensor(").removesuffix(")")
    datatype = _ORT_TYPES.get(name) or DATATYPES.get(name)
    if datatype is None:
        raise ConversionError(f"{node.name} is {node.type}, which has no type on the wire")
    shape = tuple(d if isinstance(d, int) and d > 0 else -1 for d in node.shape)
    return TensorInfo(node.name, datatype, shape)  # type: ignore[arg-type]


def place(path: Path, scratch: Path) -> Placement:
    """Return where operators run; see :func:`aid_edge.runtimes.placement`."""
    import onnx  # noqa: PLC0415 -- only in worker processes

    unsigned = scratch / "unsigned.onnx"
    # Only Arm fuses signed activations: plan their unsigned twin, which x86 fuses alike.
    onnx.save(_unsigned(onnx.load(str(path))), str(unsigned))
    return plan(unsigned, scratch)


def plan(path: Path, scratch: Path) -> Placement:
    """Return where operators run on this machine's kind of processor.

    Unlike :func:`place`, signed activations are not planned as if this were an Arm processor.
    """
    import onnx  # noqa: PLC0415 -- only in worker processes

    planned = scratch / "planned.onnx"
    _session(path, 1, exact=False, optimized=planned)
    graph = onnx.load(str(planned)).graph
    operators = Counter(node.op_type for node in graph.node)
    return counted(operators, _INTEGER, _FLOATING)


def _unsigned(model: Any) -> Any:
    """Return a QDQ model with signed activations made unsigned: code and zero point plus 128."""
    from onnx import TensorProto, numpy_helper  # noqa: PLC0415 -- only in worker processes

    tensors = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        is_activation = node.op_type in {"QuantizeLinear", "DequantizeLinear"} and (
            node.input[0] not in tensors
        )
        point = tensors.get(node.input[2]) if is_activation and len(node.input) > 2 else None
        if point is not None and point.data_type == TensorProto.INT8:
            codes = numpy_helper.to_array(point).astype(np.int16) + 128
            point.CopyFrom(numpy_helper.from_array(codes.astype(np.uint8), point.name))
    del model.graph.value_info[:]
    return model
