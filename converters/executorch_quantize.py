"""PT2E quantization for XNNPACK. Heavy: imported in worker processes only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from torchao.quantization.pt2e import MinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from aid_edge.errors import ConversionError
from aid_edge.isolate import progress
from aid_edge.recipe import DynamicInt8, Float32, Recipe, StaticInt8
from aid_edge.sources.operators import applies
from converters.calibration import Feeds
from converters.executorch_program import Exported, first_line
from device_agent.contract.profile import HardwareProfile

_EPSILON = 2**-12
"""Smallest scale of an activation, as XNNPACK's quantizer has it."""


def apply(
    program: Exported, recipe: Recipe, feeds: Feeds | None, profile: HardwareProfile
) -> Exported:
    """Return ``program`` quantized as ``recipe`` asks.

    Raises:
        ConversionError: PT2E failed, or the recipe cannot be carried out.
    """
    how = recipe.quantize
    if isinstance(how, Float32):
        return program
    if not isinstance(how, StaticInt8 | DynamicInt8):
        raise ConversionError(f"ExecuTorch has no {recipe.title}")
    if isinstance(how, StaticInt8) and feeds is None:
        raise ConversionError(f"{recipe.title} needs calibration data")
    torch.manual_seed(recipe.seed)
    quantizer = XNNPACKQuantizer().set_global(_configuration(how))
    quantizer.set_filter_function(lambda node: not _stays_float(node, profile))
    try:
        prepared = prepare_pt2e(program.module, quantizer)
        with torch.inference_mode():
            _calibrate(prepared, program, feeds if isinstance(how, StaticInt8) else None)
        return Exported(convert_pt2e(prepared), program.examples)
    except Exception as e:  # PT2E raises whatever its many parts raise
        raise ConversionError(f"quantizing with PT2E failed: {first_line(e)}") from e


def _configuration(how: StaticInt8 | DynamicInt8) -> Any:
    found = get_symmetric_quantization_config(
        is_per_channel=how.per_channel, is_dynamic=isinstance(how, DynamicInt8)
    )
    if isinstance(how, StaticInt8) and how.method == "min-max":
        observer = MinMaxObserver.with_args(eps=_EPSILON)
        ranges = replace(found.input_activation, observer_or_fake_quant_ctr=observer)
        found = replace(found, input_activation=ranges, output_activation=ranges)
    return found


def _calibrate(prepared: Any, program: Exported, feeds: Feeds | None) -> None:
    if feeds is None:
        # Ranges of weights are found when the graph runs.
        prepared(*program.examples)
        return
    for done, feed in enumerate(feeds, start=1):
        prepared(*(torch.from_numpy(array) for array in feed.values()))
        progress(0.2 + 0.4 * done / len(feeds), "calibrate")


def _stays_float(node: torch.fx.Node, profile: HardwareProfile) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    value = node.meta.get("val")
    rank = value.dim() if torch.is_tensor(value) else 0
    kind = str(schema.name).partition("::")[2]
    rules = (rule for rule in profile.numerics.op_rules if rule.placement == "float")
    return any(applies(rule, kind, rank) for rule in rules)
