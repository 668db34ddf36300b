"""From a PyTorch or Keras model to a clean float ``.tflite`` file.

Heavy: imported in worker processes only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from aid_edge.errors import ConversionError, UnsupportedModelError
from aid_edge.isolate import progress
from aid_edge.model import SourceModel
from aid_edge.sources.opening import is_on_tensorflow, load_module, request_of
from aid_edge.sources.operators import applies
from device_agent.contract.profile import HardwareProfile

_OPERATORS = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)
}
_IDENTIFIER = b"TFL3"


def export(model: SourceModel, axes: Mapping[str, tuple[int, ...]], to: Path) -> None:
    """Write ``model`` as a float file with a batch of one.

    Args:
        model: A PyTorch or Keras model.
        axes: Inputs whose channels move to the end.
        to: File to write.

    Raises:
        ConversionError: The toolchain failed.
    """
    progress(0.1, "export to LiteRT")
    if is_on_tensorflow(model.framework):
        from converters import keras_tensorflow  # noqa: PLC0415 -- only there with its extra

        keras_tensorflow.to_litert(model, to)
        _order_by_name(to, model)
    else:
        _export_module(model, axes, to)


def _export_module(model: SourceModel, axes: Mapping[str, tuple[int, ...]], to: Path) -> None:
    import litert_torch  # noqa: PLC0415 -- not there where TensorFlow exports

    from aid_edge.sources import torch_source  # noqa: PLC0415

    module = torch_source.Flat(load_module(model)).eval()
    examples = list(torch_source.example_inputs(request_of(model), batch=1))
    moved = [i for i, tensor in enumerate(model.inputs) if tensor.name in axes]
    try:
        if moved:
            module = litert_torch.to_channel_last_io(module, args=moved).eval()
            for i in moved:
                examples[i] = examples[i].permute(*axes[model.inputs[i].name]).contiguous()
        litert_torch.convert(module, tuple(examples)).export(str(to))
    except Exception as e:  # the toolchain raises whatever its many parts raise
        lines = [line.strip() for line in str(e).splitlines() if line.strip()]
        raise ConversionError(
            f"{model.spec}: the LiteRT toolchain failed: {(lines or [type(e).__name__])[0][:300]}",
            hint="`aid-edge inspect` lists the operators; the log says which one failed.",
        ) from e


def tools(model: SourceModel) -> dict[str, str]:
    """Return the versions of what exports ``model``."""
    if is_on_tensorflow(model.framework):
        from converters import keras_tensorflow  # noqa: PLC0415 -- only there with its extra

        return keras_tensorflow.tools("ai-edge-litert")
    names = ["torch", "litert-torch", "litert-converter", "ai-edge-litert"]
    if model.framework == "keras":
        names.append("keras")
    return {name: metadata.version(name) for name in names}


def read(path: Path) -> tuple[Any, bytes]:
    """Return the flatbuffer in the file at ``path`` as objects, and its bytes."""
    raw = path.read_bytes()
    return schema.ModelT.InitFromPackedBuf(raw, 0), raw


def finish(path: Path, model: SourceModel, profile: HardwareProfile) -> None:
    """Rewrite the file at ``path``: declared names, weights inside, no trace of the machine.

    The quantizer puts weights behind the flatbuffer (``Buffer.offset``); readers that do not know
    this, such as TensorFlow Lite Micro, compute garbage from such a file without an error.

    Raises:
        UnsupportedModelError: It holds an operator that the profile refuses.
    """
    progress(0.95, "finish")
    found, raw = read(path)
    _check_rules(found, profile)
    for buffer in found.buffers:
        if buffer.offset > 1:
            data = raw[buffer.offset : buffer.offset + buffer.size]
            buffer.data = np.frombuffer(data, np.uint8)
            buffer.offset = buffer.size = 0
    found.description = "aid-edge"
    _rename(found, model)
    _write(found, len(raw), path)


def _write(found: Any, size_bytes: int, path: Path) -> None:
    builder = flatbuffers.Builder(size_bytes + 2**16)
    builder.Finish(found.Pack(builder), file_identifier=_IDENTIFIER)
    path.write_bytes(bytes(builder.Output()))


def _order_by_name(path: Path, model: SourceModel) -> None:
    """Put inputs and outputs of the file at ``path`` into the order of their signature's names."""
    found, raw = read(path)
    if len(found.signatureDefs or ()) != 1:
        raise ConversionError(f"{model.spec}: the TensorFlow Lite converter wrote no signature")
    graph, signature = found.subgraphs[0], found.signatureDefs[0]
    for side in (signature.inputs, signature.outputs):
        side.sort(key=lambda entry: entry.name)
    graph.inputs = [entry.tensorIndex for entry in signature.inputs]
    graph.outputs = [entry.tensorIndex for entry in signature.outputs]
    _write(found, len(raw), path)


def operators(found: Any) -> Iterator[tuple[str, int, str]]:
    """Yield operator name, highest rank and name of its first output for each operator."""
    for graph in found.subgraphs:
        for op in graph.operators or ():
            code = found.operatorCodes[op.opcodeIndex]
            builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
            tensors = [graph.tensors[i] for i in (*op.inputs, *op.outputs) if i >= 0]
            rank = max((len(t.shape) if t.shape is not None else 0 for t in tensors), default=0)
            name = graph.tensors[op.outputs[0]].name if len(op.outputs) else b""
            yield _OPERATORS.get(builtin, str(builtin)), rank, name.decode(errors="replace")


def _check_rules(found: Any, profile: HardwareProfile) -> None:
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


def _rename(found: Any, model: SourceModel) -> None:
    graph = found.subgraphs[0]
    for tensor in graph.tensors:
        # Names of inner tensors hold module paths; only those of inputs and outputs mean anything.
        tensor.name = b""
    for number, tensor in enumerate(graph.tensors):
        tensor.name = b"t%d" % number
    inputs = [t.name for t in model.inputs]
    outputs = [t.name for t in model.outputs]
    for name, index in (
        *zip(inputs, graph.inputs, strict=True),
        *zip(outputs, graph.outputs, strict=True),
    ):
        graph.tensors[index].name = name.encode()
    for signature in found.signatureDefs or ():
        for side, indices in ((signature.inputs, graph.inputs), (signature.outputs, graph.outputs)):
            for entry in side:
                entry.name = graph.tensors[entry.tensorIndex].name
            order = list(indices)
            side.sort(key=lambda entry, order=order: order.index(entry.tensorIndex))
