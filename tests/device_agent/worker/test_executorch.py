"""ExecuTorch programs in a real worker: loaded, run, proved and refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from device_agent.contract.tensors import TensorInfo
from device_agent.worker.handle import ModelLoadError, RequestRefusedError, Worker, WorkerSpec
from tests.support import tiny_releases as tiny

pytest.importorskip("executorch", reason="the executorch runtime is not installed")
pytest.importorskip("torch", reason="ExecuTorch's Python runtime needs torch")
pytestmark = pytest.mark.slow

DATA = Path(__file__).parent / "data"
INPUTS = (TensorInfo("image", "FP32", (1, 4)),)
OUTPUTS = (TensorInfo("scores", "FP32", (1, 3)),)
MEMORY_BYTES = 3 * 2**30


def start(tmp_path: Path, artifact: str) -> Worker:
    declared = tiny.manifest(inputs=INPUTS, outputs=OUTPUTS, runtime="executorch")
    limits = msgspec.structs.replace(declared.limits, memory_bytes=MEMORY_BYTES)
    declared = msgspec.structs.replace(declared, limits=limits)

    def copy(path: Path) -> None:
        shutil.copy(DATA / artifact, path)

    golden = tiny.golden_frame(names=("image", "scores"))
    folder = tiny.release_folder(tmp_path / "release", declared, copy, golden)
    return Worker.start(WorkerSpec(folder, declared, tmp_path / "scratch"), start_timeout_s=300)


def test_it_answers_proves_and_refuses(tmp_path: Path) -> None:
    with start(tmp_path, "linear.pte") as worker:
        result = worker.infer([tiny.floats(1.0, 4.0, 2.0, 0.0)], deadline_s=30)
        (output,) = result.outputs
        np.testing.assert_allclose(tiny.values_of(output), [[1, 4, 2]], atol=1e-5)
        assert result.top_class == 1
        assert worker.prove().min_cosine > 0.999
        with pytest.raises(RequestRefusedError):
            worker.infer([tiny.tensor("image", np.zeros((1, 5), "f4"))], deadline_s=30)
        assert worker.infer([tiny.floats(0.0, 3.0, 0.0, 0.0)], deadline_s=30).top_class == 1


def test_file_that_is_no_program(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="ExecuTorch cannot load the model"):
        start(tmp_path, "README.md")
