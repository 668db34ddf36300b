"""OpenVINO models, packed into one file, in OpenVINO on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aid_edge.errors import ConversionError
from aid_edge.runtimes.session import Placement, first_line
from aid_edge.sources.inspection import DATATYPES
from device_agent.contract.errors import ContractError
from device_agent.contract.packed import OPENVINO_MEMBERS, unpack
from device_agent.contract.tensors import TensorInfo

DISTRIBUTION = ("openvino", "openvino")

# Operators that do the arithmetic, as the CPU plug-in's execution graph names them.
_COMPUTE = frozenset(
    {"Convolution", "Deconvolution", "FullyConnected", "MatMul", "RNNSeq", "RNNCell", "MHA",
     "ScaledDotProductAttention", "LLMMLP", "QKVProjection"}
)  # fmt: skip
_INTEGER_TYPES = frozenset({"i8", "u8", "i4", "u4"})


def open_session(path: Path, threads: int, exact: bool) -> OpenVinoSession:
    """Return the model at ``path``, loaded; see :func:`aid_edge.runtimes.open_artifact`."""
    return OpenVinoSession(path, threads, exact)


class OpenVinoSession:
    """An OpenVINO model on the CPU, computed in 32-bit floats where it is not int8."""

    def __init__(self, path: Path, threads: int, exact: bool) -> None:
        self._path = path
        self._compiled = _compiled(path, threads, exact=exact)
        self._request = self._compiled.create_infer_request()
        self.inputs = tuple(_info(port) for port in self._compiled.inputs)
        self.outputs = tuple(_info(port) for port in self._compiled.outputs)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs for one batch of inputs."""
        try:
            self._request.infer([np.ascontiguousarray(feeds[i.name]) for i in self.inputs])
            return {
                info.name: np.array(self._request.get_output_tensor(i).data)
                for i, info in enumerate(self.outputs)
            }
        except (RuntimeError, ValueError, TypeError) as e:
            raise ConversionError(f"{self._path.name}: OpenVINO fails: {first_line(e)}") from e


def _compiled(path: Path, threads: int, *, exact: bool) -> Any:
    import openvino  # noqa: PLC0415 -- only in worker processes

    options: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Else processors that have bfloat16 compute in it, and answer something else.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if exact:
        # Without VNNI, int8 kernels of x86 saturate: compute the same quantization in floats.
        options["LP_TRANSFORMS_MODE"] = "NO"
    core = openvino.Core()
    try:
        members = unpack(path, OPENVINO_MEMBERS)
        xml, weights = (members[name] for name in OPENVINO_MEMBERS)
        model = core.read_model(xml, openvino.Tensor(np.frombuffer(weights, np.uint8)))
        return core.compile_model(model, "CPU", options)
    except (ContractError, RuntimeError, ValueError, TypeError, OSError) as e:
        raise ConversionError(
            f"{path.name}: OpenVINO {openvino.__version__.partition('-')[0]} refuses it: "
            f"{first_line(e)}"
        ) from e


def _info(port: Any) -> TensorInfo:
    name = port.get_any_name()
    datatype = DATATYPES.get(np.dtype(port.get_element_type().to_dtype()).name)
    if datatype is None:
        raise ConversionError(f"{name} is {port.get_element_type()}, which has no type on the wire")
    shape = tuple(-1 if d.is_dynamic else d.get_length() for d in port.get_partial_shape())
    return TensorInfo(name, datatype, shape)  # type: ignore[arg-type]


def place(path: Path, scratch: Path) -> Placement:
    """Return where operators run; see :func:`aid_edge.runtimes.placement`."""
    del scratch
    operators: Counter[str] = Counter()
    integer = floating = 0
    for node in _compiled(path, 1, exact=False).get_runtime_model().get_ops():
        facts = node.get_rt_info()
        kind = facts["layerType"].astype(str)
        operators[kind] += 1
        if kind in _COMPUTE:
            is_integer = facts["runtimePrecision"].astype(str) in _INTEGER_TYPES
            integer += is_integer
            floating += not is_integer
    return Placement(integer, floating, dict(sorted(operators.items())))
