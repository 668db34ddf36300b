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
from aid_edge.model import Framework, SourceModel, find_card, read_card
from aid_edge.sources.inspection import Inspection, SourceRequest, check_file, request_for
from device_agent.contract.tensors import TensorInfo

_SUFFIXES: dict[str, Framework] = {
    ".onnx": "onnx", ".keras": "keras", ".h5": "keras", ".hdf5": "keras",
}  # fmt: skip
_WEIGHTS = frozenset({".pth", ".pt", ".safetensors", ".bin", ".ckpt"})
_NEEDS: dict[Framework, tuple[str, tuple[str, ...]]] = {
    "torch": ("a PyTorch model", ("torch", "safetensors", "numpy")),
    "onnx": ("an ONNX model", ("onnx", "onnxruntime", "numpy")),
    "keras": ("a Keras model", ("keras", "h5py", "numpy")),
}
_KERAS_BACKEND = "KERAS_BACKEND"
_KINDS = (
    "Read are: PyTorch as path/to/file.py:factory or module:factory (with --weights), "
    "ONNX (.onnx), Keras (.keras, .h5)."
)


def open_source(
    spec: str,
    *,
    weights: Path | None = None,
    inputs: Sequence[TensorInfo] | None = None,
    card: Path | None = None,
    limits: isolate.Limits | None = None,
) -> SourceModel:
    """Return the facts about a source model; its framework is loaded in a worker process only.

    Args:
        spec: Path of an ONNX or Keras file, or ``path/to/file.py:factory`` or ``module:factory``
            of a PyTorch model. A factory is called without arguments and returns a module.
        weights: State dict of a PyTorch model (``.pth``, ``.pt``, ``.safetensors``).
        inputs: What a PyTorch model takes, where no card says it; for other frameworks, sizes
            for dimensions that may vary.
        card: Model card; else ``model.toml`` beside the weights or the model is read.
        limits: Of the worker process.

    Raises:
        SourceError: The model, weights or card cannot be read, or do not fit each other.
        MissingDependencyError: The framework is not installed.
        StepCrashedError: The framework crashed, or ran out of memory or time.
    """
    framework = recognize(spec)
    file = Path(spec if framework != "torch" else spec.rpartition(":")[0])
    if weights is not None:
        if framework != "torch":
            raise SourceError(f"{spec}: weights go with a PyTorch model; this is {framework}")
        check_file(weights, "weights file")
    card_path = card or find_card(weights, file)
    model_card = read_card(card_path) if card_path is not None else None
    request = request_for(spec, weights, model_card, inputs or ())
    require(framework)
    found = isolate.run_with(
        limits or isolate.Limits(), None, inspect_in_worker, framework, request
    ).value
    return SourceModel(
        spec, framework, weights, found.inputs, found.outputs, found.uses, found.parameters,
        found.digest, model_card, found.opset,
    )  # fmt: skip


def recognize(spec: str) -> Framework:
    """Return the framework of the model that ``spec`` names, without loading it.

    Raises:
        SourceError: There is no such file, or it is of no kind that is read.
    """
    path = Path(spec)
    where, colon, factory = spec.rpartition(":")
    if colon and not path.exists():
        if where.endswith(".py"):
            check_file(Path(where), "model code")
        elif not all(part.isidentifier() for part in where.split(".")):
            raise SourceError(f"{spec}: is neither a file nor module:factory", hint=_KINDS)
        if not factory.isidentifier():
            raise SourceError(f"{spec}: {factory!r} cannot name a factory", hint=_KINDS)
        return "torch"
    suffix = path.suffix.lower()
    if suffix in _SUFFIXES:
        check_file(path, "model")
        return _SUFFIXES[suffix]
    if not path.exists():
        raise SourceError(f"{spec}: there is no such file", hint=_KINDS)
    if suffix == ".py":
        raise SourceError(f"{spec}: which factory?", hint=f"Name it: {spec}:FACTORY")
    if suffix in _WEIGHTS:
        raise SourceError(
            f"{spec}: holds weights; the code of the model is needed as well",
            hint=f"Give path/to/file.py:factory --weights {spec}",
        )
    raise SourceError(f"{spec}: is of no kind that is read", hint=_KINDS)


def require(framework: Framework) -> None:
    """Return if what reads this framework is installed.

    Raises:
        MissingDependencyError: It is not; the hint installs it.
    """
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
    model: SourceModel, inputs: Mapping[str, Any], batches: Sequence[slice]
) -> Iterator[list[Any]]:
    """Yield the outputs of the source model per slice. For worker processes only."""
    outputs = source_module(model.framework).run(request_of(model), inputs, batches)
    return cast("Iterator[list[Any]]", outputs)


def load_module(model: SourceModel) -> Any:
    """Return a PyTorch or Keras model. For worker processes only.

    It is a ``torch.nn.Module``, unless :func:`keras_backend` is TensorFlow: then a Keras model.
    """
    return source_module(model.framework).load(request_of(model))


def source_module(framework: Framework) -> ModuleType:
    """Return the module that reads this framework; the import is slow and large."""
    if framework == "keras":
        # Keras reads it once, at its import.
        os.environ[_KERAS_BACKEND] = keras_backend()
    return importlib.import_module(f"aid_edge.sources.{framework}_source")
