"""Core ML: converted and inspected, never executed; wrong or missing weights are found."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aid_edge import runner
from aid_edge.errors import ConversionError, UnsupportedModelError
from aid_edge.model import SourceModel
from aid_edge.profiles import load_profile
from aid_edge.recipe import Palettized, Recipe
from aid_edge.runner import ConversionRequest, ConversionResult
from aid_edge.unexecuted import Comparison, check_weights, compare_weights
from converters.coreml import CoreMlConverter
from device_agent.contract.packed import unpack
from device_agent.contract.profile import HardwareProfile

# Importing it takes ten seconds and warns: only workers do.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("coremltools") is None, reason="the extra coreml is not installed"
)


@pytest.fixture(scope="module")
def iphone() -> HardwareProfile:
    return load_profile("iphone-15")[0]


def test_refusals_name_what_and_why(tiny: SourceModel, x86: HardwareProfile) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        CoreMlConverter().check(tiny, x86)
    assert caught.value.reasons == ["generic-x86_64 has no runtime coreml"]


def _weights() -> dict[str, NDArray[Any]]:
    draws = np.random.default_rng(0)
    return {
        "conv": draws.standard_normal((8, 3, 5, 5)).astype(np.float32),
        "linear": draws.standard_normal((10, 16)).astype(np.float32),
    }


def test_weights_are_found_moved_scaled_and_rounded() -> None:
    source = _weights()
    scale = np.linspace(-2, 3, 8, dtype=np.float32).reshape(-1, 1, 1, 1)
    artifact = {
        "a": source["conv"] * scale,
        "b": source["linear"].T.astype(np.float16).astype(np.float32),
        "c": np.ones((4, 4), np.float32),
    }
    found = compare_weights(source, artifact)
    assert (found.weights, found.found, found.scaled) == (2, 2, 1)
    assert found.found_share == 1.0
    assert found.cosine > 0.99999
    check_weights(found, "coreml", is_float=True)
    steps = {name: np.round(array * 4) / 4 for name, array in source.items()}
    rounded = compare_weights(source, steps)
    assert rounded.found == 2
    with pytest.raises(ConversionError, match="other weights than the source"):
        check_weights(rounded, "coreml", is_float=True)
    check_weights(rounded, "coreml", is_float=False)


def test_lost_and_foreign_weights_are_told() -> None:
    source = _weights()
    other = np.random.default_rng(1).standard_normal((8, 3, 5, 5)).astype(np.float32)
    found = compare_weights(source, {"a": other, "b": source["linear"]})
    assert (found.found, found.weights) == (1, 2)
    with pytest.raises(ConversionError, match=r"holds 21\.1% of the source's weights"):
        check_weights(found, "coreml", is_float=False)
    check_weights(Comparison(0, 0, 0, 1.0, 1.0), "coreml", is_float=True)


def _convert(
    model: SourceModel, how: Any, profile: HardwareProfile, images: Any, out: Path
) -> ConversionResult:
    return runner.convert(ConversionRequest(model, Recipe(how), "coreml", profile, images, out))


@pytest.mark.slow
def test_a_package_is_inspected_and_says_so(
    tiny: SourceModel, images: dict[str, NDArray[Any]], iphone: HardwareProfile, tmp_path: Path
) -> None:
    result = _convert(tiny, Palettized(4), iphone, images, tmp_path / "a")
    assert not result.executed
    assert result.closeness is None
    assert result.notes[0].startswith("converted, not executed")
    assert result.runtime_version == "17"
    assert result.placement.operators["constexpr_lut_to_dense"] == 1
    figures = {figure.what: figure for figure in result.figures}
    assert figures["weights found in the artifact"].value == 1.0
    assert 0.9 < figures["smallest cosine of a weight"].value < 0.99999
    with pytest.raises(ConversionError, match="Core ML cannot be run on this host"):
        runner.predict(result.artifact, "coreml", images)
    with pytest.raises(ConversionError, match="Core ML cannot be run on this host"):
        runner.benchmark(result.artifact, "coreml", images)
    again = _convert(tiny, Palettized(4), iphone, images, tmp_path / "elsewhere" / "b")
    assert again.digest == result.digest
    members = unpack(result.artifact)
    index = json.loads(members["model.mlpackage/Manifest.json"])
    paths = {f"model.mlpackage/Data/{item['path']}" for item in index["itemInfoEntries"].values()}
    assert all(any(name.startswith(path) for name in members) for path in paths)
    assert index["rootModelIdentifier"] in index["itemInfoEntries"]
    for trace in (b".py", b"/home", b"site-packages", b"/tmp", b"conversion_date"):
        assert trace not in result.artifact.read_bytes()
