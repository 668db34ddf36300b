"""NNCF on OpenVINO models. Heavy: imported in worker processes only."""

from __future__ import annotations

import random
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import nncf
import numpy as np
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    AdvancedSmoothQuantParameters,
    OverflowFix,
    QuantizationParameters,
)
from nncf.quantization.range_estimator import RangeEstimatorParameters, RangeEstimatorParametersSet

from aid_edge.errors import ConversionError
from aid_edge.isolate import progress
from aid_edge.recipe import Float16, Float32, Recipe, StaticInt8, WeightOnly
from aid_edge.sources.operators import applies
from converters.calibration import Feeds
from device_agent.contract.profile import HardwareProfile

_NO_SMOOTHING = -1.0
# OpenVINO's name of an operator to ONNX' one, for rules that name it so.
_ONNX_NAMES = {
    "Convolution": "Conv", "GroupConvolution": "Conv", "ConvolutionBackpropData": "ConvTranspose",
    "GroupConvolutionBackpropData": "ConvTranspose", "LSTMSequence": "LSTM", "LSTMCell": "LSTM",
    "GRUSequence": "GRU", "GRUCell": "GRU", "RNNSequence": "RNN", "SoftMax": "Softmax",
    "Softmax": "Softmax", "Multiply": "Mul", "Subtract": "Sub", "Divide": "Div",
    "MVN": "LayerNormalization", "ReduceMean": "ReduceMean", "Interpolate": "Resize",
}  # fmt: skip


def apply(
    model: Any, recipe: Recipe, feeds: Feeds | None, profile: HardwareProfile
) -> tuple[Any, tuple[str, ...]]:
    """Return ``model`` quantized as ``recipe`` asks, and what is to be said about it.

    Raises:
        ConversionError: NNCF failed, or the recipe cannot be carried out.
    """
    # NNCF draws from the global generators.
    random.seed(recipe.seed)
    np.random.seed(recipe.seed)  # noqa: NPY002
    nncf.set_log_level(40)
    how = recipe.quantize
    if isinstance(how, Float32 | Float16):
        return model, ()
    progress(0.6, "quantize")
    try:
        if isinstance(how, WeightOnly):
            return _weights_only(model, how), _weights_only_notes(how)
        if isinstance(how, StaticInt8):
            return _static(model, how, _present(feeds, recipe), profile), ()
    except ConversionError:
        raise
    except Exception as e:  # NNCF raises whatever its many parts raise
        raise ConversionError(f"quantizing with NNCF failed: {e}") from e
    raise ConversionError(f"OpenVINO has no {recipe.title}")


def tools(recipe: Recipe) -> dict[str, str]:
    """Return the versions of what carries ``recipe`` out, the exporter left out."""
    names = ["openvino"]
    if not isinstance(recipe.quantize, Float32 | Float16):
        names.append("nncf")
    return {name: metadata.version(name) for name in names}


def has_attention(model: Any) -> bool:
    """Return whether the OpenVINO ``model`` attends: a softmax over matrix products."""
    kinds = {op.get_type_name() for op in model.get_ops()}
    return "ScaledDotProductAttention" in kinds or {"Softmax", "MatMul", "MVN"} <= kinds


def _present(feeds: Feeds | None, recipe: Recipe) -> Feeds:
    if feeds is None:
        raise ConversionError(f"{recipe.title} needs calibration data")
    return feeds


def _weights_only(model: Any, how: WeightOnly) -> Any:
    mode = {
        8: nncf.CompressWeightsMode.INT8_SYM,
        4: nncf.CompressWeightsMode.INT4_SYM,
    }[how.bits]
    if how.bits == 8:
        return nncf.compress_weights(model, mode=mode)
    return nncf.compress_weights(model, mode=mode, ratio=1.0, group_size=how.group or -1)


def _weights_only_notes(how: WeightOnly) -> tuple[str, ...]:
    if how.bits == 4:
        return ("4 bits in linear layers only; convolutions, embeddings and the last layer have 8",)
    return ()


def _static(model: Any, how: StaticInt8, feeds: Feeds, profile: HardwareProfile) -> Any:
    if how.activations == "int16":
        raise ConversionError("OpenVINO computes with 8-bit activations")
    preset = "PERFORMANCE" if how.symmetric_activations else "MIXED"
    excluded = _excluded(model, how, profile)
    return nncf.quantize(
        model,
        nncf.Dataset(feeds),
        subset_size=len(feeds),
        preset=nncf.QuantizationPreset[preset],
        fast_bias_correction=not how.bias_correction,
        model_type=nncf.ModelType.TRANSFORMER if has_attention(model) else None,
        ignored_scope=nncf.IgnoredScope(names=excluded) if excluded else None,
        advanced_parameters=AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE if how.reduce_range else OverflowFix.DISABLE,
            weights_quantization_params=QuantizationParameters(per_channel=how.per_channel),
            activations_range_estimator_params=_ranges(how),
            # NNCF would smooth transformers unasked, and OpenVINO 2026.4 compute garbage from that.
            smooth_quant_alphas=AdvancedSmoothQuantParameters(
                convolution=_NO_SMOOTHING, matmul=_NO_SMOOTHING
            ),
        ),
    )


def _ranges(how: StaticInt8) -> RangeEstimatorParameters | None:
    return {
        "min-max": RangeEstimatorParametersSet.MINMAX,
        "percentile": RangeEstimatorParametersSet.MEAN_QUANTILE,
    }.get(how.method)


def _excluded(model: Any, how: StaticInt8, profile: HardwareProfile) -> list[str]:
    rules = [rule for rule in profile.numerics.op_rules if rule.placement == "float"]
    found = set(how.keep_float)
    for op in model.get_ops():
        kind = op.get_type_name()
        ranks = [port.get_partial_shape().rank for port in (*op.inputs(), *op.outputs())]
        rank = max((r.get_length() for r in ranks if r.is_static), default=0)
        if any(applies(rule, name, rank) for rule in rules for name in _names(kind)):
            found.add(op.get_friendly_name())
    return sorted(found)


def _names(kind: str) -> Iterable[str]:
    # A linear layer is a MatMul here, whatever it was called before.
    also = ("Gemm",) if kind == "MatMul" else ()
    return (kind, _ONNX_NAMES.get(kind, kind), *also)
