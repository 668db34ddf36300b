"""What is done to an ONNX graph before anything reads it: checks, and one form for all.

Imported only in worker processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper, shape_inference, version_converter

from aid_edge.errors import SourceError, first_line
from aid_edge.model import MAX_MODEL_BYTES
from aid_edge.sources.inspection import check_file

MIN_OPSET = 9
TARGET_OPSET = 13
"""Older graphs are converted up to it: below 13, QuantizeLinear has no axis (per-channel)."""

_MIN_IR_VERSION = 8
_MAX_DEPTH = 16
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_NAMED = 5


def read(path: Path) -> onnx.ModelProto:
    """Return the checked model in the file at ``path``, with its external data.

    Raises:
        SourceError: Not an ONNX model, cut short, not valid, older than opset 9, with operators
            of an unknown domain, or its data lies outside its folder or is missing.
    """
    check_file(path, "ONNX model")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError) as e:
        raise SourceError(
            f"{path}: is not an ONNX model, or is cut short",
            cause=first_line(e),
            hint="Compare its size and checksum with the original.",
        ) from e
    if not model.graph.node:
        raise SourceError(f"{path}: is not an ONNX model: its graph is empty")
    _check_domains(model, path)
    _check_external(model, path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(str(path), full_check=True)
    except (
        onnx.checker.ValidationError,
        shape_inference.InferenceError,
        DecodeError,
        OSError,
        ValueError,
        RuntimeError,
    ) as e:
        raise SourceError(f"{path}: is not a valid ONNX model: {first_line(e)}") from e
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard operator set, or 0 where it is not used."""
    return next((int(o.version) for o in model.opset_import if o.domain in {"", "ai.onnx"}), 0)


def normalized(model: onnx.ModelProto, spec: str) -> onnx.ModelProto:
    """Return ``model`` with weights as initializers only, in opset 13 or newer.

    Raises:
        SourceError: It cannot be converted to a newer opset.
    """
    drop_weight_inputs(model)
    lift_constants(model)
    # Before version 4 of the file format, weights had to be inputs.
    model.ir_version = max(model.ir_version, _MIN_IR_VERSION)
    opset = opset_of(model)
    if not 0 < opset < TARGET_OPSET:
        return model
    try:
        newer = version_converter.convert_version(model, TARGET_OPSET)
        onnx.checker.check_model(newer)
    except Exception as e:  # the converter raises several kinds without a base of theirs
        raise SourceError(
            f"{spec}: opset {opset} cannot be converted to {TARGET_OPSET}: {first_line(e)}",
            hint="Export the model again with a newer opset.",
        ) from e
    # The converter writes constants as nodes again, and forgets how names are spelled outside.
    lift_constants(newer)
    return newer


def drop_weight_inputs(model: onnx.ModelProto) -> None:
    """Take weights off the list of inputs, where old files name them too."""
    kept = graph_inputs(model)
    if len(kept) != len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(kept)


def lift_constants(model: onnx.ModelProto) -> None:
    """Make initializers of the Constant nodes of the outermost graph.

    Quantizers and whoever counts weights look for initializers only.
    """
    graph = model.graph
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        tensor = _constant(node)
        if tensor is None or node.output[0] in outputs:
            kept.append(node)
            continue
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    if len(kept) != len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the real inputs: old files list their weights among them."""
    weights = {i.name for i in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in weights]


def graphs(graph: onnx.GraphProto, depth: int = 0) -> Iterator[onnx.GraphProto]:
    """Yield ``graph`` and all graphs inside its nodes.

    Raises:
        SourceError: They are nested too deep.
    """
    if depth > _MAX_DEPTH:
        raise SourceError(f"graphs are nested more than {_MAX_DEPTH} deep")
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from graphs(inner, depth + 1)


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield all nodes of ``graph``, those of inner graphs too."""
    for inner in graphs(graph):
        yield from inner.node


def constants(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return all stored tensors: initializers, and values of Constant nodes."""
    found = [i for graph in graphs(model.graph) for i in graph.initializer]
    found += [
        attribute.t for node in nodes(model.graph) if node.op_type == "Constant"
        for attribute in node.attribute if attribute.name == "value"
    ]  # fmt: skip
    return found


def external_files(tensors: Iterable[onnx.TensorProto], folder: Path) -> list[Path]:
    """Return the files beside the model that hold its weights."""
    names = {
        entry.value for tensor in tensors for entry in tensor.external_data
        if entry.key == "location"
    }  # fmt: skip
    return [folder / name for name in sorted(names)]


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant" or node.domain not in {"", "ai.onnx"} or not node.attribute:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(attribute.t)
        return tensor
    values: dict[str, tuple[str, type[np.generic]]] = {
        "value_float": ("f", np.float32), "value_floats": ("floats", np.float32),
        "value_int": ("i", np.int64), "value_ints": ("ints", np.int64),
    }  # fmt: skip
    if attribute.name not in values:
        return None
    field, dtype = values[attribute.name]
    return numpy_helper.from_array(np.asarray(getattr(attribute, field), dtype))


def _check_domains(model: onnx.ModelProto, path: Path) -> None:
    known = _DOMAINS | {function.domain for function in model.functions}
    foreign = sorted(
        {f"{n.domain}:{n.op_type}" for n in nodes(model.graph) if n.domain not in known}
    )
    if foreign:
        more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
        raise SourceError(
            f"{path}: uses operators of a foreign domain, which no runtime here has: "
            f"{', '.join(foreign[:_NAMED])}{more}",
            hint="Export the model with standard ONNX operators.",
        )
    opset = opset_of(model)
    newest = onnx.defs.onnx_opset_version()
    if 0 < opset < MIN_OPSET:
        raise SourceError(
            f"{path}: is written in opset {opset}; {MIN_OPSET} to {newest} are read",
            hint="Export the model again with a newer opset, such as 17.",
        )
    if opset > newest:
        raise SourceError(
            f"{path}: is written in opset {opset}; onnx {onnx.__version__} knows up to {newest}",
            hint="Upgrade onnx, or export the model with an older opset, such as 17.",
        )


def _check_external(model: onnx.ModelProto, path: Path) -> None:
    folder = path.parent.resolve()
    total = path.stat().st_size
    for file in external_files(constants(model), path.parent):
        name = file.relative_to(path.parent) if file.is_relative_to(path.parent) else file
        if not file.resolve().is_relative_to(folder) or file.is_symlink():
            raise SourceError(
                f"{path}: keeps weights in {name}, outside its folder",
                hint="Put the weights beside the model: onnx.save_model with a plain file name.",
            )
        if not file.is_file():
            raise SourceError(
                f"{path}: keeps weights in {name}, which is missing",
                hint="Copy it beside the model; it was written with it.",
            )
        total += file.stat().st_size
    if total > MAX_MODEL_BYTES:
        raise SourceError(
            f"{path}: has {total} bytes with its weights; at most {MAX_MODEL_BYTES} are allowed"
        )
