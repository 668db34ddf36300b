"""SmoothQuant: outliers of activations are moved into the weights that they meet.

Xiao et al., 2022 (https://arxiv.org/abs/2211.10438): each channel j of the activation is divided
by s_j = max|X_j|^a / max|W_j|^(1-a) and the weights are multiplied by it, so that the product
stays. Layer normalization takes the division into its own scale and bias where only matrix
products read it; else a Mul comes before them. Heavy: used in worker processes only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from aid_edge.errors import ConversionError
from aid_edge.isolate import progress
from converters.onnx_feeds import Feeds, run, session_of
from converters.onnx_graph import Graph, inferred, opset_of, set_constant

ALPHA = 0.5
"""How much of the difficulty moves into the weights; the paper's default."""

MAX_CHANGE = 1e-3
"""Largest change of any float output by smoothing, as a share of the largest output."""

_CHECKED = 2
_SMALLEST = 1e-5
_RESHAPES = 4
_NORMS = frozenset({"LayerNormalization", "SkipLayerNormalization"})
_AXES_ARE_INPUTS = 18


@dataclass(frozen=True)
class _Site:
    """A normalized activation, perhaps reshaped, and the matrix products that read it."""

    tensor: str
    norm: onnx.NodeProto
    products: tuple[onnx.NodeProto, ...]
    is_private: bool


def smooth(model: onnx.ModelProto, feeds: Feeds) -> int:
    """Smooth ``model`` in place and return the number of activations that were.

    Raises:
        ConversionError: The float outputs are not what they were before.
    """
    before = onnx.ModelProto()
    before.CopyFrom(model)
    graph = Graph(inferred(model))
    sites = _sites(graph)
    if not sites:
        return 0
    peaks = _peaks(model, [site.tensor for site in sites], graph, feeds)
    for number, site in enumerate(sites):
        factors = _factors(site, graph, peaks[site.tensor])
        _scale_weights(model, site, graph, factors, number)
        if site.is_private:
            _fold(model, site, graph, factors, number)
        else:
            _divide(model, site, factors, number)
    _check_unchanged(before, model, feeds)
    return len(sites)


def _sites(graph: Graph) -> list[_Site]:
    products: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.nodes.values():
        if _is_product(node, graph):
            products.setdefault(node.input[0], []).append(node)
    found = []
    for tensor, nodes in products.items():
        norm = _norm_behind(tensor, graph)
        if norm is None:
            continue
        others = len(graph.readers[tensor]) > len(nodes) or tensor in graph.outputs
        is_foldable = (
            tensor == norm.output[0]
            and norm.op_type == "LayerNormalization"
            and all(name in graph.constants for name in norm.input[1:] if name)
        )
        found.append(_Site(tensor, norm, tuple(nodes), is_foldable and not others))
    return found


def _norm_behind(tensor: str, graph: Graph) -> onnx.NodeProto | None:
    """Return the normalization that makes ``tensor``, looking through reshapes."""
    maker = graph.makers.get(tensor)
    for _ in range(_RESHAPES):
        if maker is None or maker.op_type not in {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}:
            break
        maker = graph.makers.get(maker.input[0])
    return maker if maker is not None and maker.op_type in _NORMS else None


def _is_product(node: onnx.NodeProto, graph: Graph) -> bool:
    if node.op_type not in {"MatMul", "Gemm"} or not graph.has_weights(node):
        return False
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    weights = graph.array(node.input[1])
    return not transposed and weights is not None and weights.ndim == 2


def _peaks(
    model: onnx.ModelProto, tensors: list[str], graph: Graph, feeds: Feeds
) -> dict[str, NDArray[np.float64]]:
    """Return the largest absolute value of each channel (the last axis)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = []
    for i, tensor in enumerate(tensors):
        rank = graph.rank(tensor)
        if rank is None:
            raise ConversionError(f"the rank of activation {tensor} is not known")
        axes = list(range(rank - 1))
        held, name = f"__smooth_abs_{i}", f"__smooth_peak_{i}"
        copy.graph.node.append(onnx.helper.make_node("Abs", [tensor], [held]))
        if opset_of(copy) < _AXES_ARE_INPUTS:
            node = onnx.helper.make_node("ReduceMax", [held], [name], axes=axes, keepdims=0)
        else:
            set_constant(copy, f"{held}_axes", np.array(axes, np.int64))
            inputs = [held, f"{held}_axes"]
            node = onnx.helper.make_node("ReduceMax", inputs, [name], keepdims=0)
        copy.graph.node.append(node)
        names.append(name)
    session = session_of(copy, names)
    peaks: dict[str, NDArray[np.float64]] = {}
    for done, feed in enumerate(feeds, start=1):
        for tensor, value in zip(tensors, run(session, names, feed), strict=True):
            found = np.asarray(value, np.float64)
            peaks[tensor] = np.maximum(peaks[tensor], found) if tensor in peaks else found
        progress(0.6 * done / feeds.count, "smooth")
    return peaks


def _factors(site: _Site, graph: Graph, peaks: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = np.zeros_like(peaks)
    for node in site.products:
        weights = graph.array(node.input[1])
        if weights is not None:
            rows = weights if not _is_transposed(node) else weights.T
            largest = np.maximum(largest, np.abs(rows.astype(np.float64)).max(axis=1))
    factors = np.maximum(peaks, _SMALLEST) ** ALPHA
    factors /= np.maximum(largest, _SMALLEST) ** (1 - ALPHA)
    # A channel that is silent, or that no weight reads, has nothing to move.
    factors[(peaks < _SMALLEST) | (largest < _SMALLEST)] = 1.0
    return np.asarray(np.maximum(factors, _SMALLEST))


def _scale_weights(
    model: onnx.ModelProto, site: _Site, graph: Graph, factors: NDArray[np.float64], number: int
) -> None:
    names = {node.name for node in site.products}
    for node in model.graph.node:
        if node.name not in names:
            continue
        weights = graph.array(node.input[1])
        if weights is None:
            continue
        shaped = factors[None, :] if _is_transposed(node) else factors[:, None]
        name = f"{node.name}__smooth_{number}"
        set_constant(model, name, (weights * shaped).astype(np.float32))
        node.input[1] = name


def _fold(
    model: onnx.ModelProto, site: _Site, graph: Graph, factors: NDArray[np.float64], number: int
) -> None:
    for node in model.graph.node:
        if node.name != site.norm.name:
            continue
        for index in range(1, len(node.input)):
            held = graph.array(node.input[index])
            if held is None:
                raise ConversionError(f"{node.name}: its scale or bias is not constant")
            name = f"{node.name}__smooth_{index}_{number}"
            set_constant(model, name, (held / factors).astype(np.float32))
            node.input[index] = name


def _divide(model: onnx.ModelProto, site: _Site, factors: NDArray[np.float64], number: int) -> None:
    """Insert a Mul between the activation and its matrix products."""
    smoothed, held = f"{site.tensor}__smoothed", f"{site.tensor}__smooth_{number}"
    set_constant(model, held, (1.0 / factors).astype(np.float32))
    names = {node.name for node in site.products}
    nodes = []
    for node in model.graph.node:
        if node.name in names:
            node.input[0] = smoothed
        nodes.append(node)
        if site.tensor in node.output:
            name = f"{node.name}__smooth_mul_{number}"
            nodes.append(onnx.helper.make_node("Mul", [site.tensor, held], [smoothed], name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _is_transposed(node: onnx.NodeProto) -> bool:
    return any(a.name == "transB" and a.i for a in node.attribute)


def _check_unchanged(before: onnx.ModelProto, after: onnx.ModelProto, feeds: Feeds) -> None:
    names = [o.name for o in before.graph.output]
    copies = []
    for model in (before, after):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        copies.append(session_of(copy, names))
    for feed, _ in zip(feeds, range(_CHECKED), strict=False):
        pairs = zip(names, run(copies[0], names, feed), run(copies[1], names, feed), strict=True)
        for name, want, got in pairs:
            largest = float(np.abs(want).max()) if want.size else 0.0
            change = float(np.abs(want - got).max()) if want.size else 0.0
            if change > MAX_CHANGE * max(largest, _SMALLEST):
                raise ConversionError(
                    f"smoothing changed the float output {name} by {change:.3g} "
                    f"(largest value {largest:.3g})",
                    hint="This is a fault of the conversion; leave SmoothQuant out.",
                )
