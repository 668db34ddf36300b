"""What a candidate will cost and save, estimated before it is made. Pure.

Only the order of work and what is left out of the benchmark depend on it: every figure of a
report is measured, or marked as an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

from aid_edge.pipeline.search.space import Plan
from aid_edge.recipe import (
    DynamicInt8,
    Float16,
    Float32,
    Palettized,
    Quantize,
    Recipe,
    StaticInt8,
    Structured,
    WeightOnly,
)

GRAPH_BYTES = 20_000
"""What a file holds besides weights: names, shapes, scales. Median of the example models."""

_FLOAT_BITS = 32
_SECONDS_PER_SAMPLE_PASS = 0.05
"""Calibration time per sample and pass over the data, a small CNN on one core."""

_PASSES = {"min-max": 1, "percentile": 2, "mse": 3, "entropy": 3, "nncf": 4}
_RUNTIME_GAIN = {"openvino": 0.9, "onnx_runtime": 1.0, "litert": 1.1, "executorch": 1.1}
"""Float latency on CPUs, relative to ONNX Runtime: the median of the example models."""


@dataclass(frozen=True)
class Estimate:
    """What is expected of a candidate.

    Attributes:
        artifact_bytes: Size of the file.
        latency: Relative to the float artifact of ONNX Runtime.
        seconds: Time to make it.
        risk: Expected loss of quality, in arbitrary units: orders recipes of one size.
    """

    artifact_bytes: float
    latency: float
    seconds: float
    risk: float


def estimate(planned: Plan, parameters: int) -> Estimate:
    """Return what to expect of ``planned`` for a model of that many ``parameters``."""
    recipe = planned.recipe
    kept, macs = _kept(recipe)
    bits, speed, risk = _of_numbers(recipe.quantize)
    seconds = _SECONDS_PER_SAMPLE_PASS
    if isinstance(recipe.quantize, StaticInt8):
        seconds *= recipe.quantize.samples * _PASSES[recipe.quantize.method]
    if recipe.recover is not None:
        seconds += 60 * recipe.recover.minutes
    latency = _RUNTIME_GAIN.get(planned.runtime, 1.0) * speed * macs
    size = GRAPH_BYTES + parameters * kept * bits / 8
    return Estimate(size, latency, seconds, risk + (1 - kept) * 2)


def _kept(recipe: Recipe) -> tuple[float, float]:
    """Return which shares of weights and MACs pruning leaves: both fall with the square."""
    if isinstance(recipe.prune, Structured):
        share = (1 - recipe.prune.ratio) ** 2
        return share, share
    return 1.0, 1.0


def _of_numbers(quantize: Quantize) -> tuple[float, float, float]:
    """Return bits per weight, latency relative to float32, and risk.

    Speeds of int8 are those that the profiles' comments and the bench measured on CPUs with and
    without dot-product instructions: between 0.4 and 0.7 of float for convolutions.
    """
    match quantize:
        case Float32():
            return _FLOAT_BITS, 1.0, 0.0
        case Float16():
            return 16, 1.0, 0.01
        case DynamicInt8():
            return 8, 0.7, 0.2
        case WeightOnly():
            return quantize.bits, 1.0, 0.1 if quantize.bits == _INT8 else 0.6
        case Palettized():
            return quantize.bits, 1.0, 0.8 / quantize.bits
        case StaticInt8():
            wide = quantize.activations == "int16"
            kept = 0.02 * len(quantize.keep_float)
            helped = quantize.bias_correction or quantize.smooth_quant or quantize.method == "nncf"
            return 8, (1.2 if wide else 0.5) + kept, (0.15 if wide else 0.5) - 0.1 * helped


_INT8 = 8


def in_order(plans: list[Plan], parameters: int) -> list[Plan]:
    """Return ``plans`` with those first that are worth most for the time they take.

    Float comes first: it is the baseline of everything else. Then what is soon made, small and
    without risk, so that a search that is cut short has had the best chances.
    """

    def worth(planned: Plan) -> tuple[bool, float]:
        found = estimate(planned, parameters)
        base = GRAPH_BYTES + parameters * _FLOAT_BITS / 8
        gain = 1 - found.artifact_bytes / base + (1 - found.latency) - found.risk
        return planned.recipe.is_compressed, found.seconds / 60 - gain

    return sorted(plans, key=worth)
