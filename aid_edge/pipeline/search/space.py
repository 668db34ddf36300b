"""Which recipes are tried for a profile: its runtimes times what its numerics allow. Pure.

``quick`` is what pays nearly always, with fallbacks that are only made when quality is missed;
``full`` is all that the runtimes' converters can do. Defaults per runtime follow what their own
documentations recommend; they are named where they are chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from aid_edge.errors import UnsupportedModelError, UsageError
from aid_edge.pipeline.search.traits import Traits
from aid_edge.recipe import (
    DynamicInt8,
    Float16,
    Float32,
    Method,
    Palettized,
    Prune,
    Quantize,
    Recipe,
    Recover,
    StaticInt8,
    Structured,
    Unstructured,
    WeightOnly,
)
from device_agent.contract.profile import HardwareProfile

VNNI = frozenset({"avx512_vnni", "avx_vnni"})
"""Extensions of x86 that sum 8-bit products in 32 bits; as profiles and /proc/cpuinfo call them."""

Search = Literal["quick", "full"]

QUICK_RATIOS = (0.3, 0.5)
FULL_RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
"""Shares of channels taken out. 0.3 halves the MACs: of a convolution (1 - 0.3)^2 are left."""

SPARSITIES = (0.5,)
INT4_GROUP = 32
"""Weights that share a scale in four bits; what ExecuTorch's and ONNX Runtime's kernels take."""

_INT8_BITS = 8
_METHODS: tuple[Method, ...] = ("min-max", "percentile", "mse", "entropy", "nncf")
_FALLBACKS: tuple[Method, ...] = ("nncf", "percentile")
_SATURATING = frozenset({"onnx_runtime", "openvino"})
"""Runtimes whose x86 kernels without VNNI sum pairs of 8-bit products in 16 bits."""

_PALETTES: tuple[Literal[8, 6, 4], ...] = (8, 6, 4)
_PALETTIZING = "coreml"


@dataclass(frozen=True)
class Plan:
    """One candidate to make.

    Attributes:
        fallback: Only made when the runtime's first int8 recipe misses a quality gate.
    """

    runtime: str
    recipe: Recipe
    fallback: bool = False

    @property
    def id(self) -> str:
        """Unique within a profile, such as ``onnx_runtime/static-int8``."""
        return f"{self.runtime}/{self.recipe.key}"


@dataclass(frozen=True)
class Wishes:
    """What the user asked for and gave, and what kind of net it is.

    Attributes:
        only: Runtimes that were asked for; empty means all that are installed.
        seed: Of the recipes.
        search: How much is tried.
        calibration: Whether unlabelled inputs were given.
        train: Whether labelled training data were given.
        recovery_minutes: Of training per pruned model; 0 means that nothing is pruned.
        traits: Of the source model.
        prepared: Runtimes whose converters take what pruning and recovery leave: PyTorch.
    """

    only: tuple[str, ...] = ()
    seed: int = 0
    search: Search = "quick"
    calibration: bool = True
    train: bool = False
    recovery_minutes: float = 0.0
    traits: Traits = field(default_factory=Traits)
    prepared: frozenset[str] = frozenset()


def plan(
    profile: HardwareProfile, methods: Mapping[str, frozenset[str]], wishes: Wishes | None = None
) -> tuple[Plan, ...]:
    """Return the candidates for ``profile``, in its order of runtimes, float first.

    Args:
        profile: Whose runtimes and numerics decide.
        methods: For each installed converter, by runtime: its methods, what recipes need.
        wishes: What was asked for and given.

    Raises:
        UsageError: A runtime that was asked for is not one of the profile's.
        UnsupportedModelError: No runtime of the profile has a converter, or nothing is left.
    """
    wishes = wishes or Wishes()
    names = [r.name for r in profile.runtimes]
    if unknown := [name for name in wishes.only if name not in names]:
        raise UsageError(
            f"profile {profile.id} has no runtime {unknown[0]!r}",
            hint=f"It has: {', '.join(names)}.",
        )
    wanted = [n for n in names if n in methods and (not wishes.only or n in wishes.only)]
    plans = [p for name in wanted for p in _of_runtime(profile, name, methods[name], wishes)]
    if not plans:
        lacking = [f"runtime {name} has no installed converter" for name in names]
        offered = [
            f"{n}: {', '.join(sorted(methods[n]))} do not go with the profile's numbers "
            f"({', '.join(profile.numerics.dtypes)})"
            for n in wanted
        ]
        raise UnsupportedModelError(
            f"nothing can be made for profile {profile.id}", offered or lacking,
            hint="`aid-edge doctor` says which converters are installed.",
        )  # fmt: skip
    return tuple(plans)


def saturates(profile: HardwareProfile) -> bool:
    """Return whether 8-bit products may overflow the 16-bit sums there: x86 without VNNI.

    ONNX Runtime's documentation of quantization, "When to use reduce-range".
    """
    return profile.arch == "x86_64" and not VNNI & set(profile.isa)


def default_int8(
    profile: HardwareProfile, runtime: str, methods: frozenset[str]
) -> StaticInt8 | None:
    """Return the static integer recipe that ``runtime`` should be tried with first, if any."""
    numerics = profile.numerics
    if "int8" not in numerics.dtypes or numerics.weights.bits != _INT8_BITS:
        return None
    activations = numerics.activations.dtype
    if runtime != "onnx_runtime" and activations != "int16":
        # ONNX Runtime fuses what the profile says. The kernels of the others are int8 everywhere
        # (LiteRT's 8-bit specification; ExecuTorch's XNNPACK quantizer); NNCF picks by itself.
        activations = "int8"
    # NNCF is OpenVINO's own quantizer; it has no other.
    only_nncf = "static-int8-nncf" in methods and runtime == "openvino"
    # Per-channel weights without it lose most on depthwise nets (Nagel et al., arXiv:1906.04721,
    # section 4.2); NNCF and AI Edge Quantizer have their own.
    corrected = runtime == "onnx_runtime" and "bias-correction" in methods
    return StaticInt8(
        per_channel=numerics.weights.per_channel,
        activations=activations,
        symmetric_activations=numerics.activations.symmetric,
        reduce_range=runtime in _SATURATING and (numerics.reduce_range or saturates(profile)),
        method="nncf" if only_nncf else "min-max",
        bias_correction=corrected,
    )


def _of_runtime(
    profile: HardwareProfile, runtime: str, methods: frozenset[str], wishes: Wishes
) -> list[Plan]:
    found: dict[str, Plan] = {}
    variants = [
        *_usual(profile, runtime, methods, wishes),
        *(_further(profile, runtime, methods, wishes) if wishes.search == "full" else ()),
        *_prepared(profile, runtime, methods, wishes),
    ]
    for recipe, fallback in variants:
        planned = Plan(runtime, recipe, fallback and wishes.search == "quick")
        if recipe.needs <= methods:
            found.setdefault(planned.id, planned)
    plans = list(found.values())
    if not wishes.calibration and wishes.traits.prefers_dynamic:
        free = [p for p in plans if not p.recipe.needs_calibration]
        # Without calibration data the net's own default recipe is still there.
        plans = free if any(p.recipe.is_compressed for p in free) else plans
    return plans


def _usual(
    profile: HardwareProfile, runtime: str, methods: frozenset[str], wishes: Wishes
) -> Iterator[tuple[Recipe, bool]]:
    """Yield what pays nearly always, and what helps when it misses in quality."""

    def whole(quantize: Quantize) -> Recipe:
        return Recipe(quantize, wishes.seed)

    dtypes, traits = profile.numerics.dtypes, wishes.traits
    if "float32" in dtypes:
        yield whole(Float32()), False
    if "float16" in dtypes:
        yield whole(Float16()), False
    if runtime == _PALETTIZING:
        # Core ML Tools' guide, "Optimization workflow": weights only first, needs no data.
        yield whole(WeightOnly(8)), False
        yield whole(Palettized(6)), False
    int8 = default_int8(profile, runtime, methods)
    if int8 is None:
        return
    if traits.prefers_dynamic and int8.activations != "int16":
        yield whole(DynamicInt8(int8.per_channel)), False
    yield whole(int8), False
    if traits.mostly_weights and "dynamic-int8" not in methods:
        yield whole(WeightOnly(8)), False
    for recipe in _fallbacks(int8, runtime, wishes):
        yield recipe, True


def _fallbacks(int8: StaticInt8, runtime: str, wishes: Wishes) -> Iterator[Recipe]:
    """Yield what helps when the runtime's first int8 recipe misses in quality."""
    variants = [replace(int8, smooth_quant=True)] if wishes.traits.transformer else []
    variants += [_by(int8, method) for method in _FALLBACKS]
    variants.append(replace(int8, bias_correction=not int8.bias_correction))
    if int8.activations == "int8" and runtime != "onnx_runtime":
        variants.append(_wide(int8))
    for quantize in variants:
        yield Recipe(quantize, wishes.seed)
    if wishes.train and wishes.recovery_minutes > 0 and runtime in wishes.prepared:
        yield Recipe(int8, wishes.seed, None, Recover("qat", wishes.recovery_minutes))


def _further(
    profile: HardwareProfile, runtime: str, methods: frozenset[str], wishes: Wishes
) -> Iterator[tuple[Recipe, bool]]:
    """Yield everything else that the runtime's converter may have."""
    traits = wishes.traits
    quantized: list[Quantize] = []
    int8 = default_int8(profile, runtime, methods)
    if int8 is not None:
        quantized.append(DynamicInt8(int8.per_channel))
        for method in _METHODS:
            quantized.append(replace(int8, method=method, bias_correction=False))
            if method != "nncf":
                quantized.append(replace(int8, method=method, bias_correction=True))
        if traits.transformer:
            quantized.append(replace(int8, smooth_quant=True, bias_correction=True))
        if int8.activations != "int16":
            quantized.append(_wide(int8))
    if profile.class_ != "mcu" and (traits.mostly_weights or runtime == _PALETTIZING):
        quantized += [WeightOnly(8), WeightOnly(4, INT4_GROUP)]
    if runtime == _PALETTIZING:
        quantized += [Palettized(bits) for bits in _PALETTES]
    for quantize in quantized:
        yield Recipe(quantize, wishes.seed), False


def _prepared(
    profile: HardwareProfile, runtime: str, methods: frozenset[str], wishes: Wishes
) -> Iterator[tuple[Recipe, bool]]:
    """Yield pruned and recovered models: only where recovery may take time and has data."""
    if wishes.recovery_minutes <= 0 or runtime not in wishes.prepared:
        return
    if wishes.train:
        recover = Recover("fine-tune", wishes.recovery_minutes)
    elif wishes.calibration:
        recover = Recover("distill", wishes.recovery_minutes)
    else:
        return
    int8 = default_int8(profile, runtime, methods)
    last: Quantize
    if int8 is not None and int8.needs <= methods:
        last = int8
    else:
        last = Float16() if "float16" in profile.numerics.dtypes else Float32()
    full = wishes.search == "full"
    multiple = profile.layout.channel_multiple
    prunes: list[Prune] = [
        Structured(ratio, round_to=multiple) for ratio in (FULL_RATIOS if full else QUICK_RATIOS)
    ]
    if full:
        prunes += [Structured(0.5, scope, multiple) for scope in ("global", "sensitivity")]
        prunes += [Unstructured(sparsity) for sparsity in SPARSITIES]
    for prune in prunes:
        yield Recipe(last, wishes.seed, prune, recover), False


def _by(int8: StaticInt8, method: Method) -> StaticInt8:
    """Return the recipe with ranges by ``method``; NNCF corrects biases by itself."""
    corrected = int8.bias_correction and method != "nncf"
    return replace(int8, method=method, bias_correction=corrected)


def _wide(int8: StaticInt8) -> StaticInt8:
    """Return the recipe with 16-bit activations, which are always symmetric."""
    return replace(
        int8, activations="int16", symmetric_activations=True, method="min-max",
        bias_correction=False,
    )  # fmt: skip
