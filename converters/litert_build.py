"""Makes ``model.tflite`` for one recipe: what LiteRT and TFLite Micro have in common.

Heavy: imported in worker processes only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aid_edge.converter import Arrays, Artifact
from aid_edge.errors import ConversionError
from aid_edge.isolate import progress
from aid_edge.model import SourceModel
from aid_edge.recipe import Float32, Recipe, StaticInt8
from converters import litert_export, litert_flatbuffer
from converters.litert_plan import check_recipe
from device_agent.contract.profile import HardwareProfile

NAME = "model.tflite"


@dataclass(frozen=True)
class Work:
    """What ``Converter.convert`` is given."""

    model: SourceModel
    recipe: Recipe
    calibration: Arrays | None
    profile: HardwareProfile
    out: Path


def build(work: Work) -> Artifact:
    """Write ``model.tflite`` into the folder and return it.

    Raises:
        ConversionError: The toolchain failed, or cannot carry out the recipe.
        UnsupportedModelError: The profile refuses what came of the export.
    """
    how = work.recipe.quantize
    check_recipe(work.model, work.recipe)
    if isinstance(how, StaticInt8) and work.calibration is None:
        raise ConversionError(f"{work.recipe.title} needs calibration data")
    final = work.out / NAME
    floating = work.out / "float.tflite"
    done = litert_export.export(work.model, work.calibration, work.profile, floating)
    tools = dict(done.tools)
    if isinstance(how, Float32):
        floating.rename(final)
    else:
        # The quantizer takes seconds to import and is not needed for float.
        from converters import litert_quantize  # noqa: PLC0415

        data = (work.model, work.calibration, done.axes)
        litert_quantize.quantize(floating, how, data, work.profile, final)
        floating.unlink()
        litert_flatbuffer.finish_quantized(final, work.model)
        tools |= litert_quantize.tools()
    progress(0.95, "finish")
    return Artifact(final, done.axes, tools, notes=done.notes)
