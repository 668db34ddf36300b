"""LiteRT: refusals with a way out, layout, clean and equal bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from aid_edge import runner
from aid_edge.errors import ConversionError, UnsupportedModelError
from aid_edge.model import SourceModel
from aid_edge.recipe import Float32, Recipe, StaticInt8
from aid_edge.runner import ConversionRequest, ConversionResult
from aid_edge.sources.opening import open_source
from converters.litert import LiteRtConverter
from converters.litert_plan import channel_last
from device_agent.contract.profile import HardwareProfile, OpRule
from device_agent.contract.tensors import TensorInfo

INT8 = Recipe(StaticInt8(activations="int8"))


def _convert(
    model: SourceModel,
    recipe: Recipe,
    profile: HardwareProfile,
    data: dict[str, NDArray[Any]],
    out: Path,
) -> ConversionResult:
    return runner.convert(
        ConversionRequest(model, recipe, "litert", profile, data, out, calibration=data)
    )


def test_every_framework_is_taken_and_others_are_refused_with_a_way_out(
    tiny: SourceModel, arm: HardwareProfile
) -> None:
    facts = {f: getattr(tiny, f) for f in tiny.__dataclass_fields__}
    for framework in ("torch", "torchscript", "keras", "onnx", "tflite"):
        LiteRtConverter().check(SourceModel(**(facts | {"framework": framework})), arm)
    with pytest.raises(UnsupportedModelError, match="cannot be converted to litert") as caught:
        LiteRtConverter().check(SourceModel(**(facts | {"framework": "other"})), arm)
    assert "onnx_runtime" in caught.value.hint


def test_channels_move_only_for_images_of_convolutional_networks(
    tiny: SourceModel, x86: HardwareProfile, arm: HardwareProfile
) -> None:
    assert x86.layout.preferred == "NCHW"
    assert channel_last(tiny, x86) == {}
    assert channel_last(tiny, arm) == {"image": (0, 2, 3, 1)}
    facts = {f: getattr(tiny, f) for f in tiny.__dataclass_fields__}
    assert channel_last(SourceModel(**(facts | {"uses": ()})), arm) == {}


@pytest.mark.slow
def test_channel_last_int8_with_float_edges_and_equal_bytes(
    tiny: SourceModel, images: dict[str, NDArray[Any]], arm: HardwareProfile, tmp_path: Path
) -> None:
    first = _convert(tiny, INT8, arm, images, tmp_path / "a")
    second = _convert(tiny, INT8, arm, images, tmp_path / "b")
    assert first.digest == second.digest
    assert first.inputs == (TensorInfo("image", "FP32", (1, 8, 8, 3)),)
    assert first.axes == {"image": (0, 2, 3, 1)}
    assert first.to_artifact(images)["image"].shape == (12, 8, 8, 3)
    content = first.artifact.read_bytes()
    for trace in (b".py", b"site-packages", str(tmp_path).encode(), b"TinyNet"):
        assert trace not in content
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    assert all(buffer.offset <= 1 for buffer in model.buffers)


@pytest.mark.slow
def test_int8_inputs_are_quantized_at_the_edge(
    tiny: SourceModel, images: dict[str, NDArray[Any]], arm: HardwareProfile, tmp_path: Path
) -> None:
    numerics = msgspec.structs.replace(arm.numerics, int8_io=True)
    result = _convert(
        tiny, INT8, msgspec.structs.replace(arm, numerics=numerics), images, tmp_path / "a"
    )
    content = result.artifact.read_bytes()
    graph = schema.ModelT.InitFromPackedBuf(content, 0).subgraphs[0]
    assert graph.tensors[graph.inputs[0]].type == schema.TensorType.INT8
    assert graph.tensors[graph.outputs[0]].type == schema.TensorType.INT8
    assert result.inputs == (TensorInfo("image", "FP32", (1, 8, 8, 3)),)
    assert result.outputs == (TensorInfo("output", "FP32", (1, 5)),)
    assert result.closeness.cosine > 0.98


@pytest.mark.slow
def test_operators_that_must_stay_float_do(
    tiny: SourceModel, images: dict[str, NDArray[Any]], arm: HardwareProfile, tmp_path: Path
) -> None:
    rule = OpRule(op="FULLY_CONNECTED", placement="float", reason="accuracy")
    numerics = msgspec.structs.replace(arm.numerics, op_rules=(rule,))
    profile = msgspec.structs.replace(arm, numerics=numerics)
    result = _convert(tiny, INT8, profile, images, tmp_path / "a")
    assert (result.placement.integer, result.placement.floating) == (2, 1)


@pytest.mark.slow
def test_unsigned_activations_are_refused(
    tiny: SourceModel, images: dict[str, NDArray[Any]], arm: HardwareProfile, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match="signed activations"):
        _convert(tiny, Recipe(StaticInt8(activations="uint8")), arm, images, tmp_path / "a")


@pytest.mark.slow
def test_token_inputs_become_32_bits(arm: HardwareProfile, tmp_path: Path) -> None:
    inputs = (
        TensorInfo("image", "FP32", (1, 3, 4, 4)),
        TensorInfo("words", "INT64", (1, 6)),
    )
    model = open_source("tests.support.tiny_nets:two_in_two_out", inputs=inputs)
    draws = np.random.default_rng(0)
    data = {
        "image": draws.random((5, 3, 4, 4), np.float32),
        "words": draws.integers(0, 11, (5, 6)),
    }
    result = _convert(model, Recipe(Float32()), arm, data, tmp_path / "a")
    assert [i.name for i in result.inputs] == ["image", "words"]
    assert result.inputs[1].datatype == "INT32"
    assert [o.name for o in result.outputs] == ["sum", "meaning"]
    assert result.to_artifact(data)["words"].dtype == np.int32
    assert result.closeness.cosine > 0.9999
