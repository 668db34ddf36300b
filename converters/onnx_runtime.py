"""ONNX Runtime: ONNX models in float, in int8, and with small weights."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from aid_edge.converter import Arrays, Artifact
from aid_edge.errors import ConversionError, UnsupportedModelError
from aid_edge.model import SourceModel
from aid_edge.recipe import DynamicInt8, Float16, Float32, Recipe, StaticInt8, WeightOnly
from aid_edge.sources.operators import refused, shape_refusals
from device_agent.contract.profile import HardwareProfile

OPSET_DEFAULT = 20
OPSET_MIN = 13
"""Per-channel QuantizeLinear came with opset 13."""


class OnnxRuntimeConverter:
    """Exports to ONNX and quantizes in QDQ form, which ONNX Runtime fuses to integer kernels."""

    runtime: ClassVar[str] = "onnx_runtime"
    accepts: ClassVar[frozenset[str]] = frozenset({"torch", "keras", "onnx"})
    methods: ClassVar[frozenset[str]] = frozenset(
        {"float32", "float16", "dynamic-int8", "weight-only-int8", "weight-only-int4",
         "static-int8", "static-int8-percentile", "static-int8-entropy",
         "static-int8-mse", "static-int8-nncf", "bias-correction", "smooth-quant", "keep-float"}
    )  # fmt: skip
    reads: ClassVar[tuple[str, ...]] = (
        "arch", "isa", "runtime.opset_max", "shapes.static", "numerics.op_rules",
    )  # fmt: skip

    def check(self, model: SourceModel, profile: HardwareProfile) -> None:
        """Return if ``model`` can be converted for ``profile``; does no work.

        Raises:
            UnsupportedModelError: It cannot; names operators, nodes, rules and ways out.
        """
        reasons = [verdict.reason for verdict in refused(model.uses, profile)]
        reasons += shape_refusals(model, profile)
        runtime = profile.runtime(self.runtime)
        if runtime is None:
            reasons.append(f"{profile.id} has no runtime {self.runtime}")
        elif runtime.opset_max is not None:
            reasons += _opset_refusals(model, runtime.opset_max, profile)
        if reasons:
            raise UnsupportedModelError(
                f"{model.spec} cannot be converted to {self.runtime} for {profile.id}",
                reasons,
                hint="Choose another profile or runtime, or change the model where it is named.",
            )

    def convert(
        self,
        model: SourceModel,
        recipe: Recipe,
        calibration: Arrays | None,
        profile: HardwareProfile,
        out: Path,
    ) -> Artifact:
        """Write ``model.onnx`` into ``out``; see :class:`aid_edge.converter.Converter`."""
        # The toolchain takes seconds to import and is only there with the extra `convert`.
        from converters import onnx_export, onnx_quantize, onnx_weights  # noqa: PLC0415

        final = out / "model.onnx"
        floating = out / "float.onnx"
        onnx_export.export(model, profile, opset_for(profile), floating)
        tools = onnx_export.tools(model)
        how = recipe.quantize
        if isinstance(how, Float32):
            floating.rename(final)
            return Artifact(final, tools=tools)
        if isinstance(how, StaticInt8):
            if calibration is None:
                raise ConversionError(f"{recipe.title} needs calibration data")
            notes = onnx_quantize.quantize(floating, recipe, calibration, profile, final)
            tools |= onnx_quantize.tools(how)
        elif isinstance(how, Float16 | WeightOnly | DynamicInt8):
            notes = onnx_weights.convert(floating, how, profile, final)
            tools |= onnx_weights.tools()
        else:
            raise ConversionError(f"{self.runtime} has no {recipe.title}")
        floating.unlink()
        return Artifact(final, tools=tools, notes=notes)


def opset_for(profile: HardwareProfile) -> int:
    """Return the opset to export for ``profile``."""
    runtime = profile.runtime(OnnxRuntimeConverter.runtime)
    most = runtime.opset_max if runtime is not None and runtime.opset_max else OPSET_DEFAULT
    return min(most, OPSET_DEFAULT)


def _opset_refusals(model: SourceModel, opset_max: int, profile: HardwareProfile) -> list[str]:
    if model.opset > opset_max:
        way_out = "export it again with a lower opset_version"
        return [f"the model uses opset {model.opset}, over {opset_max} of {profile.id}: {way_out}"]
    if opset_max < OPSET_MIN:
        return [f"{profile.id} takes at most opset {opset_max}; at least {OPSET_MIN} is written"]
    return []
