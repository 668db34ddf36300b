"""Bias correction: biases make up for the mean error of quantized layers.

Empirical correction after Nagel et al., 2019 (https://arxiv.org/abs/1906.04721, section 4.2 and
appendix D): the mean difference per channel between a layer's quantized and float output is taken
off its bias. Each layer is measured on its float inputs, quantized, so that all are measured in
one pass: once every layer is right on average, no mean error is left to be passed on.
Heavy: used in worker processes only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from aid_edge.isolate import progress
from converters.onnx_feeds import Feeds, run, session_of
from converters.onnx_graph import Graph, inferred, opset_of, set_constant

MAX_SAMPLES = 64
"""Means of channels settle after few samples, and each costs two inferences."""

_PREFIX = "__corrected_"
_AXES_ARE_INPUTS = 18
"""Opset from which ReduceMean takes its axes as an input."""


@dataclass(frozen=True)
class _Bias:
    """Where the bias of a layer lies: input ``index`` of ``holder``."""

    holder: onnx.NodeProto
    index: int


def add_biases(model: onnx.ModelProto) -> None:
    """Give every convolution with weights that has no bias one of zeros, in place."""
    graph = Graph(model)
    for node in model.graph.node:
        if node.op_type not in {"Conv", "Gemm"} or not graph.has_weights(node):
            continue
        if len(node.input) > 2 and node.input[2]:
            continue
        weights = graph.array(node.input[1])
        if weights is None:
            continue
        name = f"{node.name}__bias"
        set_constant(model, name, np.zeros(_channels(node, weights), np.float32))
        del node.input[2:]
        node.input.append(name)


def correct_biases(model: onnx.ModelProto, quantized: onnx.ModelProto, feeds: Feeds) -> int:
    """Change biases of the float ``model`` in place so that it quantizes without mean errors.

    Args:
        model: Float; what ``quantized`` was made from.
        quantized: QDQ, with the same node names.
        feeds: Calibration inputs, of which ``MAX_SAMPLES`` are used.

    Returns:
        The number of layers that were corrected.
    """
    errors = mean_errors(model, quantized, feeds)
    graph = Graph(model)
    corrected = 0
    for name, error in errors.items():
        bias = _bias_of(graph.nodes[name], graph)
        held = None if bias is None else graph.array(bias.holder.input[bias.index])
        if bias is None or held is None or held.size not in {1, error.size}:
            continue
        # A bias may be shared by layers that need different corrections.
        own = f"{name}__corrected"
        set_constant(model, own, (held.reshape(-1) - error).astype(np.float32))
        bias.holder.input[bias.index] = own
        corrected += 1
    return corrected


def mean_errors(
    model: onnx.ModelProto, quantized: onnx.ModelProto, feeds: Feeds
) -> dict[str, NDArray[np.float64]]:
    """Return for each quantized layer its mean error per output channel, by node name."""
    combined = inferred(model)
    exact, noisy = Graph(combined), Graph(quantized)
    names = [
        node.name
        for node in list(combined.graph.node)
        if _bias_of(node, exact) is not None and _copy(node, exact, noisy, combined)
    ]
    if not names:
        return {}
    outputs = [f"{_PREFIX}mean_{name}" for name in names]
    session = session_of(combined, outputs)
    sums: list[NDArray[np.float64] | float] = [0.0] * len(names)
    count = min(feeds.count, MAX_SAMPLES)
    for done, feed in zip(range(1, count + 1), feeds, strict=False):
        for i, value in enumerate(run(session, outputs, feed)):
            sums[i] = sums[i] + value.astype(np.float64).reshape(-1)
        progress(0.86 + 0.06 * done / count, "correct biases")
    return {name: np.asarray(total) / count for name, total in zip(names, sums, strict=True)}


def _copy(node: onnx.NodeProto, exact: Graph, noisy: Graph, combined: onnx.ModelProto) -> bool:
    """Add the quantized twin of ``node``, fed by float tensors, and the mean of its error."""
    twin = noisy.nodes.get(node.name)
    rank = exact.rank(node.output[0])
    if twin is None or twin.op_type != node.op_type or rank is None:
        return False
    added: list[onnx.NodeProto] = []
    inputs = []
    for name in twin.input:
        found = _quantized_input(name, node.name, noisy, exact, added)
        if found is None:
            return False
        inputs.append(found)
    if len(added) < 2:
        return False
    copy = onnx.NodeProto()
    copy.CopyFrom(twin)
    copy.name = f"{_PREFIX}{node.name}"
    end = f"{_PREFIX}out_{node.name}"
    del copy.input[:], copy.output[:]
    copy.input.extend(inputs)
    copy.output.append(end)
    channel = 1 if node.op_type == "Conv" else rank - 1
    rest = [i for i in range(rank) if i != channel]
    for name in {n for a in added for n in a.input} | set(inputs):
        original = name.removeprefix(_constant_prefix(node.name))
        if name.startswith(_constant_prefix(node.name)) and original in noisy.constants:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(noisy.constants[original])
            tensor.name = name
            combined.graph.initializer.append(tensor)
    combined.graph.node.extend([*added, copy])
    combined.graph.node.append(
        onnx.helper.make_node("Sub", [end, node.output[0]], [f"{_PREFIX}error_{node.name}"])
    )
    combined.graph.node.append(_mean(node.name, rest, combined))
    return True


def _constant_prefix(node: str) -> str:
    return f"{_PREFIX}of_{node}_"


def _quantized_input(
    name: str, node: str, noisy: Graph, exact: Graph, added: list[onnx.NodeProto]
) -> str | None:
    """Return ``name`` as it is called in the combined graph, after adding what makes it."""
    prefix = _constant_prefix(node)
    if not name:
        return ""
    if name in noisy.constants:
        return prefix + name
    maker = noisy.makers.get(name)
    if maker is None or maker.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
        # The float tensor itself, if it has the same name there.
        return name if name in exact.makers or name in exact.values else None
    inputs = []
    for part in maker.input:
        found = _quantized_input(part, node, noisy, exact, added)
        if found is None:
            return None
        inputs.append(found)
    copy = onnx.NodeProto()
    copy.CopyFrom(maker)
    copy.name = f"{prefix}{maker.name}_{len(added)}"
    del copy.input[:], copy.output[:]
    copy.input.extend(inputs)
    copy.output.append(f"{prefix}{name}_{len(added)}")
    added.append(copy)
    return f"{prefix}{name}_{len(added) - 1}"


def _mean(node: str, axes: list[int], model: onnx.ModelProto) -> onnx.NodeProto:
    names = ([f"{_PREFIX}error_{node}"], [f"{_PREFIX}mean_{node}"])
    if opset_of(model) < _AXES_ARE_INPUTS:
        return onnx.helper.make_node("ReduceMean", *names, axes=axes, keepdims=0)
    held = f"{_PREFIX}axes_{node}"
    set_constant(model, held, np.array(axes, np.int64))
    return onnx.helper.make_node("ReduceMean", [*names[0], held], names[1], keepdims=0)


def _bias_of(node: onnx.NodeProto, graph: Graph) -> _Bias | None:
    """Return where the bias of a layer with weights lies, or None where it has no place."""
    if not graph.has_weights(node) or node.op_type == "ConvTranspose":
        return None
    if node.op_type in {"Conv", "Gemm"}:
        has_bias = len(node.input) > 2 and node.input[2] in graph.constants
        return _Bias(node, 2) if has_bias and _is_plain(node) else None
    # A matrix product: the Add after it.
    readers = graph.readers[node.output[0]]
    if len(readers) != 1 or readers[0].op_type != "Add" or node.output[0] in graph.outputs:
        return None
    add = readers[0]
    index = 1 if add.input[0] == node.output[0] else 0
    held: Any = graph.constants.get(add.input[index])
    if held is None or len(held.dims) != 1:
        return None
    return _Bias(add, index)


def _is_plain(node: onnx.NodeProto) -> bool:
    """Return whether the bias is added as it is: Gemm may scale it."""
    return next((a.f for a in node.attribute if a.name == "beta"), 1.0) == 1.0


def _channels(node: onnx.NodeProto, weights: NDArray[Any]) -> int:
    if node.op_type == "Conv":
        return int(weights.shape[0])
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return int(weights.shape[0 if transposed else 1])
