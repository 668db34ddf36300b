"""Planted faults are found in the right layer, with their cause; keeping it in float helps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aid_edge import diagnose, runner
from aid_edge.diagnose.records import Tally, decibel
from aid_edge.errors import ConversionError
from aid_edge.model import SourceModel
from aid_edge.recipe import Float32, Recipe, StaticInt8
from aid_edge.runner import ConversionRequest, ConversionResult
from aid_edge.sources.opening import open_source
from device_agent.contract.profile import HardwareProfile, read_profile
from device_agent.contract.tensors import TensorInfo
from tests.support import onnx_nets

PROFILES = Path(__file__).resolve().parents[3] / "hardware-profiles"
INT8 = StaticInt8(reduce_range=True)


def _profile(name: str) -> HardwareProfile:
    return read_profile(PROFILES / f"{name}.toml")[0]


@pytest.fixture
def images() -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(3).random((24, 3, 16, 16), np.float32)}


def _convert(
    model: SourceModel, recipe: Recipe, images: Any, out: Path
) -> tuple[ConversionResult, ConversionRequest]:
    request = ConversionRequest(
        model, recipe, "onnx_runtime", _profile("generic-x86_64"), images, out, calibration=images
    )
    return runner.convert(request), request


@pytest.mark.slow
def test_outlier_weights_are_found_and_keeping_the_layer_float_helps(
    images: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    path = onnx_nets.save(onnx_nets.depthwise(outlier=200.0), tmp_path / "m.onnx")
    model = open_source(str(path))
    floating, _ = _convert(model, Recipe(Float32()), images, tmp_path / "float")
    bad, request = _convert(model, Recipe(INT8), images, tmp_path / "int8")
    records = diagnose.layers(floating.artifact, bad.artifact, "onnx_runtime", images)
    worst = records[0]
    assert worst.name == "middle"
    assert worst.operator == "Conv"
    assert worst.placement == "integer"
    assert "weights dwarf" in worst.cause
    assert "float" in worst.advice
    after = next(r for r in records if r.name == "last")
    assert after.cause == "" or "earlier layers" in after.cause

    def judge(result: ConversionResult) -> diagnose.Judgement:
        found = result.closeness.cosine
        return diagnose.Judgement(found > 0.999, found, f"cosine {found:.4f}")

    attempt = diagnose.converting(replace(request, out=tmp_path / "tries"), judge)
    before = judge(bad)
    assert not before.passed
    found = diagnose.sensitivity(Recipe(INT8), records, attempt, before=before)
    assert found.recipe is not None
    assert found.recipe.quantize == replace(INT8, keep_float=("middle",))
    assert found.records[0].tried.startswith("1 layer in float: cosine 0.99")


@pytest.mark.slow
def test_a_healthy_net_has_no_causes_in_either_runtime(tmp_path: Path) -> None:
    inputs = [TensorInfo("image", "FP32", (-1, 3, 8, 8))]
    model = open_source("tests.support.tiny_nets:tiny", inputs=inputs)
    images = {"image": np.random.default_rng(3).random((12, 3, 8, 8), np.float32)}
    for runtime, activations in (("onnx_runtime", "uint8"), ("litert", "int8")):
        made = {}
        for recipe in (Float32(), replace(INT8, activations=activations, reduce_range=False)):
            request = ConversionRequest(
                model, Recipe(recipe), runtime, _profile("generic-x86_64"), images,
                tmp_path / runtime / recipe.key, calibration=images,
            )  # fmt: skip
            made[recipe.key] = runner.convert(request)
        inputs_there = made["float32"].to_artifact(images)
        records = diagnose.layers(
            made["float32"].artifact, made["static-int8"].artifact, runtime, inputs_there
        )
        assert len(records) >= 3
        assert {r.cause for r in records} == {""}
        assert min(r.sqnr_db for r in records) > 25
        assert {r.placement for r in records if "conv" in r.operator.lower()} == {"integer"}


def test_a_runtime_that_cannot_be_looked_into_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="layers of coreml artifacts"):
        diagnose.layers(tmp_path, tmp_path, "coreml", {})
    assert not diagnose.can_diagnose("coreml")


def test_statistics_do_not_depend_on_how_samples_are_batched() -> None:
    values = np.random.default_rng(0).standard_normal((64, 100)) * 3 + 500
    noise = np.random.default_rng(1).standard_normal((64, 100)) * 0.5
    once, often = Tally(), Tally()
    once.add(values, values + noise, (495.0, 505.0))
    for row, wrong in zip(values, values + noise, strict=True):
        often.add(row, wrong, (495.0, 505.0))
    assert often.sqnr_db == pytest.approx(once.sqnr_db)
    assert often.kurtosis == pytest.approx(once.kurtosis) == pytest.approx(3.0, abs=0.2)
    assert often.clipped == once.clipped == np.mean((values < 495) | (values > 505))
    assert (often.low, often.high) == (values.min(), values.max())
    assert once.sqnr_db == pytest.approx(decibel(0.25 / (500**2 + 9)), abs=0.2)
