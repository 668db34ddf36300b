"""Static int8 of ONNX models, by ONNX Runtime's own quantizer or by NNCF.

Heavy: imported in worker processes only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from aid_edge.converter import Arrays
from aid_edge.errors import ConversionError
from aid_edge.isolate import progress
from aid_edge.recipe import Recipe, StaticInt8
from converters import onnx_nncf
from converters.onnx_calibrate import ranges
from converters.onnx_correct import add_biases, correct_biases
from converters.onnx_export import matching_nodes, strip
from converters.onnx_feeds import Feeds
from converters.onnx_graph import (
    COMPUTE,
    NOT_FUSED,
    TRANSFORMER,
    Graph,
    downstream,
    inferred,
    prepare,
    resolved,
    set_constant,
)
from converters.onnx_pack import pack
from converters.onnx_planned import check_planned, count_compute
from converters.onnx_ranges import Range
from converters.onnx_saturation import avoid_saturation
from converters.onnx_smooth import smooth
from converters.onnx_tables import shrink_tables
from device_agent.contract.errors import AidError
from device_agent.contract.profile import HardwareProfile

STARVED_SHARE = 1 / 32
"""An input of Concat with less of the shared range than this has fewer than 8 of 256 codes."""

_LOWEST = "__lowest_float"

MIN_RANGE = 1e-6
"""Width of the range of a constant activation: a scale of zero divides by zero."""


@dataclass
class _Work:
    """One quantization while it goes on."""

    recipe: StaticInt8
    model: onnx.ModelProto
    feeds: Feeds
    excluded: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def operators(self) -> list[str]:
        """Operator types that are quantized."""
        present = {node.op_type for node in self.model.graph.node}
        if present & TRANSFORMER:
            return sorted(COMPUTE - NOT_FUSED)
        return sorted({*QDQRegistry, *QLinearOpsRegistry} - NOT_FUSED)


def quantize(
    floating: Path, whole: Recipe, calibration: Arrays, profile: HardwareProfile, to: Path
) -> tuple[str, ...]:
    """Write the float model at ``floating`` as int8 to ``to``, and return notes for the report.

    Raises:
        ConversionError: The quantizer failed, or what it made would not run in integers.
        DataError: There is not enough calibration data.
    """
    recipe = whole.quantize
    if not isinstance(recipe, StaticInt8):
        raise ConversionError(f"{whole.title} is no static int8")
    try:
        work = _prepare(floating, recipe, calibration, profile)
        if recipe.smooth_quant:
            _smooth(work)
        if recipe.method == "nncf":
            result = onnx_nncf.quantize(work.model, recipe, work.feeds, work.excluded, whole.seed)
            if recipe.reduce_range:
                avoid_saturation(result, work.model)
        else:
            result = _by_runtime(work)
    except AidError:
        raise
    except Exception as e:  # the quantizers raise whatever their many parts raise
        raise ConversionError(f"quantizing with {recipe.method} failed: {e}") from e
    kept = count_compute(work.model, work.excluded)
    progress(0.95, "strip")
    shrink_tables(result)
    keep_weights_float(result)
    strip(result)
    pack(result)
    onnx.save(result, str(to))
    return (*work.notes, *check_planned(to, kept, profile))


def keep_weights_float(model: onnx.ModelProto) -> int:
    """Shield layers with float weights from ONNX Runtime, in place; return how many.

    Between a DequantizeLinear and a QuantizeLinear it quantizes float weights by itself, per
    tensor (its pass WeightBiasQuantization), so that what was to stay float would not. A Max with
    the smallest float in between changes nothing and is in no pattern of its optimizers.
    """
    graph = Graph(model)
    nodes, shielded = [], 0
    for node in model.graph.node:
        maker = graph.makers.get(node.input[0]) if node.input else None
        if graph.has_weights(node) and maker is not None and maker.op_type == "DequantizeLinear":
            name = f"{node.name}__float"
            inputs = [node.input[0], _LOWEST]
            nodes.append(onnx.helper.make_node("Max", inputs, [name], f"{name}_max"))
            node.input[0] = name
            shielded += 1
        nodes.append(node)
    if shielded:
        set_constant(model, _LOWEST, np.array(np.finfo(np.float32).min, np.float32))
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return shielded


def tools(recipe: StaticInt8) -> dict[str, str]:
    """Return the versions of what quantizes."""
    names = ["onnxruntime", "nncf"] if recipe.method == "nncf" else ["onnxruntime"]
    return {name: metadata.version(name) for name in names}


def _prepare(
    floating: Path, recipe: StaticInt8, calibration: Arrays, profile: HardwareProfile
) -> _Work:
    progress(0.55, "prepare for quantization")
    model = prepare(floating, floating.parent)
    rules = [rule for rule in profile.numerics.op_rules if rule.placement == "float"]
    excluded = {name for name, _, _ in matching_nodes(model, rules) if name}
    excluded.update(resolved(recipe.keep_float, onnx.load(str(floating)), model))
    excluded.update(_with_computed_bias(model))
    if not any(node.op_type in COMPUTE for node in model.graph.node):
        raise ConversionError(
            "there is nothing to quantize: no convolution and no matrix product outside of "
            "control flow",
            hint="Keep the model in float.",
        )
    feeds = Feeds(model, calibration, recipe.samples)
    return _Work(recipe, model, feeds, sorted(excluded))


def _with_computed_bias(model: onnx.ModelProto) -> set[str]:
    """Return the Gemm nodes whose bias is no constant: ONNX Runtime does not fuse them."""
    graph = Graph(model)
    return {
        node.name
        for node in model.graph.node
        if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] not in graph.constants
    }


def _smooth(work: _Work) -> None:
    if count := smooth(work.model, work.feeds):
        work.model = inferred(work.model)
        work.notes.append(f"SmoothQuant: {count} activations smoothed")
    else:
        work.notes.append("SmoothQuant changed nothing: no normalized activation meets a product")


def _by_runtime(work: _Work) -> onnx.ModelProto:
    recipe = work.recipe
    if recipe.bias_correction:
        add_biases(work.model)
    tensors = Graph(work.model).activations(work.operators)
    found = ranges(
        work.model, tensors, work.feeds, recipe.method, symmetric=recipe.symmetric_activations
    )
    starved = _starved(work.model, found)
    if starved:
        work.notes.append(
            f"{len(starved)} operators after a Concat of very different ranges stay float"
        )
        work.excluded = sorted({*work.excluded, *starved})
    result = _quantized(work, found)
    if recipe.bias_correction:
        count = correct_biases(work.model, result, work.feeds)
        work.notes.append(f"biases of {count} layers corrected")
        result = _quantized(work, found)
    return result


def _quantized(work: _Work, found: dict[str, Range]) -> onnx.ModelProto:
    recipe = work.recipe
    copy = onnx.ModelProto()
    copy.CopyFrom(work.model)
    data = {
        name: TensorData(
            lowest=np.array(low, np.float32),
            highest=np.array(max(high, low + MIN_RANGE), np.float32),
        )
        for name, (low, high) in found.items()
    }
    quantizer = QDQQuantizer(
        copy,
        recipe.per_channel,
        False,  # seven-bit weights; what is done instead is in onnx_saturation
        QuantType.QInt8,
        QuantType.QUInt8 if recipe.activations == "uint8" else QuantType.QInt8,
        TensorsData(CalibrationMethod.MinMax, data),
        [],
        work.excluded,
        work.operators,
        {"ActivationSymmetric": recipe.symmetric_activations, "WeightSymmetric": True},
    )
    quantizer.quantize_model()
    result: onnx.ModelProto = quantizer.model.model
    if recipe.reduce_range:
        avoid_saturation(result, work.model)
    return result


def _starved(model: onnx.ModelProto, found: dict[str, Range]) -> set[str]:
    """Return the nodes from a Concat on whose inputs have ranges too different to share.

    Detectors join boxes in pixels and scores between 0 and 1; scores would have no codes left.
    """
    graph = Graph(model)
    names: set[str] = set()
    for node in model.graph.node:
        if node.op_type != "Concat":
            continue
        sizes = [max(-found[n][0], found[n][1]) for n in node.input if n in found]
        live = [size for size in sizes if size > 0]
        if live and min(live) < STARVED_SHARE * max(live):
            names.update(after.name for after in downstream(node, graph))
    return names
