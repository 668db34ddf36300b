"""LiteRT artifacts in a real worker: float, and int8 behind a float interface."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from device_agent.contract.tensors import Tensor, TensorInfo
from device_agent.worker.handle import ModelLoadError, RequestRefusedError, Worker, WorkerSpec
from tests.support import tiny_releases as tiny

pytest.importorskip("ai_edge_litert", reason="the litert runtime is not installed")

DATA = Path(__file__).parent / "data"
INPUTS = (TensorInfo("args_0", "FP32", (1, 4)),)
OUTPUTS = (TensorInfo("output_0", "FP32", (1, 3)),)
STEP = 0.029
"""Somewhat over the larger of the int8 artifact's two scales."""


def start(
    tmp_path: Path,
    artifact: str,
    inputs: tuple[TensorInfo, ...] = INPUTS,
    outputs: tuple[TensorInfo, ...] = OUTPUTS,
) -> Worker:
    declared = tiny.manifest(inputs=inputs, outputs=outputs, runtime="litert")

    def copy(path: Path) -> None:
        shutil.copy(DATA / artifact, path)

    golden = tiny.golden_frame(names=("args_0", "output_0"))
    folder = tiny.release_folder(tmp_path / "release", declared, copy, golden)
    return Worker.start(WorkerSpec(folder, declared, tmp_path / "scratch"), start_timeout_s=60)


def named(name: str, values: list[float]) -> Tensor:
    return tiny.tensor(name, np.array([values], "f4"))


@pytest.mark.parametrize("artifact", ["linear_float.tflite", "linear_int8.tflite"])
def test_float_in_and_out(tmp_path: Path, artifact: str) -> None:
    with start(tmp_path, artifact) as worker:
        result = worker.infer([named("args_0", [1.0, 4.0, 2.0, 0.0])], deadline_s=30)
    (output,) = result.outputs
    assert (output.name, output.datatype, output.shape) == ("output_0", "FP32", (1, 3))
    np.testing.assert_allclose(tiny.values_of(output), [[1, 4, 2]], atol=STEP)
    assert result.top_class == 1


def test_int8_clips_what_it_cannot_hold(tmp_path: Path) -> None:
    with start(tmp_path, "linear_int8.tflite") as worker:
        result = worker.infer([named("args_0", [1e9, -1e9, 0.0, 0.0])], deadline_s=30)
    scores = tiny.values_of(result.outputs[0])[0]
    assert 6 < scores[0] < 8
    assert scores[1] == 0


def test_int8_interface_as_declared(tmp_path: Path) -> None:
    inputs = (TensorInfo("args_0", "INT8", (1, 4)),)
    outputs = (TensorInfo("output_0", "INT8", (1, 3)),)
    with start(tmp_path, "linear_int8.tflite", inputs, outputs) as worker:
        raw = Tensor("args_0", "INT8", (1, 4), np.array([[-128, 0, 127, 5]], "i1").tobytes())
        (output,) = worker.infer([raw], deadline_s=30).outputs
    assert output.datatype == "INT8"
    found = np.frombuffer(output.data, "i1")
    assert found[0] == -128
    assert found[0] < found[1] < found[2]


@pytest.mark.parametrize("artifact", ["linear_float.tflite", "linear_int8.tflite"])
def test_proof(tmp_path: Path, artifact: str) -> None:
    with start(tmp_path, artifact) as worker:
        proof = worker.prove()
    assert proof.min_cosine > 0.999
    assert proof.agreement == 1


def test_one_tensor_needs_no_signature_name(tmp_path: Path) -> None:
    inputs = (TensorInfo("image", "FP32", (1, 4)),)
    with start(tmp_path, "linear_float.tflite", inputs) as worker:
        result = worker.infer([named("image", [0.0, 0.0, 3.0, 0.0])], deadline_s=30)
    assert result.top_class == 2


def test_other_tensors_than_declared(tmp_path: Path) -> None:
    inputs = (TensorInfo("args_0", "FP32", (1, 5)),)
    with pytest.raises(ModelLoadError, match=r"args_0 FP32 \[1, 5\] is declared"):
        start(tmp_path, "linear_float.tflite", inputs)


def test_file_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="LiteRT cannot load"):
        start(tmp_path, "README.md")


def test_shape_that_the_model_does_not_take(tmp_path: Path) -> None:
    with start(tmp_path, "linear_float.tflite") as worker:
        wrong = tiny.tensor("args_0", np.zeros((1, 5), "f4"))
        with pytest.raises(RequestRefusedError):
            worker.infer([wrong], deadline_s=30)
        good = worker.infer([named("args_0", [0.0, 3.0, 0.0, 0.0])], deadline_s=30)
        assert good.top_class == 1
