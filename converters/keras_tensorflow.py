"""Keras models on the TensorFlow backend, exported by Keras' own and TensorFlow's own tools.

What is written calls its inputs ``args_000``, ``args_001``, ... and its outputs ``out_000``, ...
in the order of the source model: SavedModel signatures, which both tools go through, lose the order
and keep only names. Heavy: imported in worker processes only.
"""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path
from typing import Any

import tensorflow as tf

from aid_edge.errors import ConversionError, MissingDependencyError
from aid_edge.model import SourceModel
from aid_edge.sources.inspection import NUMPY_NAMES
from aid_edge.sources.opening import load_module
from device_agent.contract.tensors import TensorInfo

TOOLS = ("tensorflow", "keras")
OPSET_MAX = 18
"""The newest that tf2onnx 1.17 writes."""


def input_name(number: int) -> str:
    """Return what the input at this place is called in the file."""
    return f"args_{number:03}"


def output_name(number: int) -> str:
    """Return what the output at this place is called in the file."""
    return f"out_{number:03}"


def to_onnx(model: SourceModel, opset: int, batch: int, to: Path) -> None:
    """Write ``model`` as an ONNX file of ``opset``, or of ``OPSET_MAX`` where that is less.

    Args:
        model: A Keras model.
        opset: The newest opset that may be used.
        batch: Of every input; -1 leaves it open.
        to: File to write.

    Raises:
        ConversionError: The exporter failed.
        MissingDependencyError: tf2onnx is not installed.
    """
    if importlib.util.find_spec("tf2onnx") is None:
        raise MissingDependencyError("exporting a Keras model to ONNX", "tf2onnx", "tensorflow")
    whole = _with_batch(model, batch)
    try:
        whole.export(
            str(to),
            format="onnx",
            # Without it, Keras opens the batch again.
            input_signature=[[_spec(i, t, batch) for i, t in enumerate(model.inputs)]],
            opset_version=min(opset, OPSET_MAX),
            verbose=False,
        )
    except Exception as e:  # the exporter raises whatever its many parts raise
        raise _failure(model, "the Keras exporter to ONNX", e) from e


def to_litert(model: SourceModel, to: Path) -> None:
    """Write ``model`` as a float ``.tflite`` file with a batch of one.

    Raises:
        ConversionError: The converter failed.
    """
    whole = _with_batch(model, 1)
    try:
        to.write_bytes(tf.lite.TFLiteConverter.from_keras_model(whole).convert())
    except Exception as e:  # the converter raises whatever its many parts raise
        raise _failure(model, "the TensorFlow Lite converter", e) from e


def tools(*names: str) -> dict[str, str]:
    """Return the versions of what exports, and of the distributions ``names``."""
    return {name: metadata.version(name) for name in (*TOOLS, *names)}


def _with_batch(model: SourceModel, batch: int) -> Any:
    import keras  # noqa: PLC0415 -- only after load_module() has chosen its backend

    inner = load_module(model)
    inputs = [
        keras.Input(batch_shape=_shape(t, batch), dtype=_dtype(t), name=input_name(i))
        for i, t in enumerate(model.inputs)
    ]
    outputs = inner(inputs if len(inputs) > 1 else inputs[0], training=False)
    leaves = keras.tree.flatten(outputs)
    return keras.Model(inputs, {output_name(i): leaf for i, leaf in enumerate(leaves)})


def _spec(number: int, tensor: TensorInfo, batch: int) -> Any:
    return tf.TensorSpec(_shape(tensor, batch), _dtype(tensor), name=input_name(number))


def _shape(tensor: TensorInfo, batch: int) -> tuple[int | None, ...]:
    sizes = (batch if tensor.shape[0] == -1 else tensor.shape[0], *tensor.shape[1:])
    return tuple(None if size == -1 else size for size in sizes)


def _dtype(tensor: TensorInfo) -> str:
    return NUMPY_NAMES[tensor.datatype]


def _failure(model: SourceModel, what: str, error: BaseException) -> ConversionError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ConversionError(
        f"{model.spec}: {what} failed: {(lines or [type(error).__name__])[0][:300]}",
        hint="`aid-edge inspect` lists the layers; the log says which one failed.",
    )
