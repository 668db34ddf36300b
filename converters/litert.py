"""LiteRT (TensorFlow Lite): float and static int8 ``.tflite`` models."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from aid_edge.converter import Arrays, Artifact
from aid_edge.errors import ConversionError, UnsupportedModelError
from aid_edge.model import SourceModel
from aid_edge.recipe import Recipe, StaticInt8
from aid_edge.sources.operators import refused, shape_refusals
from device_agent.contract.profile import HardwareProfile

_CHANNEL_LAST = (0, 2, 3, 1)
_IMAGE_RANK = 4


class LiteRtConverter:
    """Exports PyTorch and Keras modules and quantizes the flatbuffer."""

    runtime: ClassVar[str] = "litert"
    accepts: ClassVar[frozenset[str]] = frozenset({"torch", "keras"})
    methods: ClassVar[frozenset[str]] = frozenset({"float32", "static-int8"})
    reads: ClassVar[tuple[str, ...]] = (
        "layout.preferred", "numerics.int8_io", "numerics.op_rules",
    )  # fmt: skip

    def check(self, model: SourceModel, profile: HardwareProfile) -> None:
        """Return if ``model`` can be converted for ``profile``; does no work.

        Raises:
            UnsupportedModelError: It cannot; names operators, nodes, rules and ways out.
        """
        if model.framework not in self.accepts:
            raise UnsupportedModelError(
                f"{model.spec} cannot be converted to {self.runtime}",
                [f"{model.framework} models are not read by the LiteRT toolchain"],
                hint="Give the PyTorch or Keras model it was exported from, or use onnx_runtime.",
            )
        reasons = [verdict.reason for verdict in refused(model.uses, profile)]
        reasons += shape_refusals(model, profile)
        if profile.runtime(self.runtime) is None:
            reasons.append(f"{profile.id} has no runtime {self.runtime}")
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
        """Write ``model.tflite`` into ``out``; see :class:`aid_edge.converter.Converter`."""
        # The toolchain takes seconds to import and is only there with the extra `convert`.
        from converters import litert_export, litert_quantize  # noqa: PLC0415

        if isinstance(recipe.quantize, StaticInt8) and recipe.quantize.activations != "int8":
            raise ConversionError(
                "LiteRT computes with signed activations",
                hint="Ask for activations='int8' where the runtime is litert.",
            )
        axes = channel_last(model, profile)
        floating = out / "float.tflite"
        final = out / "model.tflite"
        litert_export.export(model, axes, floating)
        tools = litert_export.tools(model)
        if isinstance(recipe.quantize, StaticInt8):
            if calibration is None:
                raise ConversionError(f"{recipe.title} needs calibration data")
            litert_quantize.quantize(
                floating, recipe.quantize, (model, calibration, axes), profile, final
            )
            floating.unlink()
            tools |= litert_quantize.tools()
        else:
            floating.rename(final)
        litert_export.finish(final, model, profile)
        return Artifact(final, axes, tools)


def channel_last(model: SourceModel, profile: HardwareProfile) -> dict[str, tuple[int, ...]]:
    """Return the inputs whose channels move to the end, with their permutation.

    Only images of convolutional PyTorch models are moved; other rank-4 inputs have no channels.
    """
    convolutional = {"conv2d", "depthwise_conv2d"} & set(model.operators)
    if model.framework != "torch" or profile.layout.preferred != "NHWC" or not convolutional:
        return {}
    return {
        tensor.name: _CHANNEL_LAST
        for tensor in model.inputs
        if len(tensor.shape) == _IMAGE_RANK and tensor.datatype == "FP32"
    }
