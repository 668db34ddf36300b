"""ONNX Runtime: refusals before work, clean and equal bytes, rules that are kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from aid_edge import runner
from aid_edge.errors import DataError, UnsupportedModelError
from aid_edge.model import OperatorUse, SourceModel
from aid_edge.recipe import Float32, Recipe, StaticInt8
from aid_edge.runner import ConversionRequest
from aid_edge.sources.opening import open_source
from converters.onnx_runtime import OnnxRuntimeConverter
from device_agent.contract.profile import HardwareProfile, OpRule, Shapes
from device_agent.contract.tensors import TensorInfo


def _model(**changes: Any) -> SourceModel:
    facts: dict[str, Any] = {
        "spec": "net.onnx",
        "framework": "onnx",
        "weights": None,
        "inputs": (TensorInfo("x", "FP32", (-1, 3, 8, 8)),),
        "outputs": (TensorInfo("y", "FP32", (-1, 5)),),
        "uses": (OperatorUse("Conv", 2, 4, "conv1"),),
        "parameters": 10,
        "digest": "sha256:" + "0" * 64,
        "opset": 18,
    }
    return SourceModel(**(facts | changes))


def _with_rule(profile: HardwareProfile, rule: OpRule) -> HardwareProfile:
    numerics = msgspec.structs.replace(profile.numerics, op_rules=(rule,))
    return msgspec.structs.replace(profile, numerics=numerics)


def _reasons(model: SourceModel, profile: HardwareProfile) -> list[str]:
    with pytest.raises(UnsupportedModelError) as caught:
        OnnxRuntimeConverter().check(model, profile)
    assert caught.value.hint
    return caught.value.reasons


def test_refused_operators_are_named_with_node_and_rule(x86: HardwareProfile) -> None:
    uses = (OperatorUse("Conv", 2, 4, "conv1"), OperatorUse("Loop", 1, 0, "decode"))
    (reason,) = _reasons(_model(uses=uses), x86)
    assert "operator Loop (1x, first at decode) is refused by the rule Loop" in reason
    assert "memory cannot be bounded" in reason


def test_rules_speak_of_operators_in_any_framework(x86: HardwareProfile) -> None:
    rule = OpRule(op="Gelu", placement="refuse", reason="no kernel")
    (reason,) = _reasons(
        _model(framework="torch", uses=(OperatorUse("gelu", 1, 3, "gelu_1"),)),
        _with_rule(x86, rule),
    )
    assert reason.startswith("operator gelu (1x, first at gelu_1)")


def test_rules_can_depend_on_rank(x86: HardwareProfile) -> None:
    profile = _with_rule(
        x86, OpRule(op="Conv", condition="rank > 4", placement="refuse", reason="2D only")
    )
    OnnxRuntimeConverter().check(_model(), profile)
    (reason,) = _reasons(_model(uses=(OperatorUse("Conv", 1, 5, "conv3d"),)), profile)
    assert "with rank > 4: 2D only" in reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": (TensorInfo("x", "FP32", (-1, 3, -1, -1)),)}, "x .* varies in axis 2, 3"),
        ({"inputs": (TensorInfo("x", "FP32", (8, 3, 8, 8)),)}, "x has batch 8; .* at most 1"),
        ({"inputs": (TensorInfo("x", "FP32", (1,) * 7),)}, "x has rank 7; .* at most rank 6"),
        ({"inputs": (TensorInfo("x", "FP32", ()),)}, "x is a scalar"),
        ({"uses": (OperatorUse("Add", 1, 8, "deep"),)}, "operator Add, first at deep, has rank 8"),
        ({"opset": 25}, "opset 25, over 21"),
    ],
)
def test_shapes_and_opsets_are_refused(
    changes: dict[str, Any], message: str, x86: HardwareProfile
) -> None:
    reasons = _reasons(_model(**changes), x86)
    assert any(re.search(message, reason) for reason in reasons)


def _convert(
    model: SourceModel,
    recipe: Recipe,
    profile: HardwareProfile,
    images: dict[str, NDArray[Any]],
    out: Path,
) -> runner.ConversionResult:
    request = ConversionRequest(
        model, recipe, "onnx_runtime", profile, images, out, calibration=images
    )
    return runner.convert(request)


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_bytes_and_no_trace_of_the_machine(
    tiny: SourceModel, images: dict[str, NDArray[Any]], x86: HardwareProfile, tmp_path: Path
) -> None:
    recipe = Recipe(StaticInt8(reduce_range=True))
    first = _convert(tiny, recipe, x86, images, tmp_path / "a")
    second = _convert(tiny, recipe, x86, images, tmp_path / "elsewhere" / "b")
    assert first.digest == second.digest
    floating = _convert(tiny, Recipe(Float32()), x86, images, tmp_path / "c")
    for result in (first, floating):
        content = result.artifact.read_bytes()
        for trace in (b"stack_trace", b".py", b"/home", b"site-packages", str(tmp_path).encode()):
            assert trace not in content


@pytest.mark.slow
def test_operators_that_must_stay_float_do(
    tiny: SourceModel, images: dict[str, NDArray[Any]], x86: HardwareProfile, tmp_path: Path
) -> None:
    profile = _with_rule(x86, OpRule(op="Gemm", placement="float", reason="accuracy"))
    result = _convert(tiny, Recipe(StaticInt8(reduce_range=True)), profile, images, tmp_path / "o")
    assert (result.placement.integer, result.placement.floating) == (2, 1)


@pytest.mark.slow
def test_a_dynamic_batch_is_kept_where_the_profile_permits(
    tiny: SourceModel, images: dict[str, NDArray[Any]], x86: HardwareProfile, tmp_path: Path
) -> None:
    profile = msgspec.structs.replace(x86, shapes=Shapes(static=False, max_batch=8))
    result = _convert(tiny, Recipe(Float32()), profile, images, tmp_path / "o")
    assert result.inputs[0].shape == (-1, 3, 8, 8)
    assert result.closeness.batches == (1, 2, 3, 65)
    one = runner.predict(result.artifact, "onnx_runtime", images)["output"]
    many = runner.predict(result.artifact, "onnx_runtime", images, batch=5)["output"]
    np.testing.assert_allclose(one, many, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_nncf_is_a_second_way_to_int8(
    activations: Any,
    tiny: SourceModel,
    images: dict[str, NDArray[Any]],
    arm: HardwareProfile,
    tmp_path: Path,
) -> None:
    recipe = Recipe(StaticInt8(method="nncf", activations=activations))
    result = _convert(tiny, recipe, arm, images, tmp_path / "o")
    assert result.placement.integer > 0
    assert result.closeness.cosine > 0.98
    assert "nncf" in result.tools
    graph = onnx.load(str(result.artifact)).graph
    points = {n.input[2] for n in graph.node if n.op_type == "QuantizeLinear"}
    types = {t.data_type for t in graph.initializer if t.name in points}
    assert (TensorProto.UINT8 in types) is (activations == "uint8")


@pytest.mark.slow
def test_an_onnx_source_converts(x86: HardwareProfile, tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    weights = onnx.numpy_helper.from_array(draws.standard_normal((6, 4)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weights],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    model = open_source(str(path))
    data = {"x": draws.standard_normal((20, 6)).astype(np.float32)}
    for recipe in (Recipe(Float32()), Recipe(StaticInt8(reduce_range=True))):
        result = _convert(model, recipe, x86, data, tmp_path / recipe.key)
        assert result.inputs == (TensorInfo("x", "FP32", (1, 6)),)
        assert result.closeness.cosine > 0.99


def test_int8_without_calibration_is_refused_before_work(
    tiny: SourceModel, images: dict[str, NDArray[Any]], x86: HardwareProfile, tmp_path: Path
) -> None:
    request = ConversionRequest(
        tiny, Recipe(StaticInt8()), "onnx_runtime", x86, images, tmp_path / "o"
    )
    with pytest.raises(DataError, match="needs calibration data"):
        runner.convert(request)
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_an_operator_that_onnx_does_not_have_is_named(
    images: dict[str, NDArray[Any]], x86: HardwareProfile, tmp_path: Path
) -> None:
    said = (TensorInfo("image", "FP32", (-1, 3, 8, 8)),)
    model = open_source("tests.support.tiny_nets:bessel", inputs=said)
    with pytest.raises(UnsupportedModelError) as caught:
        _convert(model, Recipe(Float32()), x86, images, tmp_path / "o")
    assert "bessel_j0" in caught.value.cause
    assert "litert or executorch" in caught.value.hint
    assert "\x1b" not in f"{caught.value}{caught.value.cause}"
