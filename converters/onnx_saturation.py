"""Keeps int8 weights from saturating on x86 processors without VNNI.

There, u8 x s8 products are added in pairs in 16 bits (``vpmaddubsw``), and two neighboring weights
of the same sign with a sum over 128 can overflow: 255 * 129 > 32767. The usual remedy, seven-bit
weights everywhere, costs accuracy in every channel. Few channels have such a pair, so only their
scales grow, and only as far as needed. Heavy: imported in worker processes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

MAX_PAIR_SUM = 128
"""Largest |sum| of two neighboring weights: 255 * 128 = 32640 fits 16 bits."""

_STEP = 1.01


@dataclass(frozen=True)
class _Layer:
    """The quantized parts of one layer: DequantizeLinear nodes and the layer's own node."""

    node: onnx.NodeProto
    weights: onnx.NodeProto
    bias: onnx.NodeProto | None


def avoid_saturation(quantized: onnx.ModelProto, floating: onnx.ModelProto) -> int:
    """Enlarge weight scales of ``quantized`` in place where pairs could overflow.

    Args:
        quantized: QDQ model with per-channel or per-tensor symmetric int8 weights.
        floating: The model it was made from, whose weights are rounded anew.

    Returns:
        The number of output channels that were changed.
    """
    tensors = {t.name: t for t in quantized.graph.initializer}
    originals = {t.name: numpy_helper.to_array(t) for t in floating.graph.initializer}
    changed = 0
    for layer in _layers(quantized, tensors):
        changed += _relax(layer, tensors, originals)
    return changed


def _layers(model: onnx.ModelProto, tensors: dict[str, onnx.TensorProto]) -> Iterator[_Layer]:
    producers = {o: n for n in model.graph.node for o in n.output}
    for node in model.graph.node:
        if node.op_type not in {"Conv", "Gemm", "MatMul"}:
            continue
        weights = producers.get(node.input[1])
        is_weight = (
            weights is not None
            and weights.op_type == "DequantizeLinear"
            and weights.input[0] in tensors
            and tensors[weights.input[0]].data_type == onnx.TensorProto.INT8
        )
        if weights is None or not is_weight:
            continue
        bias = producers.get(node.input[2]) if len(node.input) > 2 else None
        yield _Layer(node, weights, bias)


def _relax(
    layer: _Layer,
    tensors: dict[str, onnx.TensorProto],
    originals: dict[str, NDArray[np.float32]],
) -> int:
    name, scale_name = layer.weights.input[0], layer.weights.input[1]
    codes = numpy_helper.to_array(tensors[name])
    scale = numpy_helper.to_array(tensors[scale_name])
    axis = _channel_axis(layer.node)
    rows = np.moveaxis(codes, axis, 0).astype(np.float64)
    broadcast = np.broadcast_to(
        scale.reshape(-1, *[1] * (rows.ndim - 1)), (len(rows),) + (1,) * (rows.ndim - 1)
    )
    exact = originals.get(name.removesuffix("_quantized"))
    values = rows * broadcast if exact is None else np.moveaxis(exact, axis, 0).astype(np.float64)
    factor = np.maximum(_largest_pair(rows, layer.node) / MAX_PAIR_SUM, 1.0)
    over = factor > 1.0
    if not over.any():
        return 0
    if scale.size == 1:
        factor[:] = factor.max()
    while True:
        # Rounding can lift a sum above the bound again.
        new = _rounded(values, broadcast, factor)
        still = _largest_pair(new, layer.node) > MAX_PAIR_SUM
        if not still.any():
            break
        factor[still if scale.size > 1 else slice(None)] *= _STEP
    _store(tensors[name], np.moveaxis(new, 0, axis).astype(np.int8))
    shrink = factor if scale.size > 1 else factor[:1]
    _store(tensors[scale_name], (scale * shrink.reshape(scale.shape)).astype(np.float32))
    if layer.bias is not None:
        _rescale_bias(layer.bias, shrink, tensors)
    return int(over.sum())


def _rounded(
    values: NDArray[np.float64], scale: NDArray[np.floating], factor: NDArray[np.float64]
) -> NDArray[np.float64]:
    steps = values / (scale * factor.reshape(scale.shape))
    return np.asarray(np.clip(np.round(steps), -127, 127))


def _rescale_bias(
    bias: onnx.NodeProto, factor: NDArray[np.float64], tensors: dict[str, onnx.TensorProto]
) -> None:
    if bias.op_type != "DequantizeLinear" or bias.input[0] not in tensors:
        return
    codes = numpy_helper.to_array(tensors[bias.input[0]]).astype(np.float64)
    scale = numpy_helper.to_array(tensors[bias.input[1]])
    _store(tensors[bias.input[0]], np.round(codes / factor).astype(np.int32))
    _store(tensors[bias.input[1]], (scale * factor.reshape(scale.shape)).astype(np.float32))


def _largest_pair(rows: NDArray[np.float64], node: onnx.NodeProto) -> NDArray[np.float64]:
    """Return for each output channel the largest |sum| of two weights that are added in 16 bits.

    Kernels walk a convolution's weights channel first or channel last: both orders are looked at.
    """
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    if node.op_type == "Conv" and group > 1 and rows.shape[1] == 1:
        # Depthwise kernels multiply in 32 bits. One input channel alone is not depthwise.
        return np.zeros(len(rows))
    orders = [rows.reshape(len(rows), -1)]
    if rows.ndim > 2:
        orders.append(np.moveaxis(rows, 1, -1).reshape(len(rows), -1))
    return np.asarray(np.maximum.reduce([_adjacent(order) for order in orders]))


def _adjacent(flat: NDArray[np.float64]) -> NDArray[np.float64]:
    if flat.shape[1] % 2:
        flat = np.pad(flat, ((0, 0), (0, 1)))
    pairs = np.abs(flat[:, 0::2] + flat[:, 1::2])
    return np.asarray(pairs.max(axis=1))


def _channel_axis(node: onnx.NodeProto) -> int:
    if node.op_type == "Conv":
        return 0
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if transposed else 1


def _store(tensor: onnx.TensorProto, array: NDArray[np.generic]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
