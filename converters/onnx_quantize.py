"""Static int8 of ONNX models, by ONNX Runtime's own quantizer or by NNCF.

Heavy: imported in worker processes only.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from aid_edge.converter import Arrays
from aid_edge.errors import ConversionError
from aid_edge.isolate import progress
from aid_edge.recipe import Recipe, StaticInt8
from converters.onnx_export import matching_nodes, strip
from converters.onnx_saturation import avoid_saturation
from device_agent.contract.profile import HardwareProfile

_COMPUTE = ["Conv", "MatMul", "Gemm"]
# Operators that tell a transformer, whose small float operators are better left alone: quantizing
# each of them costs more conversions than it saves.
_TRANSFORMER = frozenset(
    {"LayerNormalization", "Gelu", "Erf", "SkipLayerNormalization", "Attention"}
)


def quantize(
    floating: Path, whole: Recipe, calibration: Arrays, profile: HardwareProfile, to: Path
) -> None:
    """Write the float model at ``floating`` as int8 to ``to``.

    Raises:
        ConversionError: The quantizer failed.
    """
    recipe = whole.quantize
    if not isinstance(recipe, StaticInt8):
        raise ConversionError(f"{whole.title} is no static int8")
    # NNCF draws from the global generators.
    random.seed(whole.seed)
    np.random.seed(whole.seed)  # noqa: NPY002
    prepared = to.with_name("prepared.onnx")
    progress(0.6, "prepare for quantization")
    try:
        quant_pre_process(str(floating), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(str(prepared))
        rules = [rule for rule in profile.numerics.op_rules if rule.placement == "float"]
        excluded = sorted({name for name, _, _ in matching_nodes(model, rules) if name})
        progress(0.7, "calibrate")
        if recipe.method == "nncf":
            _by_nncf(model, recipe, calibration, excluded, to)
        else:
            _by_runtime(prepared, recipe, calibration, excluded, to)
    except ConversionError:
        raise
    except Exception as e:  # the quantizers raise whatever their many parts raise
        raise ConversionError(f"quantizing with {recipe.method} failed: {e}") from e
    finally:
        with contextlib.suppress(FileNotFoundError):
            prepared.unlink()
    progress(0.95, "strip")
    model = onnx.load(str(to))
    if recipe.method == "nncf" and recipe.activations == "int8":
        _make_signed(model)
    if recipe.reduce_range:
        avoid_saturation(model, onnx.load(str(floating)))
    strip(model)
    onnx.save(model, str(to))


def tools(recipe: StaticInt8) -> dict[str, str]:
    """Return the versions of what quantizes."""
    names = ["onnxruntime", "nncf"] if recipe.method == "nncf" else ["onnxruntime"]
    return {name: metadata.version(name) for name in names}


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped here
    """Gives the calibration inputs one by one."""

    def __init__(self, inputs: Arrays, samples: int) -> None:
        count = min(samples, len(next(iter(inputs.values()))))
        self._feeds = (_feed(inputs, i, i / count) for i in range(count))

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def _feed(inputs: Arrays, index: int, share: float) -> dict[str, Any]:
    progress(0.7 + 0.2 * share, "calibrate")
    return {name: array[index : index + 1] for name, array in inputs.items()}


def _by_runtime(
    prepared: Path, recipe: StaticInt8, calibration: Arrays, excluded: list[str], to: Path
) -> None:
    operators = {node.op_type for node in onnx.load(str(prepared)).graph.node}
    quantize_static(
        str(prepared),
        str(to),
        _Reader(calibration, recipe.samples),
        quant_format=QuantFormat.QDQ,
        per_channel=recipe.per_channel,
        activation_type=QuantType.QUInt8 if recipe.activations == "uint8" else QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=_COMPUTE if operators & _TRANSFORMER else None,
        nodes_to_exclude=excluded,
        # Entropy and percentile keep every activation in memory, and entropy's defaults give the
        # same ranges as the extremes do.
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={
            "ActivationSymmetric": recipe.symmetric_activations,
            "WeightSymmetric": True,
        },
    )


def _by_nncf(
    model: onnx.ModelProto, recipe: StaticInt8, calibration: Arrays, excluded: list[str], to: Path
) -> None:
    import nncf  # noqa: PLC0415 -- two seconds that the other method does without
    from nncf.common.quantization.structs import QuantizationScheme  # noqa: PLC0415
    from nncf.quantization.advanced_parameters import (  # noqa: PLC0415
        AdvancedQuantizationParameters,
        OverflowFix,
        QuantizationParameters,
    )

    nncf.set_log_level(40)
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
    samples = min(recipe.samples, len(next(iter(calibration.values()))))
    quantized = nncf.quantize(
        model,
        nncf.Dataset(list(_samples(calibration, samples))),
        subset_size=samples,
        fast_bias_correction=True,
        model_type=nncf.ModelType.TRANSFORMER if operators & _TRANSFORMER else None,
        ignored_scope=nncf.IgnoredScope(names=excluded) if excluded else None,
        advanced_parameters=parameters,
    )
    onnx.save(quantized, str(to))


def _make_signed(model: onnx.ModelProto) -> None:
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


def _samples(inputs: Arrays, count: int) -> Iterator[dict[str, Any]]:
    for i in range(count):
        yield {name: array[i : i + 1] for name, array in inputs.items()}
