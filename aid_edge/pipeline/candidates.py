"""Which recipes are tried for a profile: its runtimes times what its numerics allow. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aid_edge.errors import UnsupportedModelError, UsageError
from aid_edge.recipe import DEFAULT_CALIBRATION_SAMPLES, Float32, Recipe, StaticInt8
from device_agent.contract.profile import HardwareProfile

VNNI = frozenset({"avx512_vnni", "avx_vnni"})
"""Extensions of x86 that sum 8-bit products in 32 bits; as profiles and /proc/cpuinfo call them."""

_INT8_BITS = 8


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


def plan(
    profile: HardwareProfile,
    methods: Mapping[str, frozenset[str]],
    *,
    only: Sequence[str] = (),
    seed: int = 0,
) -> tuple[Plan, ...]:
    """Return the candidates for ``profile``, in its order of runtimes, float first.

    Args:
        profile: Whose runtimes and numerics decide.
        methods: For each installed converter, by runtime: its methods, what recipes need.
        only: Runtimes that the user asked for; empty means all that are installed.
        seed: Of the recipes.

    Raises:
        UsageError: A runtime in ``only`` is not one of the profile's.
        UnsupportedModelError: No runtime of the profile has a converter, or nothing is left.
    """
    names = [r.name for r in profile.runtimes]
    if unknown := [name for name in only if name not in names]:
        raise UsageError(
            f"profile {profile.id} has no runtime {unknown[0]!r}",
            hint=f"It has: {', '.join(names)}.",
        )
    wanted = [name for name in names if name in methods and (not only or name in only)]
    plans = [p for name in wanted for p in _of_runtime(profile, name, methods[name], seed)]
    if not plans:
        raise UnsupportedModelError(
            f"nothing can be made for profile {profile.id}",
            [f"runtime {name} has no installed converter" for name in names],
            hint="`aid-edge doctor` says which converters are installed.",
        )
    return tuple(plans)


def _of_runtime(
    profile: HardwareProfile, runtime: str, methods: frozenset[str], seed: int
) -> list[Plan]:
    recipes: list[tuple[Recipe, bool]] = []
    if "float32" in profile.numerics.dtypes:
        recipes.append((Recipe(Float32(), seed), False))
    if (int8 := _int8(profile, runtime)) is not None:
        recipes.append((Recipe(int8, seed), False))
        if runtime == "onnx_runtime":
            recipes.append((Recipe(_bias_corrected(int8), seed), True))
    return [
        Plan(runtime, recipe, fallback) for recipe, fallback in recipes if recipe.needs <= methods
    ]


def _int8(profile: HardwareProfile, runtime: str) -> StaticInt8 | None:
    numerics = profile.numerics
    if "int8" not in numerics.dtypes or numerics.weights.bits != _INT8_BITS:
        return None
    if numerics.activations.dtype == "int16":
        return None
    # LiteRT's kernels are int8 on every architecture; ONNX Runtime fuses what the profile says.
    activations = "int8" if runtime == "litert" else numerics.activations.dtype
    return StaticInt8(
        per_channel=numerics.weights.per_channel,
        activations=activations,
        symmetric_activations=numerics.activations.symmetric,
        reduce_range=runtime == "onnx_runtime" and (numerics.reduce_range or saturates(profile)),
        samples=DEFAULT_CALIBRATION_SAMPLES,
    )


def saturates(profile: HardwareProfile) -> bool:
    """Return whether 8-bit products may overflow the 16-bit sums there: x86 without VNNI.

    ONNX Runtime's documentation of quantization, "When to use reduce-range".
    """
    return profile.arch == "x86_64" and not VNNI & set(profile.isa)


def _bias_corrected(base: StaticInt8) -> StaticInt8:
    return StaticInt8(
        per_channel=base.per_channel,
        activations=base.activations,
        symmetric_activations=base.symmetric_activations,
        reduce_range=base.reduce_range,
        method="nncf",
        samples=base.samples,
    )
