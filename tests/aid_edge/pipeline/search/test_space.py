from __future__ import annotations

import msgspec
import pytest

from aid_edge.errors import UnsupportedModelError, UsageError
from aid_edge.pipeline.search.space import Wishes, plan
from aid_edge.pipeline.search.traits import Traits, traits_of
from aid_edge.profiles import load_profile
from aid_edge.recipe import Recipe, StaticInt8, Structured
from device_agent.contract.profile import HardwareProfile

ALL = frozenset({"float32", "static-int8", "static-int8-nncf"})
METHODS = {"onnx_runtime": ALL, "litert": frozenset({"float32", "static-int8"})}


def test_runtimes_of_the_profile_times_its_numerics(profile: HardwareProfile) -> None:
    plans = plan(profile, METHODS)
    order = [r.name for r in profile.runtimes]
    assert list(dict.fromkeys(p.runtime for p in plans)) == order
    first = [p for p in plans if not p.fallback]
    assert {p.id for p in first} == {f"{r}/{k}" for r in order for k in ("float32", "static-int8")}
    assert [p.id for p in plans if p.fallback] == ["onnx_runtime/static-int8-nncf"]


def test_activations_are_what_the_runtime_fuses_there() -> None:
    found = {}
    for name in ("generic-x86_64", "raspberry-pi-4"):
        for one in plan(load_profile(name)[0], METHODS):
            if isinstance(one.recipe.quantize, StaticInt8) and not one.fallback:
                found[name, one.runtime] = one.recipe.quantize.activations
    assert found["generic-x86_64", "onnx_runtime"] == "uint8"
    assert found["raspberry-pi-4", "onnx_runtime"] == "int8"
    assert {v for (_, runtime), v in found.items() if runtime == "litert"} == {"int8"}


@pytest.mark.parametrize(
    ("isa", "reduced"),
    [(("sse4_2", "avx2"), True), (("avx512f", "avx512_vnni"), False), (("avx_vnni",), False)],
)
def test_weights_are_reduced_where_sums_would_overflow(
    profile: HardwareProfile, isa: tuple[str, ...], reduced: bool
) -> None:
    numerics = msgspec.structs.replace(profile.numerics, reduce_range=False)
    plans = plan(msgspec.structs.replace(profile, isa=isa, numerics=numerics), METHODS)
    found = {
        p.runtime: p.recipe.quantize.reduce_range
        for p in plans
        if isinstance(p.recipe.quantize, StaticInt8)
    }
    assert found == {"onnx_runtime": reduced, "litert": False}


def test_a_float_only_profile_gets_no_int8(profile: HardwareProfile) -> None:
    numerics = msgspec.structs.replace(profile.numerics, dtypes=("float32",))
    plans = plan(msgspec.structs.replace(profile, numerics=numerics), METHODS)
    assert {p.recipe.key for p in plans} == {"float32"}


def test_only_some_runtimes_may_be_asked_for(profile: HardwareProfile) -> None:
    assert {p.runtime for p in plan(profile, METHODS, Wishes(only=("litert",)))} == {"litert"}
    with pytest.raises(UsageError, match="has no runtime 'openvino'") as caught:
        plan(profile, METHODS, Wishes(only=("openvino",)))
    assert "onnx_runtime" in caught.value.hint


def test_a_profile_without_any_converter_is_refused(profile: HardwareProfile) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        plan(profile, {})
    assert any("onnx_runtime" in reason for reason in caught.value.reasons)


def test_the_seed_is_part_of_every_recipe(profile: HardwareProfile) -> None:
    assert {p.recipe.seed for p in plan(profile, METHODS, Wishes(seed=7))} == {7}


EVERYTHING = frozenset({
    "float32", "float16", "dynamic-int8", "static-int8", "static-int8-percentile",
    "static-int8-entropy", "static-int8-mse", "static-int8-nncf", "static-int16x8",
    "weight-only-int8", "weight-only-int4", "palettized", "bias-correction", "smooth-quant",
    "keep-float",
})  # fmt: skip
TRANSFORMER = Traits(transformer=True, linear_heavy=True, embeddings=True)


def keys(profile: HardwareProfile, runtime: str, wishes: Wishes) -> set[str]:
    return {p.recipe.key for p in plan(profile, {runtime: EVERYTHING}, wishes)}


def test_a_full_search_tries_all_that_a_converter_can_do(profile: HardwareProfile) -> None:
    found = keys(profile, "onnx_runtime", Wishes(search="full"))
    assert {
        "static-int8-percentile", "static-int8-mse", "static-int8-entropy", "static-int8-nncf",
        "static-int8-corrected", "static-int8-percentile-corrected", "static-int16x8",
        "dynamic-int8",
    } <= found  # fmt: skip
    assert not any("smooth" in key or "weight-only" in key for key in found)
    plans = plan(profile, {"onnx_runtime": EVERYTHING}, Wishes(search="full"))
    assert not any(p.fallback for p in plans)
    assert len({p.id for p in plans}) == len(plans)


def test_nets_of_products_are_quantized_dynamically_first(profile: HardwareProfile) -> None:
    quick = plan(profile, {"onnx_runtime": EVERYTHING}, Wishes(traits=TRANSFORMER))
    first = [p.recipe.key for p in quick if not p.fallback]
    assert first.index("dynamic-int8") < first.index("static-int8-corrected")
    assert "static-int8-corrected-smooth" in {p.recipe.key for p in quick if p.fallback}
    full = keys(profile, "onnx_runtime", Wishes(search="full", traits=TRANSFORMER))
    assert {"weight-only-int8", "weight-only-int4"} <= full
    without = Wishes(traits=TRANSFORMER, calibration=False)
    assert keys(profile, "onnx_runtime", without) == {"float32", "dynamic-int8"}


def test_openvino_is_quantized_by_nncf_and_x86_without_vnni_saturates(
    profile: HardwareProfile,
) -> None:
    runtime = msgspec.structs.replace(profile.runtimes[0], name="openvino")
    only = msgspec.structs.replace(profile, runtimes=(runtime,))
    (int8,) = [
        p.recipe.quantize
        for p in plan(only, {"openvino": frozenset({"float32", "static-int8", "static-int8-nncf"})})
        if isinstance(p.recipe.quantize, StaticInt8)
    ]
    assert (int8.method, int8.reduce_range) == ("nncf", True)


def test_core_ml_begins_with_weights_only() -> None:
    phone = load_profile("iphone-15")[0]
    methods = {"coreml": frozenset({"float32", "float16", "weight-only-int8", "palettized"})}
    assert [p.recipe.key for p in plan(phone, methods)] == [
        "float32", "float16", "weight-only-int8", "palettized-6",
    ]  # fmt: skip


def test_a_microcontroller_gets_integers_only() -> None:
    chip = load_profile("cortex-m55-ethos-u55")[0]
    methods = {"tflite_micro": frozenset({"float32", "static-int8", "static-int16x8"})}
    plans = plan(chip, methods)
    assert [(p.recipe.key, p.fallback) for p in plans] == [
        ("static-int8", False), ("static-int16x8", True),
    ]  # fmt: skip
    assert {p.recipe.quantize.activations for p in plans} == {"int8", "int16"}  # type: ignore[union-attr]


def test_nothing_is_pruned_unless_recovery_may_take_time(profile: HardwareProfile) -> None:
    prepared = frozenset({"onnx_runtime"})

    def pruned(**wishes: object) -> list[Recipe]:
        asked = Wishes(prepared=prepared, **wishes)  # type: ignore[arg-type]
        return [p.recipe for p in plan(profile, {"onnx_runtime": EVERYTHING}, asked)
                if p.recipe.is_prepared]  # fmt: skip

    assert pruned() == []
    distilled = pruned(recovery_minutes=2.0)
    assert [r.key for r in distilled] == [
        "pruned30-distilled-static-int8-corrected", "pruned50-distilled-static-int8-corrected",
    ]  # fmt: skip
    assert {r.recover.minutes for r in distilled if r.recover} == {2.0}
    assert {r.prune.round_to for r in distilled if isinstance(r.prune, Structured)} == {8}
    tuned = pruned(recovery_minutes=2.0, train=True)
    assert {r.key for r in tuned} == {
        "pruned30-tuned-static-int8-corrected", "pruned50-tuned-static-int8-corrected",
        "qat-static-int8-corrected",
    }  # fmt: skip
    assert pruned(recovery_minutes=2.0, calibration=False) == []
    full = {r.key for r in pruned(recovery_minutes=2.0, search="full")}
    assert {
        "pruned50-global-distilled-static-int8-corrected",
        "sparse50-distilled-static-int8-corrected",
    } <= full
    other = Wishes(recovery_minutes=2.0)
    assert not any(p.recipe.is_prepared for p in plan(profile, METHODS, other))


@pytest.mark.parametrize(
    ("operators", "expected"),
    [
        ({"conv2d": 9, "linear": 1, "softmax": 1}, Traits(convolutional=True)),
        ({"Conv": 20, "Gather": 3}, Traits(convolutional=True)),
        (
            {"MatMul": 72, "LayerNormalization": 25, "Softmax": 12, "Gather": 3},
            Traits(transformer=True, linear_heavy=True, embeddings=True),
        ),
        (
            {"MatMul": 72, "ReduceMean": 50, "Sqrt": 25, "Softmax": 12},
            Traits(transformer=True, linear_heavy=True),
        ),
        (
            {"aten.layer_norm": 4, "aten.scaled_dot_product_attention": 2, "aten.linear": 9},
            Traits(transformer=True, linear_heavy=True),
        ),
        ({"LSTM": 2, "Gemm": 1}, Traits(recurrent=True)),
        ({"Gemm": 3, "Relu": 2}, Traits()),
    ],
)
def test_traits_are_read_from_operators(operators: dict[str, int], expected: Traits) -> None:
    assert traits_of(operators) == expected
