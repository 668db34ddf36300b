"""``aid-edge inspect``: facts, answers of a profile's runtimes, errors with exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from aid_edge.cli.main import run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="squash")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


def test_people_read_facts(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(model), "--profile", "raspberry-pi-4"]) == 0
    out = capsys.readouterr().out
    assert "framework   onnx, opset 18" in out
    assert "input       x  FP32  any x 4" in out
    assert re.search(r"Relu +1 +2", out)
    assert re.search(r"onnx_runtime +yes", out)


def test_sizes_can_be_said_and_refusals_have_reasons(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(model), "--input", "x=?x?", "--profile", "raspberry-pi-4"]) == 0
    out = capsys.readouterr().out
    assert "input       x  FP32  any x any" in out
    assert "note        input x taken as [-1, -1]; the file fixes [-1, 4]" in out
    assert re.search(r"onnx_runtime +no\n +- input x \[-1, -1\] varies in axis 1", out)
    assert "--input NAME=SHAPE" in out
    assert run(["inspect", str(model), "--input", "x=big"]) == 2
    assert "'big' is no size" in capsys.readouterr().err


def test_programs_read_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(model), "--profile", "generic-x86_64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "aid-edge/inspect/v1"
    assert found["model"]["framework"] == "onnx"
    assert found["model"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert found["model"]["operators"][0]["first"] == "squash"
    answers = {r["runtime"]: r["accepted"] for r in found["profiles"][0]["runtimes"]}
    assert answers["onnx_runtime"]
    assert found["model"]["batched"]
    assert found["model"]["notes"] == []


def test_errors_have_exit_codes(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(tmp_path / "missing.onnx")]) == 1
    assert "error [source]" in capsys.readouterr().err
    assert run(["inspect", str(model), "--model-card", str(tmp_path / "missing.toml")]) == 2
    assert "missing.toml" in capsys.readouterr().err
    model.write_bytes(model.read_bytes()[:20])
    assert run(["inspect", str(model), "--json"]) == 1
    error = json.loads(capsys.readouterr().err.partition("{")[2].join(["{", ""]))["error"]
    assert error["code"] == "source"
    assert run(["inspect", str(model), "--profile", "toaster"]) == 2
