"""ExecuTorch programs on the CPU, with the XNNPACK backend."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aid_edge.errors import ConversionError
from aid_edge.runtimes.session import Placement, first_line
from device_agent.contract.tensors import TensorInfo

DISTRIBUTION = ("executorch", "executorch")

NAMES_METHOD = "aid_edge_names"
"""Constant method of a program: JSON with the names of inputs and outputs, which it lacks."""

METHOD = "forward"

_BACKEND = "XnnpackBackend"
# torch.ScalarType (c10/core/ScalarType.h) to what travels on the wire.
_DATATYPES = {
    0: "UINT8", 1: "INT8", 2: "INT16", 3: "INT32", 4: "INT64", 5: "FP16", 6: "FP32", 7: "FP64",
    11: "BOOL",
}  # fmt: skip

# Operators that do the arithmetic. ATen's outside a delegate run on reference kernels.
_REFERENCE = frozenset(
    {"aten::convolution", "aten::conv2d", "aten::linear", "aten::addmm", "aten::mm", "aten::bmm",
     "aten::matmul", "aten::_scaled_dot_product_attention", "aten::scaled_dot_product_attention"}
)  # fmt: skip
_DELEGATED = frozenset(
    {"XNNConv2d", "XNNDepthwiseConv2d", "XNNConvTranspose2d", "XNNFullyConnected",
     "XNNBatchMatrixMultiply", "XNNScaledDotProductAttention"}
)  # fmt: skip
_INTEGER_TYPES = frozenset(
    f"xnn_datatype_{name}" for name in ("qint8", "quint8", "qdint8", "qpint8")
)


def open_session(path: Path, threads: int, exact: bool) -> ExecuTorchSession:
    """Return the model at ``path``, loaded; see :func:`aid_edge.runtimes.open_artifact`."""
    return ExecuTorchSession(path, threads, exact)


class ExecuTorchSession:
    """An ExecuTorch program; its shapes are fixed."""

    def __init__(self, path: Path, threads: int, exact: bool) -> None:
        del exact  # XNNPACK multiplies in 32 bits everywhere
        _pin(threads)
        from executorch.runtime import Runtime  # noqa: PLC0415 -- only in worker processes

        self._path = path
        try:
            self._program = Runtime.get().load_program(path)
            names = self._names()
            self._method = self._program.load_method(METHOD)
            if self._method is None:
                raise RuntimeError("it has no method forward")  # noqa: TRY301 -- told like others
            facts = self._method.metadata
            inputs = [facts.input_tensor_meta(i) for i in range(facts.num_inputs())]
            outputs = [facts.output_tensor_meta(i) for i in range(facts.num_outputs())]
            self.inputs = _infos(names["inputs"], inputs)
            self.outputs = _infos(names["outputs"], outputs)
        except (RuntimeError, ValueError, KeyError, TypeError) as e:
            raise ConversionError(f"{path.name}: ExecuTorch refuses it: {first_line(e)}") from e

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs for one batch of inputs."""
        import torch  # noqa: PLC0415 -- only in worker processes

        try:
            tensors = [torch.from_numpy(np.array(feeds[i.name], order="C")) for i in self.inputs]
            values = self._method.execute(tensors)
        except RuntimeError as e:
            raise ConversionError(f"{self._path.name}: ExecuTorch fails: {first_line(e)}") from e
        # The program's own memory is written again at the next run.
        found = [np.array(value.numpy()) for value in values]
        return {info.name: value for info, value in zip(self.outputs, found, strict=True)}

    def _names(self) -> dict[str, list[str]]:
        if NAMES_METHOD not in self._program.method_names:
            raise ValueError("it does not name its inputs and outputs")
        (text,) = self._program.load_method(NAMES_METHOD).execute([])
        names: dict[str, list[str]] = json.loads(text)
        return names


def _pin(threads: int) -> None:
    """Let this process use ``threads`` processors.

    The thread pool takes as many threads as there are processors, and the call that would set its
    size waits forever for its own threads (ExecuTorch 1.5.1).
    """
    allowed = sorted(os.sched_getaffinity(0))
    first = os.getpid() % len(allowed)
    os.sched_setaffinity(0, (allowed[first:] + allowed[:first])[:threads])


def _infos(names: Sequence[str], metas: Sequence[Any]) -> tuple[TensorInfo, ...]:
    found = []
    for name, meta in zip(names, metas, strict=True):
        datatype = _DATATYPES.get(int(meta.dtype()))
        if datatype is None:
            raise ValueError(f"{name} is of scalar type {meta.dtype()}, which is not on the wire")
        shape = tuple(map(int, meta.sizes()))
        found.append(TensorInfo(name, datatype, shape))  # type: ignore[arg-type]
    return tuple(found)


# --- placement --------------------------------------------------------------------------------


def place(path: Path, scratch: Path) -> Placement:
    """Return where operators run; see :func:`aid_edge.runtimes.placement`."""
    from executorch.exir._serialize._program import (  # noqa: PLC0415 -- only in worker processes
        deserialize_pte_binary,
    )

    try:
        program = deserialize_pte_binary(path.read_bytes()).program
    except Exception as e:  # the parser raises whatever broken bytes lead it to
        raise ConversionError(f"{path.name}: ExecuTorch refuses it: {first_line(e)}") from e
    (plan,) = (p for p in program.execution_plan if p.name == METHOD)
    operators: Counter[str] = Counter()
    slow: Counter[str] = Counter()
    integer = floating = 0
    for kind, index in _calls(plan):
        if kind == "kernel":
            name = plan.operators[index].name
            operators[name] += 1
            if name in _REFERENCE:
                slow[name] += 1
                floating += 1
            continue
        delegate = plan.delegates[index]
        if delegate.id != _BACKEND:
            raise ConversionError(f"{path.name}: is for the backend {delegate.id}, not XNNPACK")
        payload = program.backend_delegate_data[delegate.processed.index].data
        for node, is_integer in _delegated(bytes(payload), scratch):
            operators[node] += 1
            if node in _DELEGATED:
                integer += is_integer
                floating += not is_integer
    return Placement(integer, floating, dict(sorted(operators.items())), dict(sorted(slow.items())))


def _calls(plan: Any) -> Iterator[tuple[str, int]]:
    for chain in plan.chains:
        for instruction in chain.instructions:
            call = instruction.instr_args
            if hasattr(call, "delegate_index"):
                yield "delegate", call.delegate_index
            elif hasattr(call, "op_index"):
                yield "kernel", call.op_index


def _delegated(payload: bytes, scratch: Path) -> Iterator[tuple[str, bool]]:
    """Yield the operators of an XNNPACK graph, and whether each takes integers."""
    from executorch.backends.xnnpack.serialization import (  # noqa: PLC0415 -- see place()
        xnnpack_graph_serialize as xnnpack,
    )
    from executorch.exir._serialize._flatbuffer import _flatc_decompile  # noqa: PLC0415

    header = xnnpack.XNNHeader.from_bytes(payload[: xnnpack.XNNHeader.EXPECTED_LENGTH])
    graph_bytes = payload[header.flatbuffer_offset :][: header.flatbuffer_size]
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        schema, binary = Path(folder, "schema.fbs"), Path(folder, "graph.bin")
        schema.write_bytes(xnnpack._get_schema_bytes())  # noqa: SLF001 -- the only reader there is
        binary.write_bytes(graph_bytes)
        _flatc_decompile(folder, str(schema), str(binary), ["--raw-binary"])
        # flatc writes bounds that are infinite as no JSON reader takes them.
        text = re.sub(r": (-?)inf\b", r": \1Infinity", Path(folder, "graph.json").read_text())
        graph = json.loads(text)
    types = {}
    for value in graph["xvalues"]:
        found = value["xvalue_union"]
        tensor = found.get("tensor_value", found)
        types[tensor["id_out"]] = tensor["datatype"]
    for node in graph["xnodes"]:
        about = node["xnode_union"]
        source = about.get("input1_id", about.get("input_id"))
        yield node["xnode_union_type"].removeprefix("_"), types.get(source) in _INTEGER_TYPES
