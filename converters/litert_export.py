"""From a source model of any kind to a float ``.tflite`` file.

Heavy: imported in worker processes only.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from aid_edge.converter import Arrays
from aid_edge.errors import ConversionError, first_line
from aid_edge.isolate import progress
from aid_edge.model import SourceModel
from aid_edge.sources.opening import is_on_tensorflow, load_module, request_of
from converters import litert_flatbuffer
from converters.litert_plan import channel_last
from device_agent.contract.errors import AidError
from device_agent.contract.profile import HardwareProfile

_BRIDGE_SAMPLES = 4


@dataclass(frozen=True)
class Exported:
    """A float file.

    Attributes:
        axes: Inputs whose channels moved to the end.
        tools: Name to version of what made it.
        notes: What the reader of the report must know.
    """

    axes: dict[str, tuple[int, ...]]
    tools: dict[str, str]
    notes: tuple[str, ...] = ()


def export(
    model: SourceModel, calibration: Arrays | None, profile: HardwareProfile, to: Path
) -> Exported:
    """Write ``model`` as a float file with a batch of one, with its declared names.

    Args:
        model: A model of any framework.
        calibration: Real inputs, where there are some: bridges between frameworks compare on them.
        profile: Its layout decides where channels are.
        to: File to write; what is made on the way lies beside it and is removed.

    Raises:
        ConversionError: The toolchain failed.
        UnsupportedModelError: The profile refuses an operator of the exported model.
    """
    progress(0.1, "export to LiteRT")
    if model.framework == "tflite":
        shutil.copyfile(model.spec, to)
        litert_flatbuffer.order(to, *_names(model))
        done = Exported({}, {"ai-edge-litert": metadata.version("ai-edge-litert")}, _passed(model))
    elif is_on_tensorflow(model.framework):
        from converters import keras_tensorflow  # noqa: PLC0415 -- only there with its extra

        keras_tensorflow.to_litert(model, to)
        inputs = [keras_tensorflow.input_name(i) for i in range(len(model.inputs))]
        outputs = [keras_tensorflow.output_name(i) for i in range(len(model.outputs))]
        litert_flatbuffer.order(to, inputs, outputs)
        done = Exported({}, keras_tensorflow.tools("ai-edge-litert"))
    elif model.framework in {"onnx", "torchscript"}:
        done = _export_bridged(model, calibration, profile, to)
    else:
        axes = channel_last(model, profile)
        _export_module(model, axes, to)
        done = Exported(axes, _tools(model))
    progress(0.5, "name tensors")
    litert_flatbuffer.finish(to, model, profile)
    return done


def _export_module(model: SourceModel, axes: Mapping[str, tuple[int, ...]], to: Path) -> None:
    import litert_torch  # noqa: PLC0415 -- not there where TensorFlow exports

    from aid_edge.sources import torch_source  # noqa: PLC0415

    module = torch_source.Flat(load_module(model)).eval()
    examples = list(torch_source.example_inputs(request_of(model), batch=1))
    moved = [i for i, tensor in enumerate(model.inputs) if tensor.name in axes]
    try:
        if moved:
            module = litert_torch.to_channel_last_io(module, args=moved).eval()
            for i in moved:
                examples[i] = examples[i].permute(*axes[model.inputs[i].name]).contiguous()
        litert_torch.convert(module, tuple(examples)).export(str(to))
    except Exception as e:  # the toolchain raises whatever its many parts raise
        raise ConversionError(
            f"{model.spec}: the LiteRT toolchain failed: {first_line(e)}",
            hint="`aid-edge inspect` lists the operators; the log says which one failed.",
        ) from e


def _export_bridged(
    model: SourceModel, calibration: Arrays | None, profile: HardwareProfile, to: Path
) -> Exported:
    """Go through PyTorch, which is fast and exact; where that fails, through onnx2tf."""
    from aid_edge.sources import bridges  # noqa: PLC0415 -- imports frameworks

    samples = None
    if calibration is not None:
        samples = {name: np.array(array[:_BRIDGE_SAMPLES]) for name, array in calibration.items()}
    onnx = model
    between = to.with_name("between.onnx")
    archive = to.with_name("between.pt2")
    try:
        if model.framework == "torchscript":
            onnx = bridges.to_onnx(model, between, samples)
        try:
            found = bridges.to_torch(onnx, archive, samples)
            axes = channel_last(found, profile)
            _export_module(found, axes, to)
        except AidError as e:
            return _export_by_onnx2tf(onnx, profile, to, e)
        # The bridge may name inputs otherwise; their order is the source's.
        theirs = [t.name for t in found.inputs]
        ours = {
            mine.name: axes[name]
            for mine, name in zip(model.inputs, theirs, strict=True) if name in axes
        }  # fmt: skip
        return Exported(ours, _tools(model) | {"onnx": metadata.version("onnx")})
    finally:
        between.unlink(missing_ok=True)
        archive.unlink(missing_ok=True)


def _export_by_onnx2tf(
    model: SourceModel, profile: HardwareProfile, to: Path, why: AidError
) -> Exported:
    from converters import litert_onnx2tf  # noqa: PLC0415 -- seldom needed

    try:
        axes = litert_onnx2tf.export(model, channel_last(model, profile), to)
    except AidError as e:
        raise ConversionError(
            f"{model.spec}: neither way from ONNX to LiteRT works",
            cause=f"through PyTorch: {why}; by onnx2tf: {e}",
            hint=e.hint or "Give the PyTorch or Keras model it was exported from.",
        ) from e
    note = f"converted by onnx2tf, because the way through PyTorch failed: {why}"
    return Exported(axes, litert_onnx2tf.tools(), (note,))


def _names(model: SourceModel) -> tuple[list[str], list[str]]:
    return [t.name for t in model.inputs], [t.name for t in model.outputs]


def _passed(model: SourceModel) -> tuple[str, ...]:
    return ("passed through: the file was quantized already",) if model.quantized else ()


def _tools(model: SourceModel) -> dict[str, str]:
    names = ["torch", "litert-torch", "litert-converter", "ai-edge-litert"]
    if model.framework == "keras":
        names.append("keras")
    return {name: metadata.version(name) for name in names}
