"""ONNX models: loaded whole, checked, and bounded. Imported only in worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import shape_inference

from aid_edge.errors import SourceError, first_line
from aid_edge.sources import onnx_graph
from aid_edge.sources.inputs import matched
from aid_edge.sources.inspection import (
    DATATYPES,
    NUMPY_NAMES,
    Inspection,
    OperatorCount,
    SourceRequest,
    digest_of_files,
)
from aid_edge.sources.onnx_graph import graph_inputs
from device_agent.contract.tensors import TensorInfo

_PROBED_BATCHES = (2, 3)


def load(request: SourceRequest) -> onnx.ModelProto:
    """Return the model as converters take it: checked, in one form, with the declared shapes.

    Weights are initializers and no inputs; the opset is at least 13.

    Raises:
        SourceError: Not an ONNX model, cut short, not valid, or it cannot be brought to that form.
    """
    model = load_raw(request)
    return onnx_graph.normalized(model, request.spec)


def load_raw(request: SourceRequest) -> onnx.ModelProto:
    """Return the model as its author wrote it, checked, with the declared shapes.

    Raises:
        SourceError: Not an ONNX model, cut short, or not valid.
    """
    model = onnx_graph.read(Path(request.spec))
    onnx_graph.drop_weight_inputs(model)
    model.ir_version = max(model.ir_version, 4)
    return _with_shapes(model, request)


def inspect(request: SourceRequest) -> Inspection:
    """Return the facts about the model that ``request`` names.

    Raises:
        SourceError: It cannot be read, or has inputs or outputs that are no tensors.
    """
    model = load_raw(request)
    path = Path(request.spec)
    inferred = _inferred(model)
    ranks = _ranks(inferred.graph)
    count = OperatorCount()
    for node in onnx_graph.nodes(model.graph):
        if node.op_type == "Constant":
            # Only another way to write a weight.
            continue
        rank = max((ranks.get(name, 0) for name in (*node.input, *node.output)), default=0)
        count.add(node.op_type, rank, node.name or (node.output[0] if node.output else ""))
    stored = onnx_graph.constants(model)
    files = onnx_graph.external_files(onnx_graph.constants(_bare(path)), path.parent)
    opset = onnx_graph.opset_of(model)
    inputs = tuple(_info(i, path) for i in graph_inputs(model))
    outputs = _output_infos(model, inferred, inputs, request)
    return Inspection(
        inputs, outputs, count.uses, sum(int(np.prod(t.dims)) for t in stored),
        digest_of_files("onnx", [path, *files]), opset,
        any(u.type in {"QuantizeLinear", "DynamicQuantizeLinear"} for u in count.uses),
        _notes(opset, request, path),
    )  # fmt: skip


def run(
    request: SourceRequest, inputs: Mapping[str, Any], batches: Sequence[slice | int]
) -> Iterator[list[np.ndarray[Any, Any]]]:
    """Yield the outputs of the model for each slice of ``inputs``, without graph optimization.

    Raises:
        SourceError: ONNX Runtime cannot load or run it.
    """
    model = load_raw(request)
    names = [i.name for i in graph_inputs(model)]
    try:
        session = session_of(model)
        for batch in batches:
            yield session.run(None, {name: np.asarray(inputs[name][batch]) for name in names})
    except Exception as e:  # ONNX Runtime's errors share no base class below Exception
        raise SourceError(f"{request.spec}: ONNX Runtime fails on it: {first_line(e)}") from e


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Return ``model`` in ONNX Runtime without graph optimization: the reference."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _with_shapes(model: onnx.ModelProto, request: SourceRequest) -> onnx.ModelProto:
    """Return ``model`` with the sizes that are declared: also where the file fixes others."""
    if not request.inputs:
        return model
    inputs = graph_inputs(model)
    found = [_info(i, Path(request.spec)) for i in inputs]
    changed = False
    for value, (wanted, _) in zip(
        inputs, matched(request.inputs, found, request.spec, renames=False), strict=True
    ):
        if wanted is None:
            continue
        dims = value.type.tensor_type.shape.dim
        for axis, (dim, size) in enumerate(zip(dims, wanted.shape, strict=True)):
            if (dim.dim_value if dim.dim_value > 0 else -1) == size:
                continue
            changed = True
            dim.Clear()
            if size == -1:
                dim.dim_param = "batch" if axis == 0 else f"{wanted.name}_{axis}"
            else:
                dim.dim_value = size
    return _with_new_outputs(model, request) if changed else model


def _with_new_outputs(model: onnx.ModelProto, request: SourceRequest) -> onnx.ModelProto:
    # Shapes of the old sizes would contradict the new ones.
    del model.graph.value_info[:]
    for output in model.graph.output:
        for dim in output.type.tensor_type.shape.dim:
            dim.Clear()
    try:
        return shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (shape_inference.InferenceError, ValueError, RuntimeError) as e:
        shapes = ", ".join(f"{i.name} {list(i.shape)}" for i in request.inputs)
        raise SourceError(
            f"{request.spec}: cannot take the declared sizes ({shapes}): {first_line(e)}",
            hint="Inside, it computes with other sizes; export it again with those you want.",
        ) from e


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return shape_inference.infer_shapes(model, data_prop=True)
    except (shape_inference.InferenceError, ValueError, RuntimeError):
        return model


def _output_infos(
    model: onnx.ModelProto,
    inferred: onnx.ModelProto,
    inputs: Sequence[TensorInfo],
    request: SourceRequest,
) -> tuple[TensorInfo, ...]:
    path = Path(request.spec)
    outputs = tuple(_info(o, path) for o in inferred.graph.output)
    open_ = [axis for i in inputs for axis, size in enumerate(i.shape) if size == -1]
    is_known = all(-1 not in o.shape[1:] and o.shape for o in outputs)
    has_batch = all(i.shape[:1] == (-1,) for i in inputs)
    if any(open_) or (open_ and not has_batch) or (is_known and not request.inputs):
        return outputs
    try:
        one, two = (_probe(model, inputs, size) for size in _PROBED_BATCHES)
    except Exception as e:  # ONNX Runtime's errors share no base class below Exception
        if not request.inputs or any(i.datatype.startswith(("INT", "UINT")) for i in inputs):
            # Zeros may be no valid integers: the graph's own word must do.
            return outputs
        shapes = ", ".join(f"{i.name} {list(i.shape)}" for i in inputs)
        raise SourceError(
            f"{request.spec}: ONNX Runtime fails on the sizes {shapes}: {first_line(e)}",
            hint="Give sizes that the model can take with --input NAME=SHAPE.",
        ) from e
    return tuple(
        TensorInfo(
            o.name,
            o.datatype,
            tuple(x if x == y else -1 for x, y in zip(a.shape, b.shape, strict=True)),
        )
        for o, a, b in zip(outputs, one, two, strict=True)
    )


def _probe(model: onnx.ModelProto, inputs: Sequence[TensorInfo], batch: int) -> list[NDArray[Any]]:
    generator = np.random.default_rng(0)
    feeds = {}
    for info in inputs:
        shape = tuple(batch if size == -1 else size for size in info.shape)
        dtype = np.dtype(NUMPY_NAMES[info.datatype])
        values = generator.random(shape) if dtype.kind == "f" else np.zeros(shape)
        feeds[info.name] = np.asarray(values, dtype)
    found: list[NDArray[Any]] = session_of(model).run(None, feeds)
    return found


def _notes(opset: int, request: SourceRequest, path: Path) -> tuple[str, ...]:
    notes = []
    if 0 < opset < onnx_graph.TARGET_OPSET:
        notes.append(f"converted from opset {opset} to {onnx_graph.TARGET_OPSET}")
    model = _bare(path)
    inputs = graph_inputs(model)
    found = [_info(i, path) for i in inputs]
    if request.inputs:
        for wanted, actual in matched(request.inputs, found, request.spec, renames=False):
            pairs = zip(wanted.shape, actual.shape, strict=True) if wanted is not None else ()
            if any(size not in {-1, said} for said, size in pairs):
                shape = list(wanted.shape) if wanted is not None else []
                notes.append(
                    f"input {actual.name} taken as {shape}; the file fixes {list(actual.shape)}"
                )
    return tuple(notes)


def _bare(path: Path) -> onnx.ModelProto:
    """Return the checked model without its external data: that drops where the data lies."""
    return onnx.load(str(path), load_external_data=False)


def _ranks(graph: onnx.GraphProto) -> dict[str, int]:
    ranks = {i.name: len(i.dims) for i in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.HasField("shape"):
            ranks[value.name] = len(value.type.tensor_type.shape.dim)
    return ranks


def _info(value: onnx.ValueInfoProto, path: Path) -> TensorInfo:
    if not value.type.HasField("tensor_type"):
        kind = value.type.WhichOneof("value") or "nothing"
        raise SourceError(
            f"{path}: {value.name} is a {kind.removesuffix('_type')}, not a tensor",
            hint="Export the model so that it takes and gives plain tensors (ZipMap off).",
        )
    tensor = value.type.tensor_type
    try:
        datatype = DATATYPES[onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name]
    except (KeyError, TypeError) as e:
        raise SourceError(
            f"{path}: {value.name} has an element type that the wire does not know"
        ) from e
    shape = tuple(d.dim_value if d.dim_value > 0 else -1 for d in tensor.shape.dim)
    return TensorInfo(value.name, datatype, shape)  # type: ignore[arg-type]
