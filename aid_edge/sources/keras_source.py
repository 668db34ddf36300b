"""Keras models (``.keras``, ``.h5``), loaded without running code of theirs.

Imported only in worker processes, after ``KERAS_BACKEND`` is set.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from aid_edge.errors import SourceError, first_line
from aid_edge.sources.inputs import fitted
from aid_edge.sources.inspection import (
    DATATYPES,
    Inspection,
    OperatorCount,
    SourceRequest,
    check_file,
    digest_of_files,
)
from aid_edge.sources.recognition import is_saved_model
from device_agent.contract.tensors import TensorInfo

_SIGNATURE = "serving_default"


def load(request: SourceRequest) -> Any:
    """Return the Keras model; on the torch backend it is a ``torch.nn.Module``.

    Raises:
        SourceError: Not a whole Keras model, only weights, or it holds code.
    """
    path = Path(request.spec)
    if is_saved_model(request.spec):
        return _load_saved_model(path)
    check_file(path, "Keras model")
    if path.suffix.lower() == ".keras" and not zipfile.is_zipfile(path):
        # Keras says that there is no such file.
        raise _load_error(path, ValueError("it is no zip archive"))
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as e:  # h5py, zipfile and Keras raise many kinds for a broken file
        raise _load_error(path, e) from e
    if not getattr(model, "inputs", None):
        raise SourceError(
            f"{path}: the model was never built, so its inputs are not known",
            hint="Call it once on data, or start it with keras.Input, and save it again.",
        )
    if keras.backend.backend() == "torch":
        model.eval()
    return model


def inspect(request: SourceRequest) -> Inspection:
    """Return the facts about the model that ``request`` names.

    Raises:
        SourceError: It cannot be read.
    """
    model = load(request)
    count = OperatorCount()
    for layer in _layers(model):
        if type(layer).__name__ != "InputLayer":
            count.add(type(layer).__name__, _rank(layer), layer.name)
    backend = keras.backend.backend()
    # What is made of the model depends on the backend, so outcomes of one never pass for the other.
    other = (backend.encode(),) if backend != "torch" else ()
    digest = digest_of_files("keras", _files(Path(request.spec)), *other)
    outputs = _infos(model.outputs, request.spec)
    if request.output_names:
        if len(request.output_names) != len(outputs):
            raise SourceError(
                f"{request.spec}: the card names {len(request.output_names)} outputs, "
                f"the model has {len(outputs)}"
            )
        outputs = tuple(
            TensorInfo(n, o.datatype, o.shape)
            for n, o in zip(request.output_names, outputs, strict=True)
        )
    inputs = declared_inputs(request, model)
    return Inspection(inputs, outputs, count.uses, int(model.count_params()), digest)


def declared_inputs(request: SourceRequest, model: Any) -> tuple[TensorInfo, ...]:
    """Return the model's inputs, with sizes and names as the request declares them.

    Raises:
        SourceError: The request contradicts the file.
    """
    found = _infos(model.inputs, request.spec)
    return fitted(request.inputs, found, request.spec)


def run(
    request: SourceRequest, inputs: Mapping[str, Any], batches: Sequence[slice | int]
) -> Iterator[list[np.ndarray[Any, Any]]]:
    """Yield the outputs of the model for each slice of ``inputs``.

    Raises:
        SourceError: The model cannot be loaded or fails.
    """
    model = load(request)
    names = [i.name for i in declared_inputs(request, model)]
    for batch in batches:
        arrays = [keras.ops.convert_to_tensor(np.asarray(inputs[name][batch])) for name in names]
        try:
            outputs = model(arrays if len(arrays) > 1 else arrays[0], training=False)
        except Exception as e:  # layers raise whatever their backend raises
            raise SourceError(f"{request.spec}: the model fails: {first_line(e)}") from e
        yield [keras.ops.convert_to_numpy(t) for t in keras.tree.flatten(outputs)]


def _files(path: Path) -> list[Path]:
    """Return the files that make the model: one, or all of a SavedModel folder."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _load_saved_model(path: Path) -> Any:
    """Return the serving signature of a SavedModel as a Keras model for inference."""
    import tensorflow as tf  # noqa: PLC0415 -- only there with its extra

    for file in _files(path):
        if file.stat().st_size:
            check_file(file, "file of the SavedModel")
    try:
        signatures = tf.saved_model.load(str(path)).signatures
    except Exception as e:  # TensorFlow raises whatever its parser meets
        raise SourceError(f"{path}: is not a whole SavedModel: {first_line(e)}") from e
    name = _SIGNATURE if _SIGNATURE in signatures else next(iter(signatures), "")
    if not name or (len(signatures) > 1 and name != _SIGNATURE):
        raise SourceError(
            f"{path}: has no signature {_SIGNATURE!r}; it has {', '.join(signatures) or 'none'}",
            hint="Save it with model.export(path), or give tf.saved_model.save its signatures.",
        )
    specs = signatures[name].structured_input_signature[1]
    if not specs:
        raise SourceError(f"{path}: its signature {name!r} takes no inputs")
    layer = keras.layers.TFSMLayer(str(path), call_endpoint=name)
    inputs = {
        key: keras.Input(batch_shape=tuple(spec.shape), dtype=spec.dtype.name, name=key)
        for key, spec in specs.items()
    }
    # The layer calls a signature with one input by position, else by name.
    given = next(iter(inputs.values())) if len(inputs) == 1 else inputs
    return keras.Model(list(inputs.values()), layer(given))


def _layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if getattr(layer, "layers", None):
            yield from _layers(layer)
        else:
            yield layer


def _rank(layer: Any) -> int:
    try:
        tensors = keras.tree.flatten([layer.input, layer.output])
    except (AttributeError, ValueError):
        # A layer that is used several times, or not at all, has no one input.
        return 0
    return max((len(t.shape) for t in tensors), default=0)


def _infos(tensors: Sequence[Any], spec: str) -> tuple[TensorInfo, ...]:
    infos: list[TensorInfo] = []
    for number, tensor in enumerate(tensors):
        datatype = DATATYPES.get(keras.backend.standardize_dtype(tensor.dtype))
        if datatype is None:
            raise SourceError(f"{spec}: {tensor.name} is {tensor.dtype}, unknown on the wire")
        # The layer's name is saved in the file; a tensor's is counted up anew in every process.
        history = getattr(tensor, "_keras_history", None)
        name = history.operation.name if history is not None else tensor.name
        if any(name == info.name for info in infos):
            name = f"{name}_{number}"
        shape = tuple(-1 if size is None else int(size) for size in tensor.shape)
        infos.append(TensorInfo(name, datatype, shape))  # type: ignore[arg-type]
    return tuple(infos)


def _load_error(path: Path, error: BaseException) -> SourceError:
    text = str(error)
    if "safe_mode" in text or "unsafe" in text.lower() or "lambda" in text.lower():
        return SourceError(
            f"{path}: holds code (such as a Lambda layer), which is not run",
            cause=first_line(error),
            hint="Replace the Lambda layer by a registered layer of its own.",
        )
    if "No model config found" in text or "weights file" in text:
        return SourceError(
            f"{path}: holds weights but no model",
            hint="Save the whole model: model.save('model.keras').",
        )
    return SourceError(
        f"{path}: is not a whole Keras model: {first_line(error)}",
        hint="It may be cut short, or need layers that are not part of Keras.",
    )
