"""OpenVINO artifacts in a real worker: loaded, run, proved and refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from device_agent.contract.tensors import TensorInfo
from device_agent.worker.handle import ModelLoadError, RequestRefusedError, Worker, WorkerSpec
from tests.support import tiny_releases as tiny

pytest.importorskip("openvino", reason="the openvino runtime is not installed")

DATA = Path(__file__).parent / "data"
INPUTS = (TensorInfo("image", "FP32", (-1, 4)),)
OUTPUTS = (TensorInfo("scores", "FP32", (-1, 3)),)


def start(tmp_path: Path, artifact: str, inputs: tuple[TensorInfo, ...] = INPUTS) -> Worker:
    declared = tiny.manifest(inputs=inputs, outputs=OUTPUTS, runtime="openvino")

    def copy(path: Path) -> None:
        shutil.copy(DATA / artifact, path)

    golden = tiny.golden_frame(names=("image", "scores"))
    folder = tiny.release_folder(tmp_path / "release", declared, copy, golden)
    return Worker.start(WorkerSpec(folder, declared, tmp_path / "scratch"), start_timeout_s=120)


def test_it_answers_and_proves(tmp_path: Path) -> None:
    with start(tmp_path, "linear.openvino") as worker:
        assert worker.loaded.runtime_version.startswith("20")
        result = worker.infer([tiny.floats(1.0, 4.0, 2.0, 0.0)], deadline_s=30)
        (output,) = result.outputs
        np.testing.assert_allclose(tiny.values_of(output), [[1, 4, 2]], atol=1e-5)
        assert result.top_class == 1
        proof = worker.prove()
        assert proof.min_cosine > 0.999
        # What it answered first is not written over by what came later.
        np.testing.assert_allclose(tiny.values_of(output), [[1, 4, 2]], atol=1e-5)


def test_inputs_that_the_model_does_not_take(tmp_path: Path) -> None:
    with start(tmp_path, "linear.openvino") as worker:
        with pytest.raises(RequestRefusedError):
            worker.infer([tiny.tensor("image", np.zeros((1, 5), "f4"))], deadline_s=30)
        assert worker.infer([tiny.floats(0.0, 3.0, 0.0, 0.0)], deadline_s=30).top_class == 1


def test_other_tensors_than_declared(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"image FP32 \[1, 5\] is declared"):
        start(tmp_path, "linear.openvino", (TensorInfo("image", "FP32", (1, 5)),))


def test_file_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"OpenVINO cannot load the model: .* no zip archive"):
        start(tmp_path, "README.md")
