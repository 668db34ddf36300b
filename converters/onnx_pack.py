"""Takes out of a QDQ model what ONNX Runtime does not need: of a small net that is a sixth.

Heavy: imported in worker processes only.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel

from converters.onnx_graph import Graph

_QUANTIZE = "QuantizeLinear"
_DEQUANTIZE = "DequantizeLinear"
_BIASED = frozenset({"Conv", "Gemm"})


def pack(model: onnx.ModelProto) -> None:
    """Make a QDQ model smaller, in place, without changing what it computes.

    Names of operators and of what they make stay: layers are compared with the float model's by
    them. So do the zero points of weights, though zero is the default: ONNX Runtime fails without
    them where it makes weights unsigned. Its quantizer also leaves nodes in an order that ONNX
    does not allow (IR specification, "Graphs": sorted topologically).
    """
    dequantize_biases(model)
    _drop_defaults(model)
    _drop_unread(model)
    _shorten(model)
    del model.graph.value_info[:]
    ONNXModel(model).topological_sort()


def dequantize_biases(model: onnx.ModelProto) -> int:
    """Store biases as the floats that their integers stand for, in place; return how many.

    Half the bytes, and a node less: ONNX Runtime makes the same integers of them when it loads the
    model (its pass WeightBiasQuantization, which came with 1.20).
    """
    graph = Graph(model)
    made: dict[str, onnx.TensorProto] = {}
    for node in model.graph.node:
        if node.op_type not in _BIASED or len(node.input) < 3:
            continue
        maker = graph.makers.get(node.input[2])
        weights = graph.makers.get(node.input[1])
        if maker is None or weights is None or {maker.op_type, weights.op_type} != {_DEQUANTIZE}:
            continue
        codes, scale = graph.array(maker.input[0]), graph.array(maker.input[1])
        if codes is None or scale is None or codes.dtype != np.int32 or codes.ndim != 1:
            continue
        name = maker.output[0]
        values = codes.astype(np.float32) * scale.astype(np.float32).reshape(-1)
        made[name] = numpy_helper.from_array(values, name)
    kept = [n for n in model.graph.node if not set(n.output) & set(made)]
    _replace(model.graph.node, kept)
    model.graph.initializer.extend(made.values())
    return len(made)


def _drop_defaults(model: onnx.ModelProto) -> None:
    """Leave out attributes that say what holds without them."""
    versions = {o.domain: o.version for o in model.opset_import}
    for node in _nodes(model):
        if node.domain not in {"", "ai.onnx"} or not node.attribute:
            continue
        defaults = defs.get_schema(node.op_type, versions.get("", 1), "").attributes
        kept = [a for a in node.attribute if not _is_default(a, defaults.get(a.name), node)]
        _replace(node.attribute, kept)


def _is_default(
    given: onnx.AttributeProto, known: defs.OpSchema.Attribute | None, node: onnx.NodeProto
) -> bool:
    if given.ref_attr_name:
        return False
    value = helper.get_attribute_value(given)
    if node.op_type == "Conv" and given.name in {"strides", "dilations"}:
        return all(v == 1 for v in value)
    if node.op_type == "Conv" and given.name == "pads":
        automatic = [a for a in node.attribute if a.name == "auto_pad" and a.s != b"NOTSET"]
        return not automatic and all(v == 0 for v in value)
    if known is None or known.default_value.type == onnx.AttributeProto.UNDEFINED:
        return False
    return bool(value == helper.get_attribute_value(known.default_value))


def _drop_unread(model: onnx.ModelProto) -> None:
    read = {name for node in _nodes(model) for name in node.input}
    read |= {o.name for o in model.graph.output}
    _replace(model.graph.initializer, [t for t in model.graph.initializer if t.name in read])


def _shorten(model: onnx.ModelProto) -> None:
    """Give short names to constants and to what quantization put between the operators."""
    graph = model.graph
    if any(a.HasField("g") for node in graph.node for a in node.attribute):
        return  # inner graphs read names of the outer one
    between = [n for n in graph.node if n.op_type in {_QUANTIZE, _DEQUANTIZE}]
    fixed = {v.name for v in (*graph.input, *graph.output)}
    renamed = {t.name for t in graph.initializer} | {o for n in between for o in n.output}
    taken = fixed | {o for n in graph.node for o in n.output} | renamed
    names = dict(zip(sorted(renamed - fixed), _free(taken), strict=False))
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
        tensor.ClearField("doc_string")
    for node in graph.node:
        for values in (node.input, node.output):
            for i, name in enumerate(values):
                values[i] = names.get(name, name)
        node.ClearField("doc_string")
    for node in between:
        node.ClearField("name")


def _free(taken: set[str]) -> Iterator[str]:
    number = 0
    while True:
        name = f"{number:x}"
        if name not in taken:
            yield name
        number += 1


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        for node in graph.node:
            yield node
            waiting += [a.g for a in node.attribute if a.HasField("g")]


def _replace(field: object, values: list[object]) -> None:
    """Set a repeated field; its messages are copied first, for clearing it ends them."""
    copies = [type(v).FromString(v.SerializeToString()) for v in values]  # type: ignore[attr-defined]
    del field[:]  # type: ignore[attr-defined]
    field.extend(copies)  # type: ignore[attr-defined]
