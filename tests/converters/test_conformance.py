"""Every installed converter keeps the protocol: a tiny network times every hardware profile.

A foreign plug-in is tested by being installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from aid_edge import registry, runner, runtimes
from aid_edge.converter import Converter
from aid_edge.errors import ConversionError, MissingDependencyError, UnknownRuntimeError
from aid_edge.model import SourceModel
from aid_edge.profiles import find_profiles, load_profile
from aid_edge.recipe import Float16, Float32, Recipe, StaticInt8, WeightOnly
from aid_edge.runner import ConversionRequest
from device_agent.contract.profile import HardwareProfile

ROOT = Path(__file__).resolve().parents[2]
CASES = [
    (runtime, profile)
    for runtime in registry.available()
    for profile in sorted(find_profiles())
    if load_profile(profile)[0].runtime(runtime) is not None
]


def _converter(runtime: str) -> Converter:
    try:
        converter = registry.load(runtime)
        runtimes.version(runtime)
    except (MissingDependencyError, UnknownRuntimeError) as e:
        pytest.skip(f"{e}. {e.hint}")
    return converter


def _executes(converter: Converter) -> bool:
    return bool(getattr(converter, "executes", True))


def _recipes(converter: Converter, profile: HardwareProfile) -> list[Recipe]:
    if not _executes(converter):
        return [Recipe(Float16()), Recipe(WeightOnly(8))]
    numerics = profile.numerics
    recipes = [Recipe(Float32())] if "float32" in numerics.dtypes else []
    # Only ONNX Runtime has kernels for unsigned activations as well.
    unsigned = converter.runtime == "onnx_runtime"
    activations: Any = numerics.activations.dtype if unsigned else "int8"
    if "int8" in numerics.dtypes:
        recipes.append(
            Recipe(
                StaticInt8(
                    per_channel=numerics.weights.per_channel,
                    activations=activations,
                    reduce_range=numerics.reduce_range,
                )
            )
        )
    return [recipe for recipe in recipes if recipe.needs <= converter.methods]


@pytest.mark.parametrize("runtime", registry.available())
def test_a_converter_declares_itself(runtime: str) -> None:
    converter = _converter(runtime)
    assert converter.runtime == runtime
    assert converter.accepts
    assert converter.methods


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "name"), CASES, ids=[f"{r}-{p}" for r, p in CASES])
def test_the_tiny_network_converts_for_the_profile(
    runtime: str,
    name: str,
    tiny: SourceModel,
    images: dict[str, NDArray[Any]],
    tmp_path: Path,
) -> None:
    converter = _converter(runtime)
    profile, _ = load_profile(name)
    reference = runner.source_outputs(tiny, images)
    sizes = {}
    for recipe in _recipes(converter, profile):
        result = runner.convert(
            ConversionRequest(
                tiny, recipe, runtime, profile, images, tmp_path / recipe.key,
                calibration=images, reference=reference,
            )
        )  # fmt: skip
        sizes[recipe.key] = result.size_bytes
        assert result.artifact.parent == tmp_path / recipe.key
        left = {p.name for p in result.artifact.parent.iterdir()}
        assert left == {p.name for p in (result.artifact, *result.extras.values())}
        assert [i.name for i in result.inputs] == ["image"]
        assert [o.name for o in result.outputs] == ["output"]
        assert profile.shapes.static is (result.inputs[0].shape[0] == 1)
        assert result.tools
        assert result.executed is _executes(converter)
        for trace in (b"site-packages", b"/home/", str(tmp_path).encode(), str(ROOT).encode()):
            assert trace not in result.artifact.read_bytes()
        if not result.executed:
            assert result.closeness is None
            assert any("not executed" in note for note in result.notes)
            with pytest.raises(ConversionError, match="cannot be run on this host"):
                runner.predict(result.artifact, runtime, result.to_artifact(images))
            continue
        if recipe.needs_calibration:
            assert result.placement.integer == 3
            assert result.placement.floating == 0
            assert result.closeness.cosine > 0.98
        else:
            assert result.placement.integer == 0
            assert result.closeness.cosine > 0.9999
        moved = result.to_artifact(images)
        predicted = runner.predict(result.artifact, runtime, moved)
        assert predicted["output"].shape == reference["output"].shape
        assert predicted["output"].dtype == reference["output"].dtype
