"""Static int8 of LiteRT models by ai-edge-quantizer. Heavy: imported in worker processes only."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import algorithm_manager, calibrator, qtyping, quantizer
from ai_edge_quantizer.utils import qsv_utils

from aid_edge.converter import Arrays
from aid_edge.errors import ConversionError
from aid_edge.isolate import progress
from aid_edge.model import SourceModel
from aid_edge.recipe import StaticInt8
from aid_edge.sources.operators import applies
from converters.litert_export import operators, read
from device_agent.contract.profile import HardwareProfile

_BITS = 8
_OFF = algorithm_manager.AlgorithmName.NO_QUANTIZE


def quantize(
    floating: Path,
    recipe: StaticInt8,
    data: tuple[SourceModel, Arrays, Mapping[str, tuple[int, ...]]],
    profile: HardwareProfile,
    to: Path,
) -> None:
    """Write the float model at ``floating`` as int8 to ``to``.

    Args:
        floating: The float model.
        recipe: How.
        data: The source model, calibration inputs in its layout, and which inputs are permuted.
        profile: Its rules say what stays float, and whether inputs and outputs are int8.
        to: File to write.

    Raises:
        ConversionError: The quantizer failed.
    """
    progress(0.6, "calibrate")
    try:
        work = quantizer.Quantizer(str(floating))
        _add_rules(work, floating, recipe, profile)
        # Its default, a moving average of extremes, gives ranges that clip the logits.
        statistics = calibrator.Calibrator(
            str(floating), num_threads=1, qsv_update_func=qsv_utils.min_max_update
        )
        feeds = _feeds(floating, recipe, *data)
        statistics.calibrate(feeds, work._recipe_manager)  # noqa: SLF001 -- no public way
        progress(0.85, "quantize")
        result = work.quantize(statistics.get_model_qsvs(), enable_progress_report=False)
        result.export_model(str(to), overwrite=True)
    except ConversionError:
        raise
    except Exception as e:  # the quantizer raises whatever its many parts raise
        raise ConversionError(f"ai-edge-quantizer failed: {e}") from e


def tools() -> dict[str, str]:
    """Return the versions of what quantizes."""
    return {"ai-edge-quantizer": metadata.version("ai-edge-quantizer")}


def _add_rules(work: Any, floating: Path, recipe: StaticInt8, profile: HardwareProfile) -> None:
    granularity = qtyping.QuantGranularity
    work.add_static_config(
        ".*",
        qtyping.TFLOperationName.ALL_SUPPORTED,
        activation_num_bits=_BITS,
        weight_num_bits=_BITS,
        weight_granularity=granularity.CHANNELWISE
        if recipe.per_channel
        else granularity.TENSORWISE,
    )
    floats = set() if profile.numerics.int8_io else {"INPUT", "OUTPUT"}
    rules = [rule for rule in profile.numerics.op_rules if rule.placement == "float"]
    floats |= {
        op for op, rank, _ in operators(read(floating)[0])
        if any(applies(rule, op, rank) for rule in rules)
    }  # fmt: skip
    for name in sorted(floats):
        if name in qtyping.TFLOperationName.__members__:
            work.update_quantization_recipe(
                ".*", qtyping.TFLOperationName[name], None, algorithm_key=_OFF
            )


def _feeds(
    floating: Path,
    recipe: StaticInt8,
    model: SourceModel,
    calibration: Arrays,
    axes: Mapping[str, tuple[int, ...]],
) -> dict[str, list[dict[str, Any]]]:
    interpreter = Interpreter(model_path=str(floating), num_threads=1)
    signature, names = next(iter(interpreter.get_signature_list().items()))
    runner = interpreter.get_signature_runner(signature)
    # Positional: the toolchain calls the inputs args_0, args_1, ... in the order they were given.
    details = runner.get_input_details()
    order = sorted(names["inputs"], key=lambda name: int(name.rpartition("_")[2]))
    if len(order) != len(model.inputs):
        raise ConversionError(
            f"the exported model has {len(order)} inputs, not {len(model.inputs)}"
        )
    feeds = []
    for i in range(min(recipe.samples, len(next(iter(calibration.values()))))):
        feed = {}
        for theirs, ours in zip(order, model.inputs, strict=True):
            sample = calibration[ours.name][i : i + 1]
            if ours.name in axes:
                sample = np.transpose(sample, axes[ours.name])
            feed[theirs] = np.ascontiguousarray(sample, details[theirs]["dtype"])
        feeds.append(feed)
    return {signature: feeds}
