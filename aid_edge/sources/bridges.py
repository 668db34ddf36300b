"""Bridges between frameworks, for converters and methods that do not read a source's own.

Heavy: for worker processes only. What comes out was compared with the source before it is
returned, on given samples and random inputs, at two batch sizes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxslim
import torch
from numpy.typing import NDArray
from onnx import shape_inference

from aid_edge.errors import ConversionError, UnsupportedModelError, first_line
from aid_edge.model import SourceModel, is_batched
from aid_edge.sources import (
    onnx_graph,
    onnx_source,
    torch_archive,
    torch_source,
    torchscript_source,
)
from aid_edge.sources.inspection import NUMPY_NAMES, Inspection, SourceRequest, digest_of_files
from aid_edge.sources.onnx_module import OnnxModule
from aid_edge.sources.opening import request_of, source_module
from device_agent.contract.tensors import TensorInfo

Arrays = Mapping[str, NDArray[Any]]

MAX_RELATIVE = 1e-3
"""Largest difference from the source, as a share of its largest output value."""

TORCHSCRIPT_OPSET = 17
_BATCHES = (1, 3)
_PROBED = (2, 3)
_MAX_SAMPLES = 8


def to_torch(model: SourceModel, to: Path, samples: Arrays | None = None) -> SourceModel:
    """Write an ONNX model as a ``.pt2`` file that computes the same, and return what it is.

    Its batch may vary where the source's may and the graph permits it; else it is one.

    Args:
        model: An ONNX model whose other sizes are fixed.
        to: File to write, ``.pt2``.
        samples: Real inputs [n, ...] in the model's layout, to be compared with.

    Raises:
        UnsupportedModelError: The graph cannot be brought over; names operators and reasons.
        ConversionError: It can, but torch cannot follow it or it computes something else.
    """
    bridged = _bridged(model)
    torch_archive.write(bridged.program, to)
    request = request_of(bridged.model)
    written = SourceRequest(str(to), None, request.inputs, _names(model.outputs))
    _compare(model, bridged.model, torch_source.run, written, samples)
    return _described(model, "torch", to, torch_source.inspect(written))


def torch_module(model: SourceModel, samples: Arrays | None = None) -> torch.nn.Module:
    """Return an ONNX model as a module of PyTorch layers, for training and pruning.

    In evaluation mode, without gradients; it takes and gives the model's tensors in order. It
    was compared with the source.

    Raises:
        UnsupportedModelError: The graph cannot be brought over; names operators and reasons.
        ConversionError: It can, but computes something else.
    """
    bridged = _bridged(model)
    _compare(model, bridged.model, _runner(bridged.module), request_of(model), samples)
    return bridged.module


def to_onnx(model: SourceModel, to: Path, samples: Arrays | None = None) -> SourceModel:
    """Write a TorchScript model as an ONNX file that computes the same, and return what it is.

    Args:
        model: A TorchScript model.
        to: File to write, ``.onnx``.
        samples: Real inputs [n, ...] in the model's layout, to be compared with.

    Raises:
        UnsupportedModelError: It is another framework's.
        ConversionError: The exporter failed, or what it wrote computes something else.
    """
    if model.framework != "torchscript":
        raise _refusal(model, "only TorchScript models are brought over to ONNX here")
    request = request_of(model)
    module = torchscript_source.load(request)
    varies = any(i.shape[:1] == (-1,) for i in model.inputs)
    names = _names(model.inputs)
    axes = {t.name: {0: "batch"} for t in (*model.inputs, *model.outputs) if t.shape[:1] == (-1,)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # torch says that this exporter is old; the new one cannot read TorchScript.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                torch_source.example_inputs(request, batch=2 if varies else 1),
                str(to),
                dynamo=False,
                input_names=list(names),
                output_names=list(_names(model.outputs)),
                opset_version=TORCHSCRIPT_OPSET,
                dynamic_axes=axes if varies else None,
            )
    except Exception as e:  # the exporter raises whatever its many parts raise
        raise ConversionError(
            f"{model.spec}: the TorchScript exporter to ONNX failed: {first_line(e)}",
            hint="Export the model from its code instead: torch.export, or ONNX directly.",
        ) from e
    written = SourceRequest(str(to), None, request.inputs, _names(model.outputs))
    _compare(model, model, onnx_source.run, written, samples)
    return _described(model, "onnx", to, onnx_source.inspect(written))


@dataclass(frozen=True)
class _Bridged:
    """A module, its exported program, and the model with the batch that these have."""

    model: SourceModel
    module: torch.nn.Module
    program: torch.export.ExportedProgram


def _bridged(model: SourceModel) -> _Bridged:
    if model.framework != "onnx":
        raise _refusal(model, "only ONNX models are brought over to PyTorch here")
    if model.quantized:
        raise _refusal(model, "it is quantized already; give the float model")
    if open_ := [i.name for i in model.inputs if -1 in i.shape[1:]]:
        raise _refusal(
            model, f"input {open_[0]} varies in more than its batch: fix it with --input NAME=SHAPE"
        )
    if not model.has_dynamic_batch:
        return _attempt(model)
    try:
        return _attempt(model)
    except (UnsupportedModelError, ConversionError):
        # With a fixed batch, shapes that are computed from it become constants.
        return _attempt(_with_one(model))


def _attempt(model: SourceModel) -> _Bridged:
    module = _module(model)
    try:
        with torch.inference_mode():
            module(*(torch.from_numpy(a) for a in _random(model, 2).values()))
    except Exception as e:  # layers raise whatever their shapes make them
        raise ConversionError(
            f"{model.spec}: brought over to PyTorch, the model fails: {first_line(e)}"
        ) from e
    try:
        program = torch_archive.exported(torch_source.Flat(module), model.inputs)
    except ConversionError as e:
        raise ConversionError(f"{model.spec}: {e}") from e
    return _Bridged(model, module, program)


def _module(model: SourceModel) -> torch.nn.Module:
    graph = onnx_source.load(request_of(model))
    try:
        graph = onnxslim.slim(graph)
        # It writes some constants back as nodes.
        onnx_graph.lift_constants(graph)
        _fix_computed_shapes(graph, model)
        graph = onnxslim.slim(graph)
        onnx_graph.lift_constants(graph)
        graph = shape_inference.infer_shapes(graph, data_prop=True)
    except Exception as e:  # onnxslim raises whatever its passes raise
        raise ConversionError(
            f"{model.spec}: simplifying the ONNX graph failed: {first_line(e)}"
        ) from e
    try:
        module = OnnxModule(graph)
    except UnsupportedModelError as e:
        raise UnsupportedModelError(f"{model.spec}: {e}", e.reasons, hint=e.hint) from e
    return module.eval()


def _fix_computed_shapes(graph: onnx.ModelProto, model: SourceModel) -> None:
    """Make constants of shapes that the graph computes from its batch alone.

    What a Reshape or Resize gives is found by running the graph at two batch sizes: an axis
    that is another one then is the batch.
    """
    known = {i.name for i in graph.graph.initializer}
    at = {"Reshape": 1, "Resize": 3}
    nodes = [
        n for n in graph.graph.node
        if n.op_type in at and len(n.input) > at[n.op_type]
        and n.input[at[n.op_type]] and n.input[at[n.op_type]] not in known
    ]  # fmt: skip
    if not nodes:
        return
    probe = onnx.ModelProto()
    probe.CopyFrom(graph)
    declared = {o.name for o in probe.graph.output}
    probe.graph.output.extend(
        onnx.ValueInfoProto(name=n.output[0]) for n in nodes if n.output[0] not in declared
    )
    probe = shape_inference.infer_shapes(probe)
    session = onnx_source.session_of(probe)
    names = [o.name for o in session.get_outputs()]
    shapes = [
        dict(zip(names, (a.shape for a in session.run(None, _random(model, b))), strict=True))
        for b in _PROBED
    ]
    for node in nodes:
        one, two = (found[node.output[0]] for found in shapes)
        sizes = [a if a == b else -1 for a, b in zip(one, two, strict=True)]
        if sizes.count(-1) > 1 or (node.op_type == "Resize" and -1 in sizes[2:]):
            continue
        if node.op_type == "Resize":
            sizes[:2] = [1, 1]  # not looked at
        name = f"{node.output[0]} sizes"
        graph.graph.initializer.append(
            onnx.numpy_helper.from_array(np.asarray(sizes, np.int64), name)
        )
        node.input[at[node.op_type]] = name


def _runner(module: torch.nn.Module) -> Any:
    flat = torch_source.Flat(module)

    def run(_: SourceRequest, inputs: Arrays, picks: Sequence[slice | int]) -> Any:
        for pick in picks:
            tensors = tuple(torch.from_numpy(np.array(a[pick])) for a in inputs.values())
            with torch.inference_mode():
                yield [t.numpy() for t in flat(*tensors)]

    return run


def _compare(
    source: SourceModel,
    made: SourceModel,
    run: Any,
    request: SourceRequest,
    samples: Arrays | None,
) -> None:
    """Return if what was made computes what the source does.

    Raises:
        ConversionError: It does not; says which output and by how much.
    """
    names = _names(source.inputs)
    reference = source_module(source.framework)
    batches = _BATCHES if made.has_dynamic_batch else (1,)
    feeds = [_random(made, batch) for batch in batches]
    few = {name: array[:_MAX_SAMPLES] for name, array in (samples or {}).items()}
    if few:
        feeds += [{name: np.asarray(feed[name]) for name in names} for feed in source.feeds(few)]
    lists: Any = {name: [feed[name] for feed in feeds] for name in names}
    picks = range(len(feeds))
    wanted = reference.run(request_of(source), lists, picks)
    for want, got in zip(wanted, run(request, lists, picks), strict=True):
        for info, a, b in zip(source.outputs, want, got, strict=True):
            _check_same(source, info, np.asarray(a), np.asarray(b))


def _check_same(model: SourceModel, info: TensorInfo, a: NDArray[Any], b: NDArray[Any]) -> None:
    if a.shape != b.shape:
        raise ConversionError(
            f"{model.spec}: brought over, output {info.name} has shape {list(b.shape)}; "
            f"the source's is {list(a.shape)}"
        )
    want, got = a.astype(np.float64), b.astype(np.float64)
    largest = float(np.abs(want).max(initial=0.0))
    difference = float(np.abs(want - got).max(initial=0.0))
    # Also false for NaN.
    if not difference <= MAX_RELATIVE * max(largest, 1e-6):
        raise ConversionError(
            f"{model.spec}: brought over, output {info.name} differs from the source's by up to "
            f"{difference:.3g}, where its largest value is {largest:.3g}",
            hint="This is a fault of the bridge; choose a runtime that reads the source itself.",
        )


def _described(model: SourceModel, framework: Any, to: Path, found: Inspection) -> SourceModel:
    name = {"torch": "PyTorch", "onnx": "ONNX"}[framework]
    notes = [*model.notes, f"brought over from {model.framework} to {name} and compared with it"]
    if model.has_dynamic_batch and not any(i.shape[:1] == (-1,) for i in found.inputs):
        notes.append("with a fixed batch of one: the graph computes shapes from its batch")
    return SourceModel(
        str(to), framework, None, found.inputs, found.outputs, found.uses, found.parameters,
        digest_of_files("bridged", [to], model.digest.encode()), model.card, found.opset,
        is_batched(found.inputs, found.outputs), notes=tuple(notes),
    )  # fmt: skip


def _with_one(model: SourceModel) -> SourceModel:
    def one(tensor: TensorInfo) -> TensorInfo:
        return TensorInfo(tensor.name, tensor.datatype, (1, *tensor.shape[1:]))

    return replace(
        model, inputs=tuple(map(one, model.inputs)), outputs=tuple(map(one, model.outputs))
    )


def _random(model: SourceModel, batch: int) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(batch)
    feeds = {}
    for info in model.inputs:
        shape = tuple(batch if size == -1 else size for size in info.shape)
        dtype = np.dtype(NUMPY_NAMES[info.datatype])
        # Zeros are valid where integers index something, such as an embedding.
        values = generator.standard_normal(shape) if dtype.kind == "f" else np.zeros(shape)
        feeds[info.name] = np.asarray(values, dtype)
    return feeds


def _names(tensors: Sequence[TensorInfo]) -> tuple[str, ...]:
    return tuple(t.name for t in tensors)


def _refusal(model: SourceModel, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{model.spec} cannot be brought over", [reason])
