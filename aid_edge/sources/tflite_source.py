"""TFLite models: read by the flatbuffer schema, run in LiteRT.

Imported only in worker processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from aid_edge.errors import SourceError, first_line
from aid_edge.sources.affine import dequantized, quantized
from aid_edge.sources.inputs import fitted
from aid_edge.sources.inspection import (
    Inspection,
    OperatorCount,
    SourceRequest,
    check_file,
    digest_of_files,
    named,
)
from device_agent.contract.tensors import Datatype, TensorInfo

_IDENTIFIER = b"TFL3"
_OPERATORS = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)
}
_TYPES: dict[int, Datatype] = {
    schema.TensorType.FLOAT32: "FP32", schema.TensorType.FLOAT16: "FP16",
    schema.TensorType.FLOAT64: "FP64", schema.TensorType.INT8: "INT8",
    schema.TensorType.UINT8: "UINT8", schema.TensorType.INT16: "INT16",
    schema.TensorType.UINT16: "UINT16", schema.TensorType.INT32: "INT32",
    schema.TensorType.UINT32: "UINT32", schema.TensorType.INT64: "INT64",
    schema.TensorType.UINT64: "UINT64", schema.TensorType.BOOL: "BOOL",
}  # fmt: skip
_INTEGERS = frozenset({"INT8", "UINT8", "INT16"})
_STATEFUL = frozenset({"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"})
_NAMED = 5


def load(request: SourceRequest) -> Any:
    """Return the interpreter of the model, its inputs sized as declared and memory allocated.

    Delegates are left out: their numbers depend on the machine.

    Raises:
        SourceError: Not a TFLite model, cut short, or with operators that LiteRT lacks.
    """
    model = read(Path(request.spec))
    return _open(request, _inputs(model, request))


def read(path: Path) -> Any:
    """Return the checked flatbuffer in the file at ``path`` as objects of its schema.

    Raises:
        SourceError: Not a TFLite model, cut short, or with custom or Flex operators.
    """
    check_file(path, "TFLite model")
    raw = path.read_bytes()
    if raw[4:8] != _IDENTIFIER:
        raise SourceError(
            f"{path}: is not a TFLite model",
            hint="Compare its size and checksum with the original.",
        )
    try:
        model = schema.ModelT.InitFromPackedBuf(raw, 0)
        graphs = model.subgraphs or []
        is_empty = not graphs or not len(graphs[0].inputs) or not len(graphs[0].outputs)
        foreign = sorted(
            {
                code.customCode.decode(errors="replace")
                for code in model.operatorCodes or ()
                if code.customCode
            }
        )
        # Whatever is used must be there: a damaged file is found out here.
        list(_operators(model))
    except Exception as e:  # a damaged flatbuffer fails in any way that bytes can
        raise SourceError(
            f"{path}: is not a whole TFLite model: {first_line(e)}",
            hint="It may be cut short; compare its size and checksum with the original.",
        ) from e
    if is_empty:
        raise SourceError(f"{path}: has no graph with inputs and outputs")
    if foreign:
        more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
        what = "TensorFlow (Flex)" if foreign[0].startswith("Flex") else "custom"
        raise SourceError(
            f"{path}: needs {what} operators, which LiteRT does not have: "
            f"{', '.join(foreign[:_NAMED])}{more}",
            hint="Convert the model with built-in operators only (TFLITE_BUILTINS).",
        )
    return model


def inspect(request: SourceRequest) -> Inspection:
    """Return the facts about the model that ``request`` names.

    Raises:
        SourceError: It cannot be read or run.
    """
    path = Path(request.spec)
    model = read(path)
    inputs = _inputs(model, request)
    interpreter = _open(request, inputs)
    count = OperatorCount()
    for operator in _operators(model):
        count.add(*operator)
    details = interpreter.get_output_details()
    graph = model.subgraphs[0]
    found = [_info(graph.tensors[i], path) for i in graph.outputs]
    names = _signature_names(model, "outputs", graph.outputs) or [o.name for o in found]
    wanted = request.output_names or tuple(names)
    outputs = tuple(
        TensorInfo(name, o.datatype, tuple(int(size) for size in detail["shape"]))
        for name, o, detail in zip(
            named(wanted, len(found), request.spec), found, details, strict=True
        )
    )
    is_quantized, notes = _numerics(model)
    if states := sorted(_STATEFUL & {use.type for use in count.uses}):
        notes = (
            *notes,
            f"keeps a state inside ({', '.join(states)}): answers depend on what came before",
        )
    return Inspection(
        inputs, outputs, count.uses, _parameters(model), digest_of_files("tflite", [path]),
        quantized=is_quantized, notes=notes,
    )  # fmt: skip


def run(
    request: SourceRequest, inputs: Mapping[str, Any], batches: Sequence[slice | int]
) -> Iterator[list[np.ndarray[Any, Any]]]:
    """Yield the outputs of the model for each slice of ``inputs``; states go on from run to run.

    Where the file takes or gives quantized integers, these are floats.

    Raises:
        SourceError: LiteRT cannot load or run it.
    """
    names = [i.name for i in _inputs(read(Path(request.spec)), request)]
    interpreter = load(request)
    details = interpreter.get_input_details()
    for batch in batches:
        try:
            for name, detail in zip(names, details, strict=True):
                array = np.asarray(inputs[name][batch])
                interpreter.set_tensor(detail["index"], quantized(array, detail))
            interpreter.invoke()
        except (RuntimeError, ValueError) as e:
            raise SourceError(f"{request.spec}: LiteRT fails on it: {first_line(e)}") from e
        yield [
            np.array(dequantized(interpreter.get_tensor(d["index"]), d))
            for d in interpreter.get_output_details()
        ]


def _inputs(model: Any, request: SourceRequest) -> tuple[TensorInfo, ...]:
    graph = model.subgraphs[0]
    path = Path(request.spec)
    found = [_info(graph.tensors[i], path) for i in graph.inputs]
    names = _signature_names(model, "inputs", graph.inputs)
    if names:
        found = [TensorInfo(n, i.datatype, i.shape) for n, i in zip(names, found, strict=True)]
    return fitted(request.inputs, found, request.spec)


def _open(request: SourceRequest, inputs: Sequence[TensorInfo]) -> Any:
    try:
        interpreter = Interpreter(
            model_path=request.spec,
            num_threads=1,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        for info, detail in zip(inputs, interpreter.get_input_details(), strict=True):
            shape = [1 if size == -1 else size for size in info.shape]
            if list(detail["shape"]) != shape:
                interpreter.resize_tensor_input(detail["index"], shape, strict=True)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as e:
        raise SourceError(
            f"{request.spec}: LiteRT refuses it: {first_line(e)}",
            hint="It may be damaged, or need operators that LiteRT does not have.",
        ) from e
    return interpreter


def _info(tensor: Any, path: Path) -> TensorInfo:
    """Return what goes in or out: floats where the file has quantized integers."""
    name = (tensor.name or b"").decode(errors="replace")
    datatype = _TYPES.get(tensor.type)
    if datatype is None:
        raise SourceError(f"{path}: {name} has an element type that the wire does not know")
    if _has_scale(tensor) and datatype in _INTEGERS:
        datatype = "FP32"
    shape = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    sizes = tuple(int(size) for size in shape) if shape is not None else ()
    return TensorInfo(name, datatype, sizes)


def _signature_names(model: Any, side: str, order: Sequence[int]) -> list[str]:
    """Return the names that the file's only signature gives to its tensors, in graph order."""
    signatures = _listed(model.signatureDefs)
    if len(signatures) != 1:
        return []
    entries = getattr(signatures[0], side) or ()
    names = {e.tensorIndex: (e.name or b"").decode(errors="replace") for e in entries}
    found = [names.get(int(i), "") for i in order]
    return found if all(found) and len(set(found)) == len(found) else []


def _operators(model: Any) -> Iterator[tuple[str, int, str]]:
    for graph in model.subgraphs:
        for op in _listed(graph.operators):
            code = model.operatorCodes[op.opcodeIndex]
            builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
            outputs = _listed(op.outputs)
            tensors = [graph.tensors[int(i)] for i in _listed(op.inputs) + outputs if i >= 0]
            rank = max((len(t.shape) for t in tensors if t.shape is not None), default=0)
            name = (graph.tensors[outputs[0]].name if outputs else None) or b""
            yield _OPERATORS.get(builtin, str(builtin)), rank, name.decode(errors="replace")


def _listed(values: Any) -> list[Any]:
    """Return the values of a list in the flatbuffer, which may be left out."""
    return [] if values is None else list(values)


def _parameters(model: Any) -> int:
    """Return how many values are stored, those of weights in every format."""
    total = 0
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            buffer = model.buffers[tensor.buffer] if tensor.buffer else None
            size = buffer is not None and (buffer.offset > 1 or buffer.data is not None)
            if size and tensor.shape is not None:
                total += int(np.prod(tensor.shape))
    return total


def _numerics(model: Any) -> tuple[bool, tuple[str, ...]]:
    """Return whether the file computes in integers, and what to say of its stored weights."""
    graph = model.subgraphs[0]
    types = [_TYPES.get(graph.tensors[i].type, "") for i in (*graph.inputs, *graph.outputs)]
    integer = False
    stored: set[str] = set()
    for tensor in graph.tensors:
        kind = _TYPES.get(tensor.type, "")
        if kind in _INTEGERS and _has_scale(tensor):
            integer = True
        if tensor.buffer and model.buffers[tensor.buffer].data is not None and kind:
            stored.add(kind)
    notes = []
    if integer:
        inside = "inputs and outputs too" if set(types) & _INTEGERS else "inputs and outputs float"
        notes.append(f"is quantized already ({inside}): it is passed through, not quantized again")
    elif "FP16" in stored:
        notes.append("its weights are stored as 16-bit floats")
    return integer, tuple(notes)


def _has_scale(tensor: Any) -> bool:
    found = tensor.quantization
    return found is not None and found.scale is not None and len(found.scale) > 0
