"""ExecuTorch: refusals before work, equal and clean bytes, and programs nobody delegated."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aid_edge import executed, isolate, runner
from aid_edge.converter import Artifact
from aid_edge.errors import ConversionError, UnsupportedModelError
from aid_edge.model import SourceModel
from aid_edge.outcome import check_placed
from aid_edge.profiles import load_profile
from aid_edge.recipe import DynamicInt8, Float32, Recipe, StaticInt8
from aid_edge.runner import ConversionRequest, ConversionResult
from aid_edge.runtimes import Placement, open_artifact
from aid_edge.sources.opening import open_source
from converters.executorch import ExecuTorchConverter
from device_agent.contract.profile import HardwareProfile
from device_agent.contract.tensors import TensorInfo
from tests.support import executorch_steps

# Importing it takes ten seconds and warns: only workers do.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="the extra executorch is not installed"
)


@pytest.fixture(scope="module")
def pi() -> HardwareProfile:
    return load_profile("raspberry-pi-5")[0]


def _convert(
    model: SourceModel, how: Any, profile: HardwareProfile, images: Any, out: Path
) -> ConversionResult:
    return runner.convert(
        ConversionRequest(
            model, Recipe(how), "executorch", profile, images, out, calibration=images
        )
    )


def test_refusals_name_what_and_why(tiny: SourceModel, x86: HardwareProfile) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        ExecuTorchConverter().check(tiny, x86)
    assert caught.value.reasons == ["generic-x86_64 has no runtime executorch"]


@pytest.mark.slow
def test_unsigned_activations_are_refused(
    tiny: SourceModel, images: dict[str, NDArray[Any]], pi: HardwareProfile, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match="signed 8-bit activations") as caught:
        _convert(tiny, StaticInt8(activations="uint8"), pi, images, tmp_path / "o")
    assert "activations='int8'" in caught.value.hint


def test_reference_kernels_are_refused_by_name() -> None:
    check_placed(Placement(3, 0, {}), "executorch")
    slow = {"aten::convolution": 2, "aten::addmm": 1}
    with pytest.raises(ConversionError) as caught:
        check_placed(Placement(1, 3, {}, slow), "executorch")
    assert "3 of 4 compute operators" in str(caught.value)
    assert "aten::addmm (1x), aten::convolution (2x)" in str(caught.value)


@pytest.mark.slow
def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pte"
    path.write_bytes(b"garbage" * 20)
    with pytest.raises(ConversionError, match="ExecuTorch refuses it"):
        # In a worker: opening one restricts the process to few processors.
        isolate.run(open_artifact, path, "executorch")


@pytest.mark.slow
def test_a_program_that_is_not_delegated_is_told(
    tiny: SourceModel, images: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    """It answers as the source does, some hundred times slower: only counting shows it."""
    path = tmp_path / "m.pte"
    isolate.run(executorch_steps.undelegated, tiny, path)
    facts = isolate.run(
        executed.check_in_worker, Artifact(path), "executorch", images, saturates=False
    ).value
    want = runner.source_outputs(tiny, images)["output"]
    np.testing.assert_allclose(facts.outputs["output"], want, atol=1e-5)
    assert facts.placement.slow == {"aten::addmm": 1, "aten::convolution": 2}
    with pytest.raises(ConversionError, match="hundreds of times slower"):
        check_placed(facts.placement, "executorch")


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_bytes_and_no_trace_of_the_machine(
    tiny: SourceModel, images: dict[str, NDArray[Any]], pi: HardwareProfile, tmp_path: Path
) -> None:
    recipe = StaticInt8(activations="int8", method="mse")
    first = _convert(tiny, recipe, pi, images, tmp_path / "a")
    second = _convert(tiny, recipe, pi, images, tmp_path / "elsewhere" / "b")
    assert first.digest == second.digest
    assert (first.placement.integer, first.placement.floating) == (3, 0)
    assert first.closeness is not None
    assert first.closeness.cosine > 0.99
    content = first.artifact.read_bytes()
    for trace in (b".py", b"/home", b"site-packages", b"/tmp", str(Path.cwd()).encode()):
        assert trace not in content


@pytest.mark.slow
def test_several_inputs_and_outputs_keep_their_names(pi: HardwareProfile, tmp_path: Path) -> None:
    inputs = [TensorInfo("image", "FP32", (-1, 3, 8, 8)), TensorInfo("words", "INT64", (-1, 6))]
    model = open_source("tests.support.tiny_nets:two_in_two_out", inputs=inputs)
    draws = np.random.default_rng(0)
    data = {
        "image": draws.random((3, 3, 8, 8), np.float32),
        "words": draws.integers(0, 11, (3, 6), np.int64),
    }
    result = _convert(model, Float32(), pi, data, tmp_path / "o")
    assert [i.name for i in result.inputs] == ["image", "words"]
    assert [o.name for o in result.outputs] == ["sum", "meaning"]
    assert result.placement.slow == {}


@pytest.mark.slow
def test_dynamic_int8_takes_linear_layers(pi: HardwareProfile, tmp_path: Path) -> None:
    model = open_source(
        "tests.support.tiny_nets:attends", inputs=[TensorInfo("image", "FP32", (-1, 3, 16, 16))]
    )
    draws = np.random.default_rng(0).standard_normal((6, 3, 16, 16))
    result = _convert(model, DynamicInt8(), pi, {"image": draws.astype(np.float32)}, tmp_path / "o")
    assert result.placement.integer >= 5
    assert result.closeness is not None
    assert result.closeness.cosine > 0.98
