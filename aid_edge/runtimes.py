"""Opening an artifact in its runtime on the host, as the device will.

Imports a runtime only when one is opened; call it in worker processes.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aid_edge.errors import ConversionError, MissingDependencyError, UnknownRuntimeError
from aid_edge.sources.inspection import DATATYPES
from device_agent.contract.tensors import TensorInfo

_DISTRIBUTIONS: dict[str, tuple[str, str]] = {
    "onnx_runtime": ("onnxruntime", "onnxruntime"),
    "litert": ("ai_edge_litert", "ai-edge-litert"),
}
"""Runtime to the module and the distribution that carry it."""

_ORT_TYPES: dict[str, str] = {"float": "FP32", "double": "FP64", "float16": "FP16", "bool": "BOOL"}

# Operators that do the arithmetic: what "is it really int8" is counted over.
_ONNX_INTEGER = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger",
     "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits", "QAttention"}
)  # fmt: skip
_ONNX_FLOATING = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm",
     "FusedGemm", "Attention", "MultiHeadAttention", "LSTM", "GRU"}
)  # fmt: skip
_LITERT_COMPUTE = frozenset(
    {"CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL",
     "UNIDIRECTIONAL_SEQUENCE_LSTM"}
)  # fmt: skip


@dataclass(frozen=True)
class Placement:
    """Where the operators of an artifact run, as the runtime itself planned them.

    Attributes:
        integer: Compute operators (convolutions, matrix products) in int8.
        floating: Compute operators left in float.
        operators: Every operator type of the planned graph with its count.
    """

    integer: int
    floating: int
    operators: Mapping[str, int]

    @property
    def integer_share(self) -> float:
        """Share of compute operators that run in int8, 0 to 1."""
        total = self.integer + self.floating
        return self.integer / total if total else 0.0


class Session(Protocol):
    """An artifact that is loaded.

    Attributes:
        inputs: What it takes; float where it is int8 inside and quantized at the edge.
        outputs: What it gives.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs for one batch of inputs."""


def version(runtime: str) -> str:
    """Return the installed version of ``runtime``.

    Raises:
        UnknownRuntimeError: This program cannot open artifacts of it.
        MissingDependencyError: It is not installed.
    """
    module, distribution = _distribution(runtime)
    if importlib.util.find_spec(module) is None:
        raise MissingDependencyError(f"running {runtime} artifacts", distribution, "convert")
    return metadata.version(distribution)


def open_artifact(path: Path, runtime: str, *, threads: int = 1, exact: bool = False) -> Session:
    """Return the artifact at ``path``, loaded in ``runtime``.

    Args:
        path: The artifact.
        runtime: Its runtime.
        threads: Threads for one inference.
        exact: Integer arithmetic as every processor but an x86 without VNNI does it, slower there:
            so that this machine answers what the device will.

    Raises:
        ConversionError: The runtime refuses it.
        UnknownRuntimeError: This program cannot open artifacts of ``runtime``.
        MissingDependencyError: It is not installed.
    """
    version(runtime)
    return _OPENERS[runtime](path, threads, exact)


def placement(path: Path, runtime: str, scratch: Path) -> Placement:
    """Return where the operators of an artifact run.

    Args:
        path: The artifact.
        runtime: Its runtime.
        scratch: A folder for temporary files.

    Raises:
        ConversionError: The runtime refuses it.
    """
    version(runtime)
    return _PLACEMENTS[runtime](path, scratch)


def _distribution(runtime: str) -> tuple[str, str]:
    if runtime not in _DISTRIBUTIONS:
        raise UnknownRuntimeError(runtime, sorted(_DISTRIBUTIONS))
    return _DISTRIBUTIONS[runtime]


# --- ONNX Runtime ----------------------------------------------------------------------------


class _OnnxRuntimeSession:
    """An ONNX model in ONNX Runtime on the CPU."""

    def __init__(self, path: Path, threads: int, exact: bool) -> None:
        self._path = path
        self._session = _onnx_session(path, threads, exact=exact)
        self.inputs = tuple(_onnx_info(i) for i in self._session.get_inputs())
        self.outputs = tuple(_onnx_info(o) for o in self._session.get_outputs())
        self._names = [o.name for o in self.outputs]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            values = self._session.run(self._names, dict(feeds))
        except Exception as e:  # ONNX Runtime's errors share no base class below Exception
            raise ConversionError(f"{self._path.name}: ONNX Runtime fails: {_first_line(e)}") from e
        return dict(zip(self._names, values, strict=True))


def _onnx_session(path: Path, threads: int, *, exact: bool, optimized: Path | None = None) -> Any:
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
            f"{path.name}: ONNX Runtime {onnxruntime.__version__} refuses it: {_first_line(e)}"
        ) from e


def _onnx_info(node: Any) -> TensorInfo:
    name = node.type.removeprefix("tensor(").removesuffix(")")
    datatype = _ORT_TYPES.get(name) or DATATYPES.get(name)
    if datatype is None:
        raise ConversionError(f"{node.name} is {node.type}, which has no type on the wire")
    shape = tuple(d if isinstance(d, int) and d > 0 else -1 for d in node.shape)
    return TensorInfo(node.name, datatype, shape)  # type: ignore[arg-type]


def _onnx_placement(path: Path, scratch: Path) -> Placement:
    import onnx  # noqa: PLC0415 -- only in worker processes

    planned, unsigned = scratch / "planned.onnx", scratch / "unsigned.onnx"
    # Only Arm fuses signed activations: plan their unsigned twin, which x86 fuses alike.
    onnx.save(_unsigned(onnx.load(str(path))), str(unsigned))
    _onnx_session(unsigned, 1, exact=False, optimized=planned)
    graph = onnx.load(str(planned)).graph
    operators = Counter(node.op_type for node in graph.node)
    return _counted(operators, _ONNX_INTEGER, _ONNX_FLOATING)


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


# --- LiteRT ----------------------------------------------------------------------------------


class _LiteRtSession:
    """A TFLite model in LiteRT with its XNNPACK delegate."""

    def __init__(self, path: Path, threads: int, exact: bool) -> None:
        del exact  # XNNPACK multiplies in 32 bits everywhere
        self._path = path
        self._interpreter = _litert_interpreter(path, threads)
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        names = self._signature_names(inputs, outputs)
        self._inputs = {names[0].get(d["index"], d["name"]): d for d in inputs}
        self._outputs = {names[1].get(d["index"], d["name"]): d for d in outputs}
        self.inputs = tuple(_litert_info(n, d) for n, d in self._inputs.items())
        self.outputs = tuple(_litert_info(n, d) for n, d in self._outputs.items())

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        interpreter = self._interpreter
        try:
            for name, detail in self._inputs.items():
                interpreter.set_tensor(detail["index"], quantized(feeds[name], detail))
            interpreter.invoke()
            return {
                name: dequantized(interpreter.get_tensor(detail["index"]), detail)
                for name, detail in self._outputs.items()
            }
        except (RuntimeError, ValueError) as e:
            raise ConversionError(f"{self._path.name}: LiteRT fails: {_first_line(e)}") from e

    def _signature_names(self, inputs: Any, outputs: Any) -> tuple[dict[int, str], dict[int, str]]:
        """Return tensor index to signature name: the names that the converter declared."""
        signatures = self._interpreter.get_signature_list()
        if len(signatures) != 1:
            return {}, {}
        runner = self._interpreter.get_signature_runner(next(iter(signatures)))
        by_name = {d["name"]: d["index"] for d in (*inputs, *outputs)}
        return (
            {by_name[d["name"]]: name for name, d in runner.get_input_details().items()},
            {by_name[d["name"]]: name for name, d in runner.get_output_details().items()},
        )


def quantized(array: NDArray[Any], detail: Mapping[str, Any]) -> NDArray[Any]:
    """Return float values as the integer tensor that ``detail`` describes; others unchanged.

    ``q = round(x / scale) + zero_point``, clipped to the type (LiteRT 8-bit specification).
    """
    scale, zero_point = detail["quantization"]
    dtype = np.dtype(detail["dtype"])
    if not scale or dtype.kind not in "iu" or array.dtype.kind != "f":
        return np.ascontiguousarray(array, dtype)
    bounds = np.iinfo(dtype)
    steps = np.round(array / np.float32(scale)) + zero_point
    return np.asarray(np.clip(steps, bounds.min, bounds.max), dtype)


def dequantized(array: NDArray[Any], detail: Mapping[str, Any]) -> NDArray[Any]:
    """Return a quantized tensor as float32 ``(q - zero_point) * scale``; others unchanged."""
    scale, zero_point = detail["quantization"]
    if not scale or array.dtype.kind not in "iu":
        return np.asarray(array)
    steps = array.astype(np.float32) - np.float32(zero_point)
    return np.asarray(steps * np.float32(scale), np.float32)


def _litert_interpreter(path: Path, threads: int, *, delegate: bool = True) -> Any:
    from ai_edge_litert import interpreter as litert  # noqa: PLC0415 -- only in worker processes

    kind = litert.OpResolverType.AUTO if delegate else litert.OpResolverType.BUILTIN_REF
    try:
        found = litert.Interpreter(
            model_path=str(path), num_threads=threads, experimental_op_resolver_type=kind
        )
        found.allocate_tensors()
    except (RuntimeError, ValueError) as e:
        raise ConversionError(
            f"{path.name}: LiteRT {version('litert')} refuses it: {_first_line(e)}"
        ) from e
    return found


def _litert_info(name: str, detail: Mapping[str, Any]) -> TensorInfo:
    dtype = np.dtype(detail["dtype"])
    datatype = "FP32" if dtype.kind in "iu" and detail["quantization"][0] else DATATYPES[dtype.name]
    return TensorInfo(name, datatype, tuple(map(int, detail["shape"])))  # type: ignore[arg-type]


def _litert_placement(path: Path, scratch: Path) -> Placement:
    del scratch
    interpreter = _litert_interpreter(path, 1, delegate=False)
    types = {d["index"]: np.dtype(d["dtype"]) for d in interpreter.get_tensor_details()}
    operators: Counter[str] = Counter()
    integer = floating = 0
    for op in interpreter._get_ops_details():  # noqa: SLF001 -- the only list of the plan
        operators[op["op_name"]] += 1
        if op["op_name"] in _LITERT_COMPUTE:
            output = types[op["outputs"][0]]
            integer += output.kind in "iu"
            floating += output.kind == "f"
    return Placement(integer, floating, dict(sorted(operators.items())))


def _counted(
    operators: Mapping[str, int], integer: frozenset[str], floating: frozenset[str]
) -> Placement:
    return Placement(
        sum(n for op, n in operators.items() if op in integer),
        sum(n for op, n in operators.items() if op in floating),
        dict(sorted(operators.items())),
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


_OPENERS: dict[str, Callable[[Path, int, bool], Session]] = {
    "onnx_runtime": _OnnxRuntimeSession,
    "litert": _LiteRtSession,
}
_PLACEMENTS: dict[str, Callable[[Path, Path], Placement]] = {
    "onnx_runtime": _onnx_placement,
    "litert": _litert_placement,
}
