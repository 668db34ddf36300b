from __future__ import annotations

import msgspec
import pytest

from aid_edge.errors import UnsupportedModelError, UsageError
from aid_edge.pipeline.search.space import Wishes, plan
from aid_edge.profiles import load_profile
from aid_edge.recipe import StaticInt8
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
