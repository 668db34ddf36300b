"""TFLite models in LiteRT with its XNNPACK delegate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aid_edge.errors import ConversionError
from aid_edge.runtimes.session import Placement, first_line
from aid_edge.sources.affine import dequantized as dequantized  # noqa: PLC0414 -- used from here
from aid_edge.sources.affine import quantized as quantized  # noqa: PLC0414
from aid_edge.sources.inspection import DATATYPES
from device_agent.contract.tensors import TensorInfo

DISTRIBUTION = ("ai_edge_litert", "ai-edge-litert")

_COMPUTE = frozenset(
    {"CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL",
     "UNIDIRECTIONAL_SEQUENCE_LSTM"}
)  # fmt: skip


_FLOAT = np.dtype(np.float32)


def open_session(path: Path, threads: int, exact: bool) -> LiteRtSession:
    """Return the model at ``path``, loaded; see :func:`aid_edge.runtimes.open_artifact`."""
    return LiteRtSession(path, threads, exact)


class LiteRtSession:
    """A TFLite model in LiteRT with its XNNPACK delegate, or in its reference kernels."""

    def __init__(self, path: Path, threads: int, exact: bool, *, reference: bool = False) -> None:
        del exact  # XNNPACK multiplies in 32 bits everywhere
        self._path = path
        self._interpreter = _interpreter_of(path, threads, delegate=not reference)
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        names = self._signature_names(inputs, outputs)
        self._inputs = {names[0].get(d["index"], d["name"]): d for d in inputs}
        self._outputs = {names[1].get(d["index"], d["name"]): d for d in outputs}
        self.inputs = tuple(_info(n, d) for n, d in self._inputs.items())
        self.outputs = tuple(_info(n, d) for n, d in self._outputs.items())

    @property
    def details(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What LiteRT says of each input and each output, by name, in order."""
        return self._inputs, self._outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs for one batch of inputs."""
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
            raise ConversionError(f"{self._path.name}: LiteRT fails: {first_line(e)}") from e

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


def _interpreter_of(path: Path, threads: int, *, delegate: bool = True) -> Any:
    from ai_edge_litert import interpreter as litert  # noqa: PLC0415 -- only in worker processes

    kind = litert.OpResolverType.AUTO if delegate else litert.OpResolverType.BUILTIN_REF
    try:
        found = litert.Interpreter(
            model_path=str(path), num_threads=threads, experimental_op_resolver_type=kind
        )
        found.allocate_tensors()
    except (RuntimeError, ValueError) as e:
        raise ConversionError(
            f"{path.name}: LiteRT {metadata.version(DISTRIBUTION[1])} refuses it: {first_line(e)}"
        ) from e
    return found


def _info(name: str, detail: Mapping[str, Any]) -> TensorInfo:
    dtype = np.dtype(detail["dtype"])
    datatype = "FP32" if dtype.kind in "iu" and detail["quantization"][0] else DATATYPES[dtype.name]
    return TensorInfo(name, datatype, tuple(map(int, detail["shape"])))  # type: ignore[arg-type]


def place(path: Path, scratch: Path) -> Placement:
    """Return where operators run; see :func:`aid_edge.runtimes.placement`."""
    del scratch
    interpreter = _interpreter_of(path, 1, delegate=False)
    types = {d["index"]: np.dtype(d["dtype"]) for d in interpreter.get_tensor_details()}
    operators: Counter[str] = Counter()
    integer = floating = 0
    for op in interpreter._get_ops_details():  # noqa: SLF001 -- the only list of the plan
        operators[op["op_name"]] += 1
        if op["op_name"] in _COMPUTE:
            # Integer weights beside float outputs: activations are quantized at run time.
            is_integer = any(types.get(i, _FLOAT).itemsize == 1 for i in op["inputs"][:2])
            is_integer |= types[op["outputs"][0]].kind in "iu"
            integer += is_integer
            floating += not is_integer
    return Placement(integer, floating, dict(sorted(operators.items())))
