"""One conversion here or on a local cluster of two workers, told as JSON; a script of its own.

python cluster_work.py local|dask|ray FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

from aid_edge.converter import Arrays
from aid_edge.errors import MissingDependencyError
from aid_edge.outcome import Closeness
from aid_edge.pipeline.convert import run
from aid_edge.pipeline.executors import open_executor
from aid_edge.pipeline.request import ConvertRequest
from aid_edge.profiles import load_profile
from aid_edge.recipe import Float32
from aid_edge.runner import Benchmark, ConversionRequest, ConversionResult
from aid_edge.runtimes import Placement
from device_agent.contract.names import digest_of
from device_agent.contract.tensors import TensorInfo

WEIGHTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


class Engine:
    """Computes ``x @ WEIGHTS``, and writes down in which process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _note(self, what: str) -> None:
        (self.folder / f"{what}-{os.getpid()}").touch()

    def convert(self, request: ConversionRequest, *, on_progress: Any = None) -> ConversionResult:
        self._note("made")
        time.sleep(1.0)  # long enough for the other worker to take the next one
        data = repr(request.recipe).encode()
        request.out.mkdir(parents=True)
        artifact = request.out / "model.onnx"
        artifact.write_bytes(data)
        is_float = isinstance(request.recipe.quantize, Float32)
        return ConversionResult(
            artifact=artifact, runtime=request.runtime, runtime_version="1.2",
            recipe=request.recipe, size_bytes=len(data), digest=digest_of(data),
            inputs=(TensorInfo("x", "FP32", (-1, 4)),), outputs=(TensorInfo("y", "FP32", (-1, 3)),),
            axes={}, placement=Placement(int(not is_float), int(is_float), {"MatMul": 1}),
            closeness=Closeness(1, 0.0, 1.0, 1.0, (1,)), seconds=0.1, peak_rss_bytes=1000,
            tools={"onnx": "1"},
        )  # fmt: skip

    def predict(self, artifact: Path, runtime: str, inputs: Arrays, **_: Any) -> dict[str, Any]:
        exact = inputs["x"] @ WEIGHTS
        noise = np.random.default_rng(1).normal(size=exact.shape) * 0.01
        return {"y": (exact + noise * (b"Int8" in artifact.read_bytes())).astype(np.float32)}

    def source_outputs(self, model: Any, inputs: Arrays, **_: Any) -> dict[str, Any]:
        return {"y": inputs["x"] @ WEIGHTS}

    def benchmark(
        self, artifact: Path, runtime: str, inputs: Arrays, *, threads: int = 1, runs: int = 100
    ) -> Benchmark:
        self._note("timed")
        scale = len(artifact.read_bytes()) / 1e5
        times = tuple(scale * (1 + i / 1000) for i in range(runs))
        return Benchmark(times, 10, threads, 0.1, 50_000_000, 20_000_000, "1.2")

    def prepare(self, *_: Any) -> Any:
        raise NotImplementedError  # nothing is pruned here

    def layers(self, *_: Any) -> tuple[Any, ...]:
        return ()


def refuse() -> None:
    raise MissingDependencyError("the test", "dask", "convert")


def main(where: str, folder: Path) -> None:
    folder.mkdir()
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor("w", TensorProto.FLOAT, WEIGHTS.shape, WEIGHTS.ravel())],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "tiny.onnx")
    generator = np.random.default_rng(3)
    for name, n in (("calibration", 40), ("fidelity", 60)):
        np.savez(folder / f"{name}.npz", x=generator.normal(size=(n, 4)).astype(np.float32))
    os.chdir(folder)  # reports name data as they were given
    address = None if where == "local" else f"{where}://local"
    request = ConvertRequest(
        source=str(folder / "tiny.onnx"), targets=(load_profile("generic-x86_64"),),
        out=folder / "out", calibration="calibration.npz",
        fidelity="fidelity.npz", cache=folder / "cache",
        runtimes=("onnx_runtime",), search="full", executor=address,
        jobs=1 if address is None else 2, command="test",
    )  # fmt: skip
    result = run(request, engine=Engine(folder))
    try:
        with open_executor(address, 1, folder / "cache") as executor:
            executor.run([partial(refuse)])
        error = None
    except MissingDependencyError as e:
        error = [e.module, e.extra]
    found = result.profile("generic-x86_64")
    told = {
        "candidates": msgspec.to_builtins(found.candidates),
        "chosen": found.chosen,
        "made_in": len(list(folder.glob("made-*"))),
        "timed_in": len(list(folder.glob("timed-*"))),
        "error": error,
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
