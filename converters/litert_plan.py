"""What is decided before a LiteRT model is made: refusals, layout, element types. Light."""

from __future__ import annotations

from aid_edge.errors import ConversionError, UnsupportedModelError
from aid_edge.model import SourceModel
from aid_edge.recipe import Float32, Recipe, StaticInt8, WeightOnly
from aid_edge.sources.operators import refused, shape_refusals
from device_agent.contract.profile import HardwareProfile

ACCEPTS = frozenset({"torch", "torchscript", "keras", "onnx", "tflite"})
BLOCKS = (32, 64, 128, 256)
"""Sizes of groups of weights that ai-edge-quantizer's policy has for four bits."""

_CHANNEL_LAST = (0, 2, 3, 1)
_IMAGE_RANK = 4
_COLORS = frozenset({1, 3, 4})
_CONVOLUTIONS = frozenset({"conv2d", "depthwise_conv2d", "convolution", "Conv", "FusedConv"})


def check_model(model: SourceModel, profile: HardwareProfile, runtime: str) -> None:
    """Return if ``model`` can be converted to ``runtime`` for ``profile``; does no work.

    Raises:
        UnsupportedModelError: It cannot; names operators, nodes, rules and ways out.
    """
    if model.framework not in ACCEPTS:
        raise UnsupportedModelError(
            f"{model.spec} cannot be converted to {runtime}",
            [f"{model.framework} models are not read by the LiteRT toolchain"],
            hint="Give the PyTorch, Keras or ONNX model, or use onnx_runtime.",
        )
    reasons = [verdict.reason for verdict in refused(model.uses, profile)]
    reasons += shape_refusals(model, profile)
    if profile.runtime(runtime) is None:
        reasons.append(f"{profile.id} has no runtime {runtime}")
    if reasons:
        raise UnsupportedModelError(
            f"{model.spec} cannot be converted to {runtime} for {profile.id}",
            reasons,
            hint="Choose another profile or runtime, or change the model where it is named.",
        )


def check_recipe(model: SourceModel, recipe: Recipe) -> None:
    """Return if LiteRT's tools can carry out ``recipe``.

    Raises:
        ConversionError: They cannot; says what they can.
        UnsupportedModelError: The model is quantized already.
    """
    quantize = recipe.quantize
    if model.quantized and not isinstance(quantize, Float32):
        raise UnsupportedModelError(
            f"{model.spec} cannot be quantized",
            ["the file is quantized already; it can only be passed through"],
            hint="Give the float model, or take the recipe float32, which leaves it as it is.",
        )
    if isinstance(quantize, StaticInt8) and quantize.activations == "uint8":
        raise ConversionError(
            "LiteRT computes with signed activations",
            hint="Ask for activations='int8' where the runtime is litert.",
        )
    if isinstance(quantize, WeightOnly) and quantize.group not in {0, *BLOCKS}:
        raise ConversionError(
            f"LiteRT has no groups of {quantize.group} weights",
            hint=f"It has groups of {', '.join(map(str, BLOCKS))}, and whole channels (0).",
        )


def channel_last(model: SourceModel, profile: HardwareProfile) -> dict[str, tuple[int, ...]]:
    """Return the inputs whose channels move to the end, with their permutation.

    Only images of convolutional models that have them in front are moved; other rank-4 inputs have
    no channels, and Keras and LiteRT models have them at the end.
    """
    if (
        model.framework in {"keras", "tflite"}
        or profile.layout.preferred != "NHWC"
        or not _CONVOLUTIONS & set(model.operators)
    ):
        return {}
    return {
        tensor.name: _CHANNEL_LAST
        for tensor in model.inputs
        if len(tensor.shape) == _IMAGE_RANK
        and tensor.datatype == "FP32"
        # An ONNX file that was made from TensorFlow takes images as TensorFlow does.
        and not (tensor.shape[3] in _COLORS and tensor.shape[1] not in _COLORS)
    }
