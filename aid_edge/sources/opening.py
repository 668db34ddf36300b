"""The door to source models: recognizes the framework and inspects in a worker process."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

from aid_edge import isolate
from aid_edge.errors import MissingDependencyError, SourceError
from aid_edge.model import (
    CardInput,
    Framework,
    SourceModel,
    find_card,
    is_batched,
    read_card,
)
from aid_edge.sources.inspection import Inspection, SourceRequest, check_file, request_for
from aid_edge.sources.recognition import file_of, is_factory, is_saved_model, recognize
from device_agent.contract.tensors import TensorInfo

_NEEDS: dict[Framework, tuple[str, tuple[str, ...]]] = {
    "torch": ("a PyTorch model", ("torch", "safetensors", "numpy")),
    "torchscript": ("a TorchScript model", ("torch", "numpy")),
    "tflite": ("a TFLite model", ("ai_edge_litert", "flatbuffers", "numpy")),
    "onnx": ("an ONNX model", ("onnx", "onnxruntime", "numpy")),
    "keras": ("a Keras model", ("keras", "h5py", "numpy")),
}
_KERAS_BACKEND = "KERAS_BACKEND"


def open_source(
    spec: str,
    *,
    weights: Path | None = None,
    inputs: Sequence[TensorInfo | CardInput] | None = None,
    card: Path | None = None,
    limits: isolate.Limits | None = None,
) -> SourceModel:
    """Return the facts about a source model; its framework is loaded in a worker process only.

    Args:
        spec: Path of a model file or SavedModel folder, or ``path/to/file.py:factory`` or
            ``module:factory`` of a PyTorch model. A factory is called without arguments and
            returns a module.
        weights: State dict of a PyTorch model (``.pth``, ``.pt``, ``.safetensors``).
        inputs: What the model takes, as the user says it (:func:`sources.inputs.parse_input`):
            it overrules and completes the card. PyTorch and TorchScript need it from either; for
            others it gives sizes of dimensions that may vary, for ONNX of any.
        card: Model card; else ``model.toml`` beside the weights or the model is read.
        limits: Of the worker process.

    Raises:
        SourceError: The model, weights or card cannot be read, or do not fit each other.
        MissingDependencyError: The framework is not installed.
        StepCrashedError: The framework crashed, or ran out of memory or time.
    """
    framework = recognize(spec)
    if weights is not None:
        if not is_factory(spec, framework):
            what = f"{framework} file" if framework == "torch" else framework
            raise SourceError(f"{spec}: weights go with a PyTorch model; this is {what}")
        check_file(weights, "weights file")
    file = file_of(spec, framework)
    card_path = card or find_card(weights, file)
    model_card = read_card(card_path) if card_path is not None else None
    request = request_for(spec, weights, model_card, inputs or ())
    require(framework, spec)
    found = isolate.run_with(
        limits or isolate.Limits(), None, inspect_in_worker, framework, request
    ).value
    return SourceModel(
        spec, framework, weights, found.inputs, found.outputs, found.uses, found.parameters,
        found.digest, model_card, found.opset, is_batched(found.inputs, found.outputs),
        found.quantized, found.notes,
    )  # fmt: skip


def require(framework: Framework, spec: str = "") -> None:
    """Return if what reads this framework is installed.

    Raises:
        MissingDependencyError: It is not; the hint installs it.
        SourceError: It is a SavedModel, and Keras models are read by torch here.
    """
    if framework == "keras" and is_saved_model(spec):
        if importlib.util.find_spec("tensorflow") is None:
            raise MissingDependencyError("reading a SavedModel", "tensorflow", "tensorflow")
        if keras_backend() != "tensorflow":
            raise SourceError(
                f"{spec}: a SavedModel is read by TensorFlow, and torch is chosen here",
                hint=f"Set {_KERAS_BACKEND}=tensorflow.",
            )
    what, modules = _NEEDS[framework]
    extra = "tensorflow" if is_on_tensorflow(framework) else "convert"
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(f"reading {what}", module, extra)


def is_on_tensorflow(framework: Framework) -> bool:
    """Return whether models of this framework are loaded and exported by TensorFlow here.

    Raises:
        MissingDependencyError: It is Keras, and has no backend.
    """
    return framework == "keras" and keras_backend() == "tensorflow"


def keras_backend() -> Literal["torch", "tensorflow"]:
    """Return what loads, computes and exports Keras models here.

    That is TensorFlow where torch is not installed or ``KERAS_BACKEND`` asks for it, else torch.

    Raises:
        MissingDependencyError: It is not installed.
    """
    wanted = os.environ.get(_KERAS_BACKEND) == "tensorflow"
    if not wanted and importlib.util.find_spec("torch") is not None:
        return "torch"
    if importlib.util.find_spec("tensorflow") is not None:
        return "tensorflow"
    if wanted:
        what = f"reading a Keras model with {_KERAS_BACKEND}=tensorflow"
        raise MissingDependencyError(what, "tensorflow", "tensorflow")
    raise MissingDependencyError("reading a Keras model", "torch or tensorflow", "convert")


def request_of(model: SourceModel) -> SourceRequest:
    """Return the request that loads an inspected model again, with its shapes as they are now."""
    names = tuple(o.name for o in model.outputs)
    request = request_for(model.spec, model.weights, None, model.inputs)
    return SourceRequest(request.spec, request.weights, request.inputs, names)


# --- in worker processes ----------------------------------------------------------------------


def inspect_in_worker(framework: Framework, request: SourceRequest) -> Inspection:
    """Inspect a model. Imports its framework: for worker processes only."""
    return cast("Inspection", source_module(framework).inspect(request))


def run_in_worker(
    model: SourceModel, inputs: Mapping[str, Any], batches: Sequence[slice | int]
) -> Iterator[list[Any]]:
    """Yield the outputs of the source model per slice, or per sample of a model without batches.

    For worker processes only.
    """
    outputs = source_module(model.framework).run(request_of(model), inputs, batches)
    return cast("Iterator[list[Any]]", outputs)


def load_module(model: SourceModel) -> Any:
    """Return a PyTorch, TorchScript or Keras model. For worker processes only.

    A Keras model is a ``torch.nn.Module``, unless :func:`keras_backend` is TensorFlow. Of ONNX and
    TFLite, it is what their source modules load.
    """
    return source_module(model.framework).load(request_of(model))


def source_module(framework: Framework) -> ModuleType:
    """Return the module that reads this framework; the import is slow and large."""
    if framework == "keras":
        # Keras reads it once, at its import.
        os.environ[_KERAS_BACKEND] = keras_backend()
    return importlib.import_module(f"aid_edge.sources.{framework}_source")
