from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from aid_edge import api
from aid_edge.errors import UsageError
from device_agent.contract.errors import ProfileError


@pytest.mark.slow
def test_convert_from_python_shows_its_report_in_a_notebook(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.ravel())],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "tiny.onnx")
    x = np.random.default_rng(1).normal(size=(240, 16)).astype(np.float32)
    np.savez(tmp_path / "calibration.npz", x=x[:40])
    np.savez(tmp_path / "evaluation.npz", x=x[40:], labels=(x[40:] @ weights).argmax(1))
    result = api.convert(
        tmp_path / "tiny.onnx",
        profile="generic-x86_64",
        out=tmp_path / "out",
        calibration=tmp_path / "calibration.npz",
        evaluate=tmp_path / "evaluation.npz",
        runtimes=["onnx_runtime"],
        cache=tmp_path / "cache",
    )
    assert result.report.is_complete
    float_one = result.profile("generic-x86_64").candidate("onnx_runtime/float32")
    assert float_one is not None
    assert float_one.accuracy is not None
    assert (float_one.accuracy.n, float_one.accuracy.candidate) == (200, 1.0)
    assert (result.releases["generic-x86_64"] / "release.json").is_file()
    summary = result._repr_html_()
    assert "aid-edge-summary" in summary
    assert "onnx_runtime/float32" in summary
    with pytest.raises(KeyError):
        result.profile("toaster")


def test_wrong_requests_raise_what_the_command_line_would_say(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="toaster"):
        api.convert("m.onnx", profile="toaster", out=tmp_path)
    with pytest.raises(UsageError, match="nothing to judge"):
        api.convert("m.onnx", profile=["generic-x86_64"], out=tmp_path)
