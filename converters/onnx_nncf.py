"""Static int8 by NNCF. Heavy: imported in worker processes only."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from aid_edge.recipe import StaticInt8
from converters.onnx_feeds import Feeds
from converters.onnx_graph import COMPUTE, TRANSFORMER, Graph

_MOVES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})

QUIET = 40
"""Log level at which NNCF only reports errors."""


def quantize(
    model: onnx.ModelProto, recipe: StaticInt8, feeds: Feeds, excluded: list[str], seed: int
) -> onnx.ModelProto:
    """Return ``model`` quantized by NNCF with fast bias correction.

    With ``recipe.bias_correction``, biases are corrected one layer after the other instead, each
    on what the layers before it really give: far slower, and better where errors add up.
    """
    import nncf  # noqa: PLC0415 -- two seconds that the other methods do without
    from nncf.common.quantization.structs import QuantizationScheme  # noqa: PLC0415
    from nncf.quantization.advanced_parameters import (  # noqa: PLC0415
        AdvancedQuantizationParameters,
        OverflowFix,
        QuantizationParameters,
    )

    # NNCF draws from the global generators.
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    nncf.set_log_level(QUIET)
    symmetric = recipe.symmetric_activations
    parameters = AdvancedQuantizationParameters(
        # Per-channel activations of depthwise convolutions are not fused by ONNX Runtime.
        activations_quantization_params=QuantizationParameters(
            per_channel=False,
            mode=QuantizationScheme.SYMMETRIC if symmetric else QuantizationScheme.ASYMMETRIC,
        ),
        weights_quantization_params=QuantizationParameters(per_channel=recipe.per_channel),
        # Seven-bit weights; what is done instead is in onnx_saturation.
        overflow_fix=OverflowFix.DISABLE,
    )
    operators = {node.op_type for node in model.graph.node}
    quantized: onnx.ModelProto = nncf.quantize(
        model,
        nncf.Dataset(_Source(feeds)),
        subset_size=feeds.count,
        fast_bias_correction=not recipe.bias_correction,
        model_type=nncf.ModelType.TRANSFORMER if operators & TRANSFORMER else None,
        ignored_scope=nncf.IgnoredScope(names=excluded) if excluded else None,
        advanced_parameters=parameters,
    )
    carry_scales(quantized)
    if recipe.activations == "int8":
        make_signed(quantized)
    return quantized


def carry_scales(model: onnx.ModelProto) -> None:
    """Quantize again, by the same scale, what was only moved since it was quantized; in place.

    NNCF quantizes before a Flatten; ONNX Runtime fuses the matrix product after it only where the
    conversion stands right before it. Codes stay as they are, so nothing is lost.
    """
    graph = Graph(model)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        maker = graph.makers.get(node.input[0]) if node.input else None
        if (
            node.op_type not in _MOVES
            or maker is None
            or maker.op_type != "DequantizeLinear"
            or maker.input[0] in graph.constants
            or not any(r.op_type in COMPUTE for r in graph.readers[node.output[0]])
        ):
            continue
        moved, end = f"{node.output[0]}__moved", node.output[0]
        rest = list(maker.input[1:])
        node.output[0] = moved
        nodes += [
            helper.make_node(
                "QuantizeLinear", [moved, *rest], [f"{end}__codes"], f"{end}__quantize"
            ),
            helper.make_node("DequantizeLinear", [f"{end}__codes", *rest], [end], f"{end}__back"),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def make_signed(model: onnx.ModelProto) -> None:
    """Turn unsigned activations into signed ones in place: code and zero point less 128."""
    tensors = {t.name: t for t in model.graph.initializer}
    points = {
        node.input[2]
        for node in model.graph.node
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}
        and len(node.input) > 2
        and node.input[0] not in tensors
        and tensors[node.input[2]].data_type == onnx.TensorProto.UINT8
    }
    for name in points:
        point = numpy_helper.to_array(tensors[name]).astype(np.int16) - 128
        tensors[name].CopyFrom(numpy_helper.from_array(point.astype(np.int8), name))
    # It says which tensors are unsigned.
    del model.graph.value_info[:]


class _Source:
    """Calibration inputs as NNCF goes through them: any number of times, one by one."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._feeds)
