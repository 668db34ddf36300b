"""Inner tensors of a float ONNX model and its QDQ twin. Imported in worker processes only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference

from aid_edge.converter import Arrays
from aid_edge.diagnose.records import Layer, decibel
from aid_edge.errors import ConversionError

HELD_BYTES = 256 * 2**20
"""Inner tensors that are held at a time; models with more are run several times per sample."""

_UNKNOWN_BYTES = HELD_BYTES // 16
_FLOAT = onnx.TensorProto.FLOAT

_COMPUTE = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
_OTHERS = frozenset(
    {"Add", "Sub", "Mul", "Div", "Concat", "Sigmoid", "HardSigmoid", "HardSwish", "Softmax",
     "LeakyRelu", "PRelu", "Tanh", "AveragePool", "GlobalAveragePool", "ReduceMean", "Resize",
     "LayerNormalization", "InstanceNormalization", "Where", "Gelu", "Pow"}
)  # fmt: skip
# Folded into the layer before them by the quantizer: their output stands for the layer's.
_FUSED = frozenset({"Relu", "Clip"})
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def open_probe(floating: Path, quantized: Path) -> OnnxProbe:
    """Return both models, loaded; see :class:`aid_edge.diagnose.compare.Probe`.

    Raises:
        ConversionError: The runtime refuses one of them.
    """
    return OnnxProbe(floating, quantized)


class _Graph:
    """Who makes and who reads the tensors of a model."""

    def __init__(self, path: Path) -> None:
        self.model = onnx.load(str(path))
        graph = self.model.graph
        self.producer = {o: node for node in graph.node for o in node.output if o}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.constants = {t.name: t for t in graph.initializer}
        self.outputs = {o.name for o in graph.output}

    def array(self, name: str) -> NDArray[Any] | None:
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)


class OnnxProbe:
    """A float model and its QDQ twin with their layers' outputs made readable."""

    def __init__(self, floating: Path, quantized: Path) -> None:
        exact, noisy = _Graph(floating), _Graph(quantized)
        found = list(_matched(exact, noisy))
        self.layers = tuple(layer for layer, _, _ in found)
        pairs = [(a, b) for _, a, b in found]
        self._groups = _grouped(exact, pairs)
        self._exact = _session(exact.model, [a for a, _ in pairs], floating)
        self._noisy = _session(noisy.model, [b for _, b in pairs], quantized)
        self.shapes = {
            i.name: tuple(d if isinstance(d, int) else -1 for d in i.shape)
            for i in self._exact.get_inputs()
        }

    def run(self, feeds: Arrays) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        """Yield layer index, float output and quantized output of one inference."""
        for group in self._groups:
            exact = self._exact.run([a for _, a, _ in group], dict(feeds))
            noisy = self._noisy.run([b for _, _, b in group], dict(feeds))
            for (index, _, _), a, b in zip(group, exact, noisy, strict=True):
                yield index, a, b


def _matched(exact: _Graph, noisy: _Graph) -> Iterator[tuple[Layer, str, str]]:
    """Yield each layer with the tensor of its output in the float and in the quantized model."""
    nodes = {node.name: node for node in noisy.model.graph.node if node.name}
    makers: dict[str, int] = {}
    index = 0
    kinds = _float_tensors(exact)
    for node in exact.model.graph.node:
        sources = {makers[name] for name in node.input if name in makers}
        if node.op_type not in _COMPUTE | _OTHERS or not node.output or not node.name:
            _inherit(makers, node, sources)
            continue
        twin = nodes.get(node.name)
        ends = [node.output[0], *_fused_outputs(exact, node)]
        end = next((name for name in reversed(ends) if _is_in(noisy, name)), None)
        is_float = ends[0] in kinds or kinds == frozenset()
        if twin is None or end is None or not is_float:
            _inherit(makers, node, sources)
            continue
        seen, bounds = _as_seen(noisy, end)
        yield (
            Layer(
                node.name, node.op_type, _placed(noisy, twin), bounds, tuple(sorted(sources)),
                _weight_db(exact, node, noisy, twin),
            ),
            end,
            seen,
        )  # fmt: skip
        makers |= dict.fromkeys([*ends, *node.output[1:]], index)
        index += 1


def _inherit(makers: dict[str, int], node: onnx.NodeProto, sources: set[int]) -> None:
    """Let a node that is no layer stand for the layer before it."""
    if sources:
        for name in node.output:
            makers.setdefault(name, max(sources))


def _fused_outputs(graph: _Graph, node: onnx.NodeProto) -> list[str]:
    name = node.output[0]
    readers = graph.readers[name]
    if name not in graph.outputs and len(readers) == 1 and readers[0].op_type in _FUSED:
        return [readers[0].output[0]]
    return []


def _is_in(graph: _Graph, name: str) -> bool:
    return name in graph.producer


def _float_tensors(graph: _Graph) -> frozenset[str]:
    """Return the names of float tensors, or nothing where types cannot be inferred."""
    inferred = shape_inference.infer_shapes(graph.model).graph
    values = (*inferred.value_info, *inferred.output)
    return frozenset(v.name for v in values if v.type.tensor_type.elem_type == _FLOAT)


def _as_seen(graph: _Graph, name: str) -> tuple[str, tuple[float, float] | None]:
    """Return what readers of a tensor see, after its quantization, and the range it can hold."""
    maker = graph.producer[name]
    if maker.op_type == _DEQUANTIZE:
        # A graph output: the quantized value has its name.
        return name, _bounds(graph, maker)
    for reader in graph.readers[name]:
        if reader.op_type == _QUANTIZE and reader.input[0] == name:
            for last in graph.readers[reader.output[0]]:
                if last.op_type == _DEQUANTIZE:
                    return last.output[0], _bounds(graph, last)
    return name, None


def _bounds(graph: _Graph, node: onnx.NodeProto) -> tuple[float, float] | None:
    scale = graph.array(node.input[1])
    point = graph.array(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
    if scale is None or point is None or scale.size != 1:
        return None
    codes = np.iinfo(point.dtype)
    zero, step = float(point.reshape(-1)[0]), float(scale.reshape(-1)[0])
    # Half a step more still rounds to the last code.
    return (codes.min - zero - 0.5) * step, (codes.max - zero + 0.5) * step


def _placed(graph: _Graph, node: onnx.NodeProto) -> Any:
    makers = [graph.producer[name] for name in node.input if name in graph.producer]
    if not makers:
        return "float"
    integer = all(m.op_type == _DEQUANTIZE for m in makers[:2])
    return "integer" if integer else "float"


def _weight_db(
    exact: _Graph, node: onnx.NodeProto, noisy: _Graph, twin: onnx.NodeProto
) -> float | None:
    """Return signal to noise of the worst channel of a layer's weights, in dB."""
    if node.op_type not in _COMPUTE or len(node.input) < 2 or len(twin.input) < 2:
        return None
    maker = noisy.producer.get(twin.input[1])
    weights = exact.array(node.input[1])
    if weights is None or maker is None or maker.op_type != _DEQUANTIZE:
        return None
    codes, scale = noisy.array(maker.input[0]), noisy.array(maker.input[1])
    if codes is None or scale is None or codes.shape != weights.shape:
        return None
    axis = next((a.i for a in maker.attribute if a.name == "axis"), 1) % max(weights.ndim, 1)
    shape = [-1 if i == axis else 1 for i in range(weights.ndim)] if scale.size > 1 else []
    error = codes.astype(np.float64) * scale.reshape(shape) - weights
    channel = 0 if node.op_type == "Conv" else axis
    rest = tuple(i for i in range(weights.ndim) if i != channel)
    # The largest weight is exact by construction; what the others keep is what counts.
    power = np.median(weights.astype(np.float64) ** 2, axis=rest)
    noise = np.mean(error**2, axis=rest)
    live = power > 0
    return decibel(float((noise[live] / power[live]).max())) if live.any() else None


def _grouped(graph: _Graph, pairs: list[tuple[str, str]]) -> list[list[tuple[int, str, str]]]:
    """Return the pairs in groups whose tensors fit ``HELD_BYTES``; equal tensors only once."""
    inferred = shape_inference.infer_shapes(graph.model).graph
    sizes = {v.name: _bytes(v) for v in (*inferred.value_info, *inferred.output)}
    groups: list[list[tuple[int, str, str]]] = []
    held = HELD_BYTES
    for index, (a, b) in enumerate(pairs):
        size = 2 * sizes.get(a, _UNKNOWN_BYTES)
        if held + size > HELD_BYTES or not groups:
            groups.append([])
            held = 0
        groups[-1].append((index, a, b))
        held += size
    return groups


def _bytes(value: onnx.ValueInfoProto) -> int:
    dims = value.type.tensor_type.shape.dim
    if not value.type.tensor_type.HasField("shape"):
        return _UNKNOWN_BYTES
    return 4 * int(np.prod([d.dim_value or 1 for d in dims], dtype=np.int64))


def _session(model: onnx.ModelProto, names: list[str], path: Path) -> Any:
    existing = {o.name for o in model.graph.output}
    for name in dict.fromkeys(names):
        if name not in existing:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    # Optimized graphs have neither these tensors nor the arithmetic of all processors alike.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as e:  # ONNX Runtime's errors share no base class below Exception
        raise ConversionError(f"{path.name}: ONNX Runtime cannot show its layers: {e}") from e
