"""Weights in fewer bits, and dynamic int8: smaller, close, and no slower where it is promised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from aid_edge.errors import ConversionError
from aid_edge.recipe import DynamicInt8, Float16, WeightOnly
from aid_edge.runtimes import onnx_runtime
from converters.onnx_weights import convert
from device_agent.contract.profile import HardwareProfile
from tests.support import onnx_nets


def _words() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["table", "words"], ["e"], "lookup"),
        helper.make_node("MatMul", ["e", "w"], ["h"], "project"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("ReduceMean", ["r"], ["m"], "mean", axes=[1], keepdims=0),
        helper.make_node("Gemm", ["m", "v"], ["y"], "last", transB=1),
    ]
    return onnx_nets.model(
        nodes, {"words": (1, 5)}, {"y": (1, 8)},
        {"table": onnx_nets.draws(300, 64), "w": onnx_nets.draws(64, 128, seed=1),
         "v": onnx_nets.draws(8, 128, seed=2)},
        kinds={"words": TensorProto.INT64},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "share", "cosine"),
    [
        (Float16(), 0.56, 0.99999),
        (WeightOnly(8), 0.32, 0.999),
        (WeightOnly(8, 32), 0.36, 0.999),
        (WeightOnly(4, 32), 0.30, 0.97),
        (DynamicInt8(), 0.36, 0.99),
        (DynamicInt8(per_channel=False), 0.36, 0.99),
    ],
)
def test_small_weights_are_small_and_close(
    recipe: Any, share: float, cosine: float, x86: HardwareProfile, tmp_path: Path
) -> None:
    floating = onnx_nets.save(_words(), tmp_path / "float.onnx")
    out = tmp_path / "model.onnx"
    convert(floating, recipe, x86, out)
    assert out.stat().st_size < share * floating.stat().st_size
    words = {"words": np.random.default_rng(0).integers(0, 300, (1, 5))}
    a = onnx_runtime.open_session(floating, 1, True).run(words)["y"].ravel()
    b = onnx_runtime.open_session(out, 1, True).run(words)["y"].ravel()
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > cosine
    assert [p.name for p in tmp_path.glob("*.onnx") if p not in {floating, out}] == []


@pytest.mark.parametrize("recipe", [Float16(), WeightOnly(8)])
def test_weights_are_made_whole_once_when_the_model_is_loaded(
    recipe: Any, x86: HardwareProfile, tmp_path: Path
) -> None:
    floating = onnx_nets.save(onnx_nets.depthwise(), tmp_path / "float.onnx")
    convert(floating, recipe, x86, tmp_path / "model.onnx")
    kinds = [
        set(onnx_runtime.plan(p, tmp_path).operators) for p in (floating, tmp_path / "model.onnx")
    ]
    assert not {"Cast", "Mul"} & kinds[1]
    assert kinds[0] == kinds[1]


def test_values_beyond_float16_stay_float32(x86: HardwareProfile, tmp_path: Path) -> None:
    made = _words()
    for tensor in made.graph.initializer:
        if tensor.name == "w":
            big = onnx.numpy_helper.to_array(tensor) * 1e7
            tensor.CopyFrom(onnx.numpy_helper.from_array(big.astype(np.float32), "w"))
    notes = convert(onnx_nets.save(made, tmp_path / "f.onnx"), Float16(), x86, tmp_path / "o.onnx")
    assert notes == ("1 tensors have values beyond float16 and stay float32",)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (DynamicInt8(), "dynamic int8 changes nothing"),
        (WeightOnly(4, 32), "4-bit weights change nothing"),
        (WeightOnly(4), "no 4-bit weights in groups of a whole channel"),
    ],
)
def test_what_would_change_nothing_is_refused(
    recipe: Any, message: str, x86: HardwareProfile, tmp_path: Path
) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], "only")
    made = onnx_nets.model(
        [node], {"x": (1, 3, 8, 8)}, {"y": (1, 16, 6, 6)}, {"w": onnx_nets.draws(16, 3, 3, 3)}
    )
    with pytest.raises(ConversionError, match=message):
        convert(onnx_nets.save(made, tmp_path / "f.onnx"), recipe, x86, tmp_path / "o.onnx")
