"""ONNX models: loaded whole, checked, and bounded. Imported only in worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import shape_inference

from aid_edge.errors import SourceError, first_line
from aid_edge.sources.inspection import (
    DATATYPES,
    Inspection,
    OperatorCount,
    SourceRequest,
    check_file,
    digest_of_files,
)
from device_agent.contract.tensors import TensorInfo

_MAX_DEPTH = 16


def load(request: SourceRequest) -> onnx.ModelProto:
    """Return the checked model, its shapes fixed as the request declares them.

    Raises:
        SourceError: Not an ONNX model, cut short, or not valid.
    """
    path = Path(request.spec)
    check_file(path, "ONNX model")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(str(path), full_check=True)
    except DecodeError as e:
        raise SourceError(
            f"{path}: is not an ONNX model, or is cut short",
            hint="Compare its size and checksum with the original.",
        ) from e
    except (
        onnx.checker.ValidationError,
        shape_inference.InferenceError,
        OSError,
        ValueError,
        RuntimeError,
    ) as e:
        raise SourceError(f"{path}: is not a valid ONNX model: {first_line(e)}") from e
    if not model.graph.node:
        raise SourceError(f"{path}: is not an ONNX model: its graph is empty")
    _fix_shapes(model, request)
    return model


def inspect(request: SourceRequest) -> Inspection:
    """Return the facts about the model that ``request`` names.

    Raises:
        SourceError: It cannot be read, or has inputs or outputs that are no tensors.
    """
    model = load(request)
    path = Path(request.spec)
    try:
        inferred = shape_inference.infer_shapes(model)
    except (shape_inference.InferenceError, ValueError):
        inferred = model
    ranks = _ranks(inferred.graph)
    count = OperatorCount()
    for node in _nodes(model.graph):
        rank = max((ranks.get(name, 0) for name in (*node.input, *node.output)), default=0)
        count.add(node.op_type, rank, node.name or (node.output[0] if node.output else ""))
    constants = [i for graph in _graphs(model.graph) for i in graph.initializer]
    constants += [
        a.t for node in _nodes(model.graph) if node.op_type == "Constant"
        for a in node.attribute if a.name == "value"
    ]  # fmt: skip
    digest = digest_of_files("onnx", [path, *_external_files(constants, path.parent)])
    opset = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 0)
    return Inspection(
        tuple(_info(i, path) for i in graph_inputs(model)),
        tuple(_info(o, path) for o in inferred.graph.output),
        count.uses,
        sum(int(np.prod(t.dims)) for t in constants),
        digest,
        opset,
    )


def run(
    request: SourceRequest, inputs: Mapping[str, Any], batches: Sequence[slice | int]
) -> Iterator[list[np.ndarray[Any, Any]]]:
    """Yield the outputs of the model for each slice of ``inputs``, without graph optimization.

    Raises:
        SourceError: ONNX Runtime cannot load or run it.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model = load(request)
    names = [i.name for i in graph_inputs(model)]
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for batch in batches:
            yield session.run(None, {name: np.asarray(inputs[name][batch]) for name in names})
    except Exception as e:  # ONNX Runtime's errors share no base class below Exception
        raise SourceError(f"{request.spec}: ONNX Runtime fails on it: {first_line(e)}") from e


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the real inputs: old files list their weights among them."""
    weights = {i.name for i in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in weights]


def _fix_shapes(model: onnx.ModelProto, request: SourceRequest) -> None:
    declared = {i.name: i for i in request.inputs}
    found = {i.name: i for i in graph_inputs(model)}
    for name, wanted in declared.items():
        if name not in found:
            raise SourceError(
                f"{request.spec}: has no input {name!r}", hint=f"It has: {', '.join(found)}."
            )
        dims = found[name].type.tensor_type.shape.dim
        if len(dims) != len(wanted.shape):
            raise SourceError(
                f"{request.spec}: input {name} has rank {len(dims)}, declared {len(wanted.shape)}"
            )
        for dim, size in zip(dims, wanted.shape, strict=True):
            if dim.dim_value and size not in {-1, dim.dim_value}:
                raise SourceError(
                    f"{request.spec}: input {name} has a fixed size {dim.dim_value}, "
                    f"declared {size}"
                )
            if size > 0:
                dim.dim_value = size
    if declared:
        # Shapes of the old sizes would contradict the new ones.
        del model.graph.value_info[:]


def _graphs(graph: onnx.GraphProto, depth: int = 0) -> Iterator[onnx.GraphProto]:
    if depth > _MAX_DEPTH:
        raise SourceError(f"graphs are nested more than {_MAX_DEPTH} deep")
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner, depth + 1)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for inner in _graphs(graph):
        yield from inner.node


def _ranks(graph: onnx.GraphProto) -> dict[str, int]:
    ranks = {i.name: len(i.dims) for i in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.HasField("shape"):
            ranks[value.name] = len(value.type.tensor_type.shape.dim)
    return ranks


def _external_files(tensors: Iterable[onnx.TensorProto], folder: Path) -> list[Path]:
    names = {
        entry.value for tensor in tensors for entry in tensor.external_data
        if entry.key == "location"
    }  # fmt: skip
    return [folder / name for name in sorted(names)]


def _info(value: onnx.ValueInfoProto, path: Path) -> TensorInfo:
    kind = value.type.tensor_type
    try:
        datatype = DATATYPES[onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name]
    except (KeyError, TypeError) as e:
        raise SourceError(
            f"{path}: {value.name} has an element type that the wire does not know"
        ) from e
    shape = tuple(d.dim_value if d.dim_value > 0 else -1 for d in kind.shape.dim)
    return TensorInfo(value.name, datatype, shape)  # type: ignore[arg-type]
