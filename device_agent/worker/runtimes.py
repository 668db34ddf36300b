"""The inference runtimes of a worker; the only module that imports one, in the child process.

A release whose manifest says FP32 where its artifact holds int8 (a fully quantized LiteRT model)
is quantized and dequantized here, at the edge, by the artifact's own scale and zero point.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from device_agent.contract.errors import AidError
from device_agent.contract.packed import OPENVINO_MEMBERS, unpack
from device_agent.contract.tensors import TensorInfo
from device_agent.worker.arrays import DTYPES, Array
from device_agent.worker.wire import Load

_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}

_ORT_TYPES = {
    "tensor(bool)": "BOOL", "tensor(uint8)": "UINT8", "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32", "tensor(uint64)": "UINT64", "tensor(int8)": "INT8",
    "tensor(int16)": "INT16", "tensor(int32)": "INT32", "tensor(int64)": "INT64",
    "tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64",
}  # fmt: skip

# torch.ScalarType (c10/core/ScalarType.h), as ExecuTorch tells element types.
_SCALAR_TYPES = {
    0: "UINT8", 1: "INT8", 2: "INT16", 3: "INT32", 4: "INT64", 5: "FP16", 6: "FP32", 7: "FP64",
    11: "BOOL",
}  # fmt: skip
_NAMES_METHOD = "aid_edge_names"
"""Constant method of a program: JSON with the names of its inputs and outputs (contract §5.5)."""


class RuntimeMissingError(AidError):
    """The runtime that the manifest names is not installed, or not known."""

    code = "runtime"


class ModelRefusedError(AidError):
    """The runtime cannot load the model, or its tensors are not those of the manifest."""

    code = "model"


class InputRefusedError(AidError):
    """The runtime cannot run these inputs."""

    code = "request"


class Model(Protocol):
    """A loaded model."""

    runtime_version: str

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Return the outputs, in the order of the manifest.

        Raises:
            InputRefusedError: The runtime refuses the inputs.
            MemoryError: The runtime could not get the memory that it needs.
        """
        ...


def open_model(load: Load) -> Model:
    """Return the model of a release, loaded by the runtime that its manifest names.

    Raises:
        RuntimeMissingError: The runtime is not installed, or its name is not known.
        ModelRefusedError: The runtime cannot load the model, or its tensors differ.
        MemoryError: The runtime could not get the memory that it needs.
    """
    match load.runtime.name:
        case "onnx_runtime":
            return OnnxRuntimeModel(load)
        case "litert":
            return LiteRtModel(load)
        case "openvino":
            return OpenVinoModel(load)
        case "executorch":
            return ExecuTorchModel(load)
        case name:
            raise RuntimeMissingError(
                f"this agent knows no runtime {name!r}",
                hint="It knows onnx_runtime, litert, openvino and executorch; update the agent or "
                "convert for another.",
            )


class OnnxRuntimeModel:
    """An ONNX model in ONNX Runtime."""

    def __init__(self, load: Load) -> None:
        ort = _import("onnxruntime", "onnxruntime")
        self.runtime_version = str(ort.__version__)
        options = ort.SessionOptions()
        options.intra_op_num_threads = load.limits.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        providers = list(load.runtime.providers) or ["CPUExecutionProvider"]
        missing = sorted(set(providers) - set(ort.get_available_providers()))
        if missing:
            raise RuntimeMissingError(
                f"ONNX Runtime has no {', '.join(missing)} here",
                hint=f"It has {', '.join(ort.get_available_providers())}.",
            )
        try:
            self._session = ort.InferenceSession(f"{load.folder}/model", options, providers)
        except Exception as e:
            raise _translated(e, ModelRefusedError, "ONNX Runtime cannot load the model") from e
        _check_tensors("inputs", load.inputs, [_ort_info(i) for i in self._session.get_inputs()])
        _check_tensors("outputs", load.outputs, [_ort_info(o) for o in self._session.get_outputs()])
        self._outputs = [o.name for o in load.outputs]

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Return the outputs, in the order of the manifest."""
        try:
            outputs: list[Array] = self._session.run(self._outputs, dict(inputs))
        except Exception as e:
            raise _translated(e, InputRefusedError, "ONNX Runtime cannot run these inputs") from e
        return outputs


class LiteRtModel:
    """A LiteRT (TensorFlow Lite) model."""

    def __init__(self, load: Load) -> None:
        interpreter, self.runtime_version = _litert_interpreter()
        try:
            self._interpreter = interpreter(
                model_path=f"{load.folder}/model", num_threads=load.limits.threads
            )
            self._interpreter.allocate_tensors()
        except Exception as e:
            raise _translated(e, ModelRefusedError, "LiteRT cannot load the model") from e
        signatures = self._interpreter.get_signature_list()
        self._inputs = self._match("inputs", load.inputs, signatures)
        self._outputs = self._match("outputs", load.outputs, signatures)
        self._infos = load.inputs
        self._output_infos = load.outputs

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Return the outputs, in the order of the manifest."""
        try:
            self._resize(inputs)
            for info, detail in zip(self._infos, self._inputs, strict=True):
                value = _quantized(inputs[info.name], detail)
                self._interpreter.set_tensor(detail["index"], value)
            self._interpreter.invoke()
            return [
                _dequantized(self._interpreter.get_tensor(detail["index"]), detail, info)
                for info, detail in zip(self._output_infos, self._outputs, strict=True)
            ]
        except Exception as e:
            raise _translated(e, InputRefusedError, "LiteRT cannot run these inputs") from e

    def _resize(self, inputs: Mapping[str, Array]) -> None:
        is_changed = False
        for info, detail in zip(self._infos, self._inputs, strict=True):
            shape = inputs[info.name].shape
            if tuple(detail["shape"]) != shape:
                self._interpreter.resize_tensor_input(detail["index"], shape, strict=True)
                detail["shape"] = shape
                is_changed = True
        if is_changed:
            self._interpreter.allocate_tensors()

    def _match(
        self, what: str, infos: Sequence[TensorInfo], signatures: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the interpreter's tensor for each of the manifest: by signature, or by name."""
        is_input = what == "inputs"
        details: list[dict[str, Any]] = (
            self._interpreter.get_input_details()
            if is_input
            else self._interpreter.get_output_details()
        )
        found = {detail["name"]: detail for detail in details}
        for key in signatures:
            runner = self._interpreter.get_signature_runner(key)
            mine = runner.get_input_details() if is_input else runner.get_output_details()
            if {info.name for info in infos} == set(mine):
                by_name = {detail["name"]: detail for detail in details}
                found = {n: by_name[d["name"]] for n, d in mine.items() if d["name"] in by_name}
        if len(details) == len(infos) == 1 and infos[0].name not in found:
            # Without a signature, a converter names the one tensor as it likes.
            found = {infos[0].name: details[0]}
        _check_tensors(what, infos, [_litert_info(n, d, infos) for n, d in found.items()])
        return [found[info.name] for info in infos]


class OpenVinoModel:
    """An OpenVINO model, its two files packed into one (contract §5.5)."""

    def __init__(self, load: Load) -> None:
        openvino = _import("openvino", "openvino")
        self.runtime_version = str(openvino.__version__).partition("-")[0]
        options = {
            "INFERENCE_NUM_THREADS": load.limits.threads,
            "NUM_STREAMS": 1,
            # As on the host that proved it; processors with bfloat16 would compute in that.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            members = unpack(Path(load.folder, "model"), OPENVINO_MEMBERS)
            xml, weights = (members[name] for name in OPENVINO_MEMBERS)
            core = openvino.Core()
            model = core.read_model(xml, openvino.Tensor(np.frombuffer(weights, np.uint8)))
            compiled = core.compile_model(model, "CPU", options)
            self._request = compiled.create_infer_request()
        except Exception as e:
            raise _translated(e, ModelRefusedError, "OpenVINO cannot load the model") from e
        found = [_openvino_info(port) for port in compiled.inputs]
        outputs = [_openvino_info(port) for port in compiled.outputs]
        _check_tensors("inputs", load.inputs, found)
        _check_tensors("outputs", load.outputs, outputs)
        self._inputs = found
        names = [info.name for info in outputs]
        self._outputs = [names.index(info.name) for info in load.outputs]

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Return the outputs, in the order of the manifest."""
        for info in self._inputs:
            # OpenVINO 2026.4 computes something from an input of another shape.
            if not _is_compatible(info.shape, inputs[info.name].shape):
                shape = list(inputs[info.name].shape)
                raise InputRefusedError(f"{info.name} is {shape}; the model takes {_said([info])}")
        try:
            self._request.infer([np.array(inputs[i.name], order="C") for i in self._inputs])
            # Its own memory is written again by the next inference.
            return [np.array(self._request.get_output_tensor(i).data) for i in self._outputs]
        except Exception as e:
            raise _translated(e, InputRefusedError, "OpenVINO cannot run these inputs") from e


class ExecuTorchModel:
    """An ExecuTorch program, which names its inputs and outputs in a constant method."""

    def __init__(self, load: Load) -> None:
        # Its thread pool takes every processor that it may use; the call that would set the
        # number of threads waits forever for its own (ExecuTorch 1.5.1).
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[: load.limits.threads])
        self._torch = _import("torch", "executorch")
        runtime = _import("executorch.runtime", "executorch")
        self.runtime_version = importlib.metadata.version("executorch")
        try:
            self._program = runtime.Runtime.get().load_program(Path(load.folder, "model"))
            (text,) = self._program.load_method(_NAMES_METHOD).execute([])
            names = json.loads(text)
            self._method = self._program.load_method("forward")
            facts = self._method.metadata
            found = [
                _executorch_info(name, facts.input_tensor_meta(i))
                for i, name in enumerate(names["inputs"])
            ]
            outputs = [
                _executorch_info(name, facts.output_tensor_meta(i))
                for i, name in enumerate(names["outputs"])
            ]
        except ModelRefusedError:
            raise
        except Exception as e:
            raise _translated(e, ModelRefusedError, "ExecuTorch cannot load the model") from e
        _check_tensors("inputs", load.inputs, found)
        _check_tensors("outputs", load.outputs, outputs)
        self._inputs = [info.name for info in found]
        listed = [info.name for info in outputs]
        self._outputs = [listed.index(info.name) for info in load.outputs]

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Return the outputs, in the order of the manifest."""
        try:
            tensors = [
                self._torch.from_numpy(np.array(inputs[name], order="C")) for name in self._inputs
            ]
            values = self._method.execute(tensors)
            # The program's own memory is written again by the next inference.
            return [np.array(values[i].numpy()) for i in self._outputs]
        except Exception as e:
            raise _translated(e, InputRefusedError, "ExecuTorch cannot run these inputs") from e


def _litert_interpreter() -> tuple[Any, str]:
    """Return the interpreter's class and the installed version."""
    for module, distribution in (
        ("ai_edge_litert.interpreter", "ai-edge-litert"),
        ("tflite_runtime.interpreter", "tflite-runtime"),
    ):
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        return found.Interpreter, importlib.metadata.version(distribution)
    raise RuntimeMissingError(
        "the runtime litert is not installed", hint="pip install 'aid-edge[litert]'"
    )


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as e:
        raise RuntimeMissingError(
            f"the runtime {module} is not installed", hint=f"pip install 'aid-edge[{extra}]'"
        ) from e


def _translated(error: Exception, kind: type[AidError], what: str) -> Exception:
    """Return the runtime's error as ours; running out of memory as ``MemoryError``."""
    text = str(error)
    lower = text.lower()
    if isinstance(error, MemoryError) or "bad_alloc" in lower or "allocate memory" in lower:
        return MemoryError(text)
    return kind(f"{what}: {text[:500] or type(error).__name__}")


def _ort_info(node: Any) -> TensorInfo:
    datatype = _ORT_TYPES.get(node.type)
    if datatype is None:
        raise ModelRefusedError(f"tensor {node.name!r} has type {node.type}, which is not served")
    shape = tuple(d if isinstance(d, int) else -1 for d in node.shape)
    return TensorInfo(node.name, datatype, shape)  # type: ignore[arg-type]


def _litert_info(name: str, detail: dict[str, Any], wanted: Sequence[TensorInfo]) -> TensorInfo:
    datatype = _DATATYPES.get(np.dtype(detail["dtype"]))
    if datatype is None:
        raise ModelRefusedError(f"tensor {name!r} has type {detail['dtype']}, which is not served")
    if detail["quantization"][0] and any(w.name == name and w.datatype == "FP32" for w in wanted):
        datatype = "FP32"
    signature = detail.get("shape_signature", detail["shape"])
    return TensorInfo(name, datatype, tuple(int(d) for d in signature))  # type: ignore[arg-type]


def _openvino_info(port: Any) -> TensorInfo:
    name, kind = port.get_any_name(), port.get_element_type()
    datatype = _DATATYPES.get(np.dtype(kind.to_dtype()))
    if datatype is None:
        raise ModelRefusedError(f"tensor {name!r} has type {kind}, which is not served")
    shape = tuple(-1 if d.is_dynamic else d.get_length() for d in port.get_partial_shape())
    return TensorInfo(name, datatype, shape)  # type: ignore[arg-type]


def _executorch_info(name: str, meta: Any) -> TensorInfo:
    datatype = _SCALAR_TYPES.get(int(meta.dtype()))
    if datatype is None:
        raise ModelRefusedError(f"tensor {name!r} has type {meta.dtype()}, which is not served")
    shape = tuple(int(size) for size in meta.sizes())
    return TensorInfo(name, datatype, shape)  # type: ignore[arg-type]


def _check_tensors(what: str, wanted: Sequence[TensorInfo], found: Sequence[TensorInfo]) -> None:
    """Compare what the manifest says with what the artifact has; order does not matter."""
    by_name = {info.name: info for info in found}
    is_input = what == "inputs"
    for info in wanted:
        other = by_name.get(info.name)
        if (
            other is None
            or other.datatype != info.datatype
            or not _is_compatible(info.shape, other.shape)
        ):
            raise ModelRefusedError(
                f"the model's {what} are not those of its manifest: {_said(wanted)} is declared, "
                f"{_said(found)} found"
            )
    if is_input and len(wanted) != len(found):
        raise ModelRefusedError(
            f"the model has {len(found)} inputs ({_said(found)}), its manifest {len(wanted)}"
        )


def _is_compatible(declared: tuple[int, ...], found: tuple[int, ...]) -> bool:
    return len(declared) == len(found) and all(
        d == f or -1 in (d, f) for d, f in zip(declared, found, strict=True)
    )


def _said(infos: Sequence[TensorInfo]) -> str:
    return ", ".join(f"{i.name} {i.datatype} {list(i.shape)}" for i in infos) or "none"


def _quantized(value: Array, detail: dict[str, Any]) -> Array:
    """Return ``value`` as the interpreter takes it (TensorFlow Lite quantization specification)."""
    dtype = np.dtype(detail["dtype"])
    if value.dtype == dtype:
        return value
    scale, zero_point = detail["quantization"]
    bounds = np.iinfo(dtype)
    scaled: Array = np.clip(np.rint(value / scale) + zero_point, bounds.min, bounds.max)
    return scaled.astype(dtype)


def _dequantized(value: Array, detail: dict[str, Any], info: TensorInfo) -> Array:
    if value.dtype == DTYPES[info.datatype]:
        return value
    scale, zero_point = detail["quantization"]
    centered: Array = value.astype(np.int32) - zero_point
    return (np.float32(scale) * centered).astype(np.float32)
