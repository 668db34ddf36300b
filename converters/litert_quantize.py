"""Quantizes LiteRT models by ai-edge-quantizer. Heavy: imported in worker processes only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ai_edge_quantizer import algorithm_manager, qtyping, quantizer

from aid_edge.converter import Arrays
from aid_edge.errors import ConversionError, first_line
from aid_edge.isolate import progress
from aid_edge.model import SourceModel
from aid_edge.recipe import DynamicInt8, Float16, Quantize, StaticInt8, WeightOnly
from aid_edge.sources.operators import applies
from converters import litert_calibrate
from converters.litert_flatbuffer import operator_name, operators, read
from device_agent.contract.profile import HardwareProfile

_EVERY = ".*"
_EVERY_AGAIN = "(.*)"
"""Means the same; the quantizer keeps one recipe per expression, and later ones win."""

_OFF = algorithm_manager.AlgorithmName.NO_QUANTIZE
_ALL = qtyping.TFLOperationName.ALL_SUPPORTED
_EDGES = ("INPUT", "OUTPUT")
_FEW_BITS = 4
_GROUPED = frozenset({"FULLY_CONNECTED", "EMBEDDING_LOOKUP"})
"""Operators that the quantizer's policy has groups for."""


def quantize(
    floating: Path,
    how: Quantize,
    data: tuple[SourceModel, Arrays | None, Mapping[str, tuple[int, ...]]],
    profile: HardwareProfile,
    to: Path,
) -> None:
    """Write the finished float model at ``floating`` quantized to ``to``.

    Args:
        floating: The float model.
        how: How.
        data: The source model, calibration inputs in its layout, and which inputs are permuted.
        profile: Its rules say what stays float, and whether inputs and outputs are integers.
        to: File to write.

    Raises:
        ConversionError: The quantizer failed, or a tensor that must stay float is unknown.
    """
    progress(0.6, "quantize")
    model, calibration, axes = data
    try:
        work = quantizer.Quantizer(str(floating))
        _add_rules(work, floating, how, profile)
        ranges = None
        if isinstance(how, StaticInt8) and calibration is not None:
            rules = work._recipe_manager  # noqa: SLF001 -- no public way
            ranges = litert_calibrate.calibrate(floating, how, (model, calibration, axes), rules)
        progress(0.85, "quantize")
        result = work.quantize(ranges, enable_progress_report=False)
        result.export_model(str(to), overwrite=True)
    except ConversionError:
        raise
    except Exception as e:  # the quantizer raises whatever its many parts raise
        raise ConversionError(f"ai-edge-quantizer failed: {first_line(e)}") from e


def tools() -> dict[str, str]:
    """Return the versions of what quantizes."""
    return {"ai-edge-quantizer": metadata.version("ai-edge-quantizer")}


def _add_rules(work: Any, floating: Path, how: Quantize, profile: HardwareProfile) -> None:
    granularity = qtyping.QuantGranularity
    per = granularity.CHANNELWISE
    match how:
        case Float16():
            work.update_quantization_recipe(
                _EVERY,
                _ALL,
                qtyping.OpQuantizationConfig(
                    weight_tensor_config=qtyping.TensorQuantizationConfig(
                        num_bits=16, dtype=qtyping.TensorDataType.FLOAT
                    ),
                    compute_precision=qtyping.ComputePrecision.FLOAT,
                    explicit_dequantize=True,
                ),
                algorithm_key=algorithm_manager.AlgorithmName.FLOAT_CASTING,
            )
        case DynamicInt8():
            per = per if how.per_channel else granularity.TENSORWISE
            work.add_dynamic_config(_EVERY, _ALL, 8, per)
            # With one scale for the whole tensor, LiteRT 2.3's depthwise kernel reads beyond it:
            # other answers at every run.
            depthwise = qtyping.TFLOperationName.DEPTHWISE_CONV_2D
            work.add_dynamic_config(_EVERY_AGAIN, depthwise, 8, granularity.CHANNELWISE)
        case WeightOnly():
            # Where there is no kernel for four bits, eight.
            work.add_weight_only_config(_EVERY, _ALL, 8, per)
            if how.bits == _FEW_BITS:
                work.add_weight_only_config(_EVERY_AGAIN, _ALL, _FEW_BITS, per)
                _add_groups(work, floating, how.group)
        case StaticInt8():
            per = per if how.per_channel else granularity.TENSORWISE
            bits = 16 if how.activations == "int16" else 8
            work.add_static_config(_EVERY, _ALL, bits, 8, per)
            edges = () if profile.numerics.int8_io else _EDGES
            _switch_off(work, edges)
            _keep_float(work, floating, how.keep_float)
        case _:
            raise ConversionError(f"LiteRT has no {how.title}")
    rules = [rule for rule in profile.numerics.op_rules if rule.placement == "float"]
    _switch_off(
        work,
        sorted({
            op for op, rank, _ in operators(read(floating)[0])
            if any(applies(rule, op, rank) for rule in rules)
        }),
    )  # fmt: skip


def _add_groups(work: Any, floating: Path, group: int) -> None:
    """Let weights share scales in groups where their last dimension holds whole groups.

    LiteRT has kernels for them that quantize activations at run time, and no others.
    """
    if not group:
        return
    found, _ = read(floating)
    graph = found.subgraphs[0]
    divisible = []
    for op in graph.operators:
        kind = operator_name(found, op.opcodeIndex)
        # The weights: EMBEDDING_LOOKUP has its table second, FULLY_CONNECTED its matrix.
        if kind in _GROUPED and graph.tensors[op.inputs[1]].shape[-1] % group == 0:
            divisible.append((kind, graph.tensors[op.outputs[0]].name.decode()))
    if not divisible:
        raise ConversionError(
            f"no layer has weights in whole groups of {group}",
            hint="Ask for whole channels: group=0.",
        )
    block = qtyping.QuantGranularity[f"BLOCKWISE_{group}"]
    for kind, name in divisible:
        operation = qtyping.TFLOperationName[kind]
        work.add_dynamic_config(f"^{re.escape(name)};", operation, _FEW_BITS, block)


def _switch_off(work: Any, names: Any) -> None:
    for name in names:
        if name in qtyping.TFLOperationName.__members__:
            operation = qtyping.TFLOperationName[name]
            work.update_quantization_recipe(_EVERY, operation, None, algorithm_key=_OFF)


def _keep_float(work: Any, floating: Path, names: tuple[str, ...]) -> None:
    """Leave the operators that write these tensors of the float model in float."""
    known = {name for _, _, name in operators(read(floating)[0])}
    if unknown := sorted(set(names) - known):
        raise ConversionError(
            f"{unknown[0]!r} is no output of an operator of the float artifact",
            hint="keep_float takes the names of tensors in the artifact of the recipe float32.",
        )
    for name in names:
        # The quantizer's scope of an operator: the names of its outputs, each with a semicolon.
        work.update_quantization_recipe(
            rf"^(?:.*;)?{re.escape(name)};", _ALL, None, algorithm_key=_OFF
        )
