"""The flatbuffer of a LiteRT model: read, cleaned and written.

Heavy: imported in worker processes only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from aid_edge.errors import ConversionError, UnsupportedModelError
from aid_edge.model import SourceModel
from aid_edge.sources.operators import applies
from device_agent.contract.profile import HardwareProfile

SIGNATURE = "serving_default"
_IDENTIFIER = b"TFL3"
_CUSTOM = schema.BuiltinOperator.CUSTOM
_NAMES = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)
}


def read(path: Path) -> tuple[Any, bytes]:
    """Return the flatbuffer in the file at ``path`` as objects, and its bytes.

    Raises:
        ConversionError: It is not a LiteRT model.
    """
    raw = path.read_bytes()
    if raw[4:8] != _IDENTIFIER:
        raise ConversionError(f"{path.name}: is not a LiteRT model")
    return schema.ModelT.InitFromPackedBuf(raw, 0), raw


def write(found: Any, raw: bytes, path: Path) -> None:
    """Write the objects ``found``, read from ``raw``, with all weights inside the flatbuffer.

    The quantizer puts weights behind the flatbuffer (``Buffer.offset``); readers that do not know
    this, such as TensorFlow Lite Micro, compute garbage from such a file without an error.
    """
    for buffer in found.buffers:
        if buffer.offset > 1:
            data = raw[buffer.offset : buffer.offset + buffer.size]
            buffer.data = np.frombuffer(data, np.uint8)
            buffer.offset = buffer.size = 0
    builder = flatbuffers.Builder(len(raw) + 2**16)
    builder.Finish(found.Pack(builder), file_identifier=_IDENTIFIER)
    path.write_bytes(bytes(builder.Output()))


def finish(path: Path, model: SourceModel, profile: HardwareProfile) -> None:
    """Rewrite a float file at ``path``: declared names, weights inside, no trace of the machine.

    Inner tensors are called ``t<number>``. These names are what ``keep_float`` means, and the
    quantizer keeps them.

    Raises:
        UnsupportedModelError: It holds an operator that the profile refuses.
        ConversionError: Its inputs or outputs are not the declared ones.
    """
    found, raw = read(path)
    check_rules(found, profile)
    found.description = "aid-edge"
    for place, graph in enumerate(found.subgraphs):
        prefix = b"" if place == 0 else b"g%d_" % place
        # Names of inner tensors hold module paths; only those of inputs and outputs mean anything.
        for number, tensor in enumerate(graph.tensors):
            tensor.name = prefix + b"t%d" % number
            # What may vary at the source is fixed in the artifact.
            tensor.shapeSignature = None
    graph = found.subgraphs[0]
    for infos, indices, side in (
        (model.inputs, graph.inputs, "inputs"),
        (model.outputs, graph.outputs, "outputs"),
    ):
        if len(infos) != len(indices):
            raise ConversionError(f"the exported model has {len(indices)} {side}, not {len(infos)}")
        for info, index in zip(infos, indices, strict=True):
            graph.tensors[index].name = info.name.encode()
    _sign(found)
    write(found, raw, path)


def finish_quantized(path: Path, model: SourceModel) -> None:
    """Rewrite a file that the quantizer made of a finished one; names are as they were.

    Where a side stays float, the quantizer calls its tensor by another name than the declared one.

    Raises:
        ConversionError: Its inputs or outputs are not the declared ones.
    """
    found, raw = read(path)
    found.description = "aid-edge"
    graph = found.subgraphs[0]
    for infos, indices in ((model.inputs, graph.inputs), (model.outputs, graph.outputs)):
        for info, index in zip(infos, indices, strict=True):
            name = info.name.encode()
            if graph.tensors[index].name == name:
                continue
            for tensor in graph.tensors:
                if tensor.name == name:
                    tensor.name = name + b"_quantized"
            graph.tensors[index].name = name
    _sign(found)
    write(found, raw, path)


def order(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Put the inputs and outputs of the file at ``path`` into the order of these names.

    Names are looked up in its signature, then among its tensors.

    Raises:
        ConversionError: It has no input or output of such a name.
    """
    found, raw = read(path)
    graph = found.subgraphs[0]
    signatures = found.signatureDefs or []
    signature = signatures[0] if len(signatures) == 1 else None
    graph.inputs = _indices(graph, graph.inputs, signature.inputs if signature else (), inputs)
    graph.outputs = _indices(graph, graph.outputs, signature.outputs if signature else (), outputs)
    found.signatureDefs = []
    write(found, raw, path)


def operators(found: Any) -> Iterator[tuple[str, int, str]]:
    """Yield operator name, highest rank and name of its first output for each operator."""
    for graph in found.subgraphs:
        for op in graph.operators or ():
            indices = [*(op.inputs if op.inputs is not None else ()), *op.outputs]
            tensors = [graph.tensors[i] for i in indices if i >= 0]
            rank = max((len(t.shape) if t.shape is not None else 0 for t in tensors), default=0)
            name = graph.tensors[op.outputs[0]].name if len(op.outputs) else b""
            yield operator_name(found, op.opcodeIndex), rank, name.decode(errors="replace")


def operator_name(found: Any, opcode_index: int) -> str:
    """Return what an operator is called; a custom one by its own name."""
    code = found.operatorCodes[opcode_index]
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    if builtin == _CUSTOM and code.customCode:
        return str(code.customCode.decode(errors="replace"))
    return str(_NAMES.get(builtin, builtin))


def check_rules(found: Any, profile: HardwareProfile) -> None:
    """Return if the profile refuses none of the operators.

    Raises:
        UnsupportedModelError: It does; names operator and tensor.
    """
    reasons = [
        f"operator {op} ({name}) is refused: {rule.reason}"
        for op, rank, name in operators(found)
        for rule in profile.numerics.op_rules
        if rule.placement == "refuse" and applies(rule, op, rank)
    ]
    if reasons:
        raise UnsupportedModelError(
            f"the exported model cannot run on {profile.id}",
            reasons[:10],
            hint="Choose another profile, or change the model where it is named.",
        )


def _indices(graph: Any, present: Any, signature: Any, names: Sequence[str]) -> list[int]:
    by_name = {graph.tensors[i].name: int(i) for i in present}
    by_name |= {entry.name: entry.tensorIndex for entry in signature}
    found = [_look_up(by_name, name) for name in names]
    if None in found or len(names) != len(present):
        known = ", ".join(sorted(name.decode(errors="replace") for name in by_name))
        raise ConversionError(f"the file has {known}; wanted {', '.join(names)}")
    return [index for index in found if index is not None]


def _look_up(by_name: dict[bytes, int], name: str) -> int | None:
    """Return the tensor of this name, also as TensorFlow decorates it."""
    for candidate in (name, f"serving_default_{name}:0", f"{name}:0"):
        if candidate.encode() in by_name:
            return by_name[candidate.encode()]
    return None


def _sign(found: Any) -> None:
    """Give the model one signature, with the names and order of its inputs and outputs."""
    graph = found.subgraphs[0]
    signature = schema.SignatureDefT()
    signature.signatureKey = SIGNATURE.encode()
    signature.subgraphIndex = 0
    for indices, name in ((graph.inputs, "inputs"), (graph.outputs, "outputs")):
        entries = []
        for index in indices:
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = graph.tensors[index].name, int(index)
            entries.append(entry)
        setattr(signature, name, entries)
    found.signatureDefs = [signature]
