"""Small questions about ONNX graphs that several steps ask. Used in worker processes only."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference
from onnxruntime.quantization.shape_inference import quant_pre_process

from aid_edge.errors import ConversionError

COMPUTE = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
"""Operators that do the arithmetic and can do it in integers."""

TRANSFORMER = frozenset(
    {"LayerNormalization", "Gelu", "Erf", "SkipLayerNormalization", "Attention"}
)
"""Operators that tell a transformer, whose small float operators are better left alone:
quantizing each of them costs more conversions than it saves."""

NOT_FUSED = frozenset({"ConvTranspose"})
"""ONNX Runtime's processors have no integer kernel for it: codes would only cost accuracy."""

SUBGRAPHS = frozenset({"If", "Loop", "Scan"})


class Graph:
    """Who makes and who reads the tensors of a model's main graph; a snapshot."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes = {node.name: node for node in graph.node}
        self.makers = {o: node for node in graph.node for o in node.output if o}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                if name:
                    self.readers[name].append(node)
        self.constants = {t.name: t for t in graph.initializer}
        self.outputs = {o.name for o in graph.output}
        values = (*graph.value_info, *graph.input, *graph.output)
        self.values = {v.name: v for v in values}

    def array(self, name: str) -> NDArray[Any] | None:
        """Return a constant, or None where ``name`` is none."""
        tensor = self.constants.get(name)
        return None if tensor is None else np.array(numpy_helper.to_array(tensor))

    def rank(self, name: str) -> int | None:
        """Return the rank of a tensor where it is known."""
        if name in self.constants:
            return len(self.constants[name].dims)
        value = self.values.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        return len(value.type.tensor_type.shape.dim)

    def is_float(self, name: str) -> bool:
        """Return whether a tensor is known to be a float32 activation."""
        value = self.values.get(name)
        return (
            value is not None
            and name not in self.constants
            and value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        )

    def has_weights(self, node: onnx.NodeProto) -> bool:
        """Return whether ``node`` multiplies by a constant."""
        return node.op_type in COMPUTE and len(node.input) > 1 and node.input[1] in self.constants

    def activations(self, operators: Iterable[str]) -> list[str]:
        """Return the float activations that nodes of these operators read or make, in order."""
        wanted = frozenset(operators)
        names = [
            name
            for node in self.nodes.values()
            if node.op_type in wanted
            for name in (*node.input, *node.output)
        ]
        return [name for name in dict.fromkeys(names) if self.is_float(name)]


def prepare(floating: Path, scratch: Path) -> onnx.ModelProto:
    """Return the float model at ``floating`` as quantizers want it: fused, named, with shapes."""
    prepared = scratch / "prepared.onnx"
    try:
        quant_pre_process(str(floating), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(str(prepared))
    finally:
        with contextlib.suppress(FileNotFoundError):
            prepared.unlink()
    make_constants_initializers(model)
    name_nodes(model)
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard operators that ``model`` uses."""
    return next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 1)


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with types and shapes of inner tensors, as far as they can be known."""
    return shape_inference.infer_shapes(model)


def set_constant(model: onnx.ModelProto, name: str, array: NDArray[Any]) -> None:
    """Replace the constant ``name`` of ``model``, or add it."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
    for existing in model.graph.initializer:
        if existing.name == name:
            existing.CopyFrom(tensor)
            return
    model.graph.initializer.append(tensor)


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node of the main graph that has none, or another's, a name of its own."""
    seen: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in seen:
            node.name = _free(node.output[0] if node.output else node.op_type, seen)
        seen.add(node.name)


def make_constants_initializers(model: onnx.ModelProto) -> None:
    """Turn ``Constant`` nodes into initializers, and take weights out of the inputs."""
    kept = []
    for node in model.graph.node:
        value = next((a for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(value.t)
            tensor.name = node.output[0]
            model.graph.initializer.append(tensor)
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    weights = {t.name for t in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def resolved(names: Iterable[str], floating: onnx.ModelProto, model: onnx.ModelProto) -> list[str]:
    """Return the nodes of ``model`` for names of nodes or outputs of the float artifact.

    Preparing for quantization fuses nodes: a node that is gone is the one that now makes its
    output, or the first output after it.

    Raises:
        ConversionError: The float artifact has no such node or output.
    """
    exact, ready = Graph(floating), Graph(model)
    found = []
    for name in names:
        node = exact.nodes.get(name) or exact.makers.get(name)
        if node is None:
            raise ConversionError(
                f"there is no operator or tensor {name!r} to keep in float",
                hint="Names are those of the runtime's own float artifact.",
            )
        found += [name] if name in ready.nodes else _successors(node, exact, ready)
    return list(dict.fromkeys(found))


def downstream(start: onnx.NodeProto, graph: Graph) -> Iterator[onnx.NodeProto]:
    """Yield ``start`` and the nodes after it, up to those that compute."""
    waiting, seen = [start], set()
    while waiting:
        node = waiting.pop()
        if node.name in seen or (node.op_type in COMPUTE and node is not start):
            continue
        seen.add(node.name)
        yield node
        waiting += [reader for name in node.output for reader in graph.readers[name]]


def _successors(node: onnx.NodeProto, exact: Graph, ready: Graph) -> list[str]:
    for _ in range(len(exact.nodes)):
        if node.output[0] in ready.makers:
            return [ready.makers[node.output[0]].name]
        readers = exact.readers[node.output[0]]
        if len(readers) != 1:
            break
        node = readers[0]
    return []


def _free(stem: str, seen: set[str]) -> str:
    name, number = stem, 1
    while name in seen:
        name, number = f"{stem}_{number}", number + 1
    return name
