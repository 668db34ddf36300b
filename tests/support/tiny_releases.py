"""Release folders with tiny real ONNX models, as they lie on a device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from device_agent.contract.manifest import (
    Blob,
    Golden,
    Limits,
    Manifest,
    ProfileRef,
    RuntimeRef,
    Softmax,
    encode_manifest,
)
from device_agent.contract.messages import ReleaseRef
from device_agent.contract.names import digest_of
from device_agent.contract.tensors import Tensor, TensorInfo, encode_frame

MEMORY_BYTES = 400 * 2**20
WEIGHTS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], "f4")
LABELS = ("ant", "bee", "cat")


def tensor(name: str, values: np.ndarray) -> Tensor:
    datatype = {"f4": "FP32", "i8": "INT64"}[values.dtype.str[1:]]
    return Tensor(name, datatype, values.shape, np.ascontiguousarray(values).tobytes())


def floats(*values: float) -> Tensor:
    """Return an input of the classifier, [1, 4]."""
    return tensor("image", np.array([values], "f4"))


def count(n: int) -> Tensor:
    """Return an input of the models that are given a number."""
    return tensor("n", np.array(n, "i8"))


def values_of(t: Tensor) -> np.ndarray:
    return np.frombuffer(t.data, {"FP32": "<f4", "INT64": "<i8"}[t.datatype]).reshape(t.shape)


def _save(path: Path, graph: onnx.GraphProto) -> None:
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def classifier_model(path: Path) -> None:
    """Write ``scores = image @ WEIGHTS``, so that the largest of the first three inputs wins."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["image", "w"], ["scores"])],
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    _save(path, graph)


def hungry_model(path: Path) -> None:
    """Write a model that allocates ``4 * n`` bytes."""
    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["n", "axis"], ["shape"]),
            helper.make_node("ConstantOfShape", ["shape"], ["big"]),
            helper.make_node("ReduceMax", ["big"], ["out"], keepdims=0),
        ],
        "hungry",
        [helper.make_tensor_value_info("n", TensorProto.INT64, [])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(np.array([0], "i8"), "axis")],
    )
    _save(path, graph)


def slow_model(path: Path) -> None:
    """Write a model that counts to ``n``, one loop iteration each."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["condition_out"]),
            helper.make_node("Add", ["sum", "one"], ["sum_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("condition_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_out", TensorProto.FLOAT, []),
        ],
        [numpy_helper.from_array(np.array(1, "f4"), "one")],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "", "zero"], ["out"], body=body)],
        "slow",
        [helper.make_tensor_value_info("n", TensorProto.INT64, [])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(np.array(0, "f4"), "zero")],
    )
    _save(path, graph)


CLASSIFIER_INPUTS = (TensorInfo("image", "FP32", (-1, 4)),)
CLASSIFIER_OUTPUTS = (TensorInfo("scores", "FP32", (-1, 3)),)
NUMBER_INPUTS = (TensorInfo("n", "INT64", ()),)
NUMBER_OUTPUTS = (TensorInfo("out", "FP32", ()),)


def manifest(
    *,
    inputs: tuple[TensorInfo, ...] = CLASSIFIER_INPUTS,
    outputs: tuple[TensorInfo, ...] = CLASSIFIER_OUTPUTS,
    runtime: str = "onnx_runtime",
    name: str = "tiny",
    version: str = "1.0.0",
    memory_bytes: int = MEMORY_BYTES,
    deadline_s: float = 1.0,
    task: str = "classification",
    blobs: tuple[Blob, ...] = (),
) -> Manifest:
    return Manifest(
        name=name,
        version=version,
        counter=1,
        profile=ProfileRef("generic-x86_64", digest_of(b"profile")),
        runtime=RuntimeRef(runtime, ">=1"),
        task=task,
        inputs=inputs,
        outputs=outputs,
        postprocess=(Softmax(),),
        limits=Limits(memory_bytes=memory_bytes, threads=1, deadline_s=deadline_s),
        golden=Golden(vectors=2, min_cosine=0.99, min_agreement=1.0),
        blobs=blobs,
        source_digest=digest_of(b"source"),
    )


def golden_frame(
    weights: np.ndarray = WEIGHTS, names: tuple[str, str] = ("image", "scores")
) -> bytes:
    """Return golden vectors of the classifier with ``weights``."""
    tensors = []
    for index, row in enumerate(np.array([[[3, 1, 0, 9]], [[0, 1, 2, 9]]], "f4")):
        tensors.append(tensor(f"{index}/in/{names[0]}", row))
        tensors.append(tensor(f"{index}/out/{names[1]}", row @ weights))
    return encode_frame(tensors)


def release_folder(
    folder: Path,
    declared: Manifest,
    model: Callable[[Path], None] = classifier_model,
    golden: bytes | None = None,
) -> Path:
    """Write a release as the agent keeps it; return its folder."""
    folder.mkdir(parents=True)
    model(folder / "model")
    (folder / "golden").write_bytes(golden if golden is not None else golden_frame())
    (folder / "labels").write_text("\n".join(LABELS) + "\n")
    (folder / "manifest.json").write_bytes(encode_manifest(declared))
    return folder


def release_ref(declared: Manifest) -> ReleaseRef:
    return ReleaseRef(declared.name, declared.version, digest_of(encode_manifest(declared)))
