"""From a source model to a clean float ONNX file. Heavy: imported in worker processes only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from operator import attrgetter
from pathlib import Path
from typing import Any

import onnx
import onnxslim
from onnx import shape_inference

from aid_edge.errors import ConversionError, UnsupportedModelError
from aid_edge.isolate import progress
from aid_edge.model import SourceModel
from aid_edge.sources.opening import is_on_tensorflow, load_module, request_of, source_module
from aid_edge.sources.operators import applies
from device_agent.contract.profile import HardwareProfile, OpRule

_IR_VERSION_MAX = 10
PRODUCER = "aid-edge"


def export(model: SourceModel, profile: HardwareProfile, opset: int, to: Path) -> None:
    """Write ``model`` as a float ONNX file without traces of the machine it was made on.

    The batch is dynamic where the profile permits varying shapes and the source has it; else 1.

    Raises:
        ConversionError: The exporter failed.
        UnsupportedModelError: The graph holds an operator that the profile refuses.
    """
    batch = 1 if profile.shapes.static or not model.has_dynamic_batch else -1
    progress(0.1, "export to ONNX")
    if model.framework == "onnx":
        graph = source_module("onnx").load(request_of(model))
        if batch == 1:
            _fix_batch(graph)
    elif is_on_tensorflow(model.framework):
        graph = _export_on_tensorflow(model, opset, batch, to)
    else:
        graph = _export_module(model, opset, batch, to)
    progress(0.5, "simplify")
    try:
        graph = onnxslim.slim(graph)
    except Exception as e:  # onnxslim raises whatever its passes raise
        raise ConversionError(f"{model.spec}: simplifying the ONNX graph failed: {e}") from e
    strip(graph)
    _check_rules(graph, profile)
    onnx.save(graph, str(to))


def tools(model: SourceModel) -> dict[str, str]:
    """Return the versions of what exports ``model``."""
    if is_on_tensorflow(model.framework):
        from converters import keras_tensorflow  # noqa: PLC0415 -- only there with its extra

        return keras_tensorflow.tools("tf2onnx", "onnx", "onnxslim")
    names = {
        "torch": ["torch", "onnxscript"],
        "keras": ["keras", "torch", "onnxscript"],
        "onnx": [],
    }
    return {n: metadata.version(n) for n in [*names[model.framework], "onnx", "onnxslim"]}


def strip(model: onnx.ModelProto) -> None:
    """Remove all metadata from ``model`` in place.

    The PyTorch exporter writes the source path, line and code of every node into metadata; what
    is signed and shipped must not tell of the machine it was made on.
    """
    del model.metadata_props[:]
    model.doc_string = ""
    model.producer_name = PRODUCER
    model.producer_version = ""
    for graph in graphs(model.graph):
        del graph.metadata_props[:]
        graph.doc_string = ""
        for part in (
            *graph.node,
            *graph.initializer,
            *graph.value_info,
            *graph.input,
            *graph.output,
        ):
            del part.metadata_props[:]
            part.doc_string = ""
    used = {node.domain for graph in graphs(model.graph) for node in graph.node}
    used |= {function.domain for function in model.functions} | {""}
    # The optimizers declare every domain they know; a device refuses those it does not know.
    imports = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    for function in model.functions:
        del function.metadata_props[:]
        function.doc_string = ""
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield ``graph`` and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from graphs(inner)


def matching_nodes(model: onnx.ModelProto, rules: list[OpRule]) -> list[tuple[str, str, OpRule]]:
    """Return node name, operator and rule for every node that a rule is about."""
    inferred = shape_inference.infer_shapes(model).graph
    ranks = {i.name: len(i.dims) for i in inferred.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        if value.type.tensor_type.HasField("shape"):
            ranks[value.name] = len(value.type.tensor_type.shape.dim)
    return [
        (node.name, node.op_type, rule)
        for graph in graphs(model.graph)
        for node in graph.node
        for rule in rules
        if applies(
            rule,
            node.op_type,
            max((ranks.get(n, 0) for n in (*node.input, *node.output)), default=0),
        )
    ]


def _check_rules(model: onnx.ModelProto, profile: HardwareProfile) -> None:
    rules = [rule for rule in profile.numerics.op_rules if rule.placement == "refuse"]
    if found := matching_nodes(model, rules):
        raise UnsupportedModelError(
            f"the exported model cannot run on {profile.id}",
            [f"operator {op} ({name}) is refused: {rule.reason}" for name, op, rule in found[:10]],
            hint="Choose another profile, or change the model where it is named.",
        )


def _export_module(model: SourceModel, opset: int, batch: int, to: Path) -> onnx.ModelProto:
    import torch  # noqa: PLC0415 -- ONNX sources do without

    from aid_edge.sources import torch_source  # noqa: PLC0415

    module = torch_source.Flat(load_module(model)).eval()
    # Two in the example: the exporter takes a batch of one for a constant.
    examples = torch_source.example_inputs(request_of(model), batch=2 if batch == -1 else 1)
    shapes: Any = None
    if batch == -1:
        shapes = (tuple({0: torch.export.Dim("batch")} for _ in examples),)
    try:
        torch.onnx.export(
            module,
            examples,
            str(to),
            dynamo=True,
            input_names=[_outer("input", i) for i in range(len(model.inputs))],
            output_names=[_outer("output", i) for i in range(len(model.outputs))],
            opset_version=opset,
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
    except Exception as e:  # the exporter raises whatever its many parts raise
        if (operator := _missing_operator(e)) is not None:
            raise UnsupportedModelError(
                f"{model.spec} cannot be written as ONNX",
                [f"the exporter has no counterpart of operator {operator}"],
                hint="Take a runtime that needs no ONNX, such as litert or executorch, or write "
                "the model without it.",
            ) from e
        raise ConversionError(
            f"{model.spec}: the PyTorch exporter to ONNX failed: {_first_line(e)}",
            hint="`aid-edge inspect` lists the operators; the log says which one failed.",
        ) from e
    found = onnx.load(str(to))
    wanted = {_outer("input", i): t.name for i, t in enumerate(model.inputs)}
    wanted |= {_outer("output", i): t.name for i, t in enumerate(model.outputs)}
    # The exporter does not see that an inner tensor, such as `embedding`, has the same name.
    inner = {name: f"{name}__inner" for name in wanted.values()}
    _rename(found, inner | wanted)
    return _with_old_format(found)


def _outer(side: str, index: int) -> str:
    """Return a name for an input or output that no inner tensor has."""
    return f"__aid_edge_{side}_{index}"


def _export_on_tensorflow(model: SourceModel, opset: int, batch: int, to: Path) -> onnx.ModelProto:
    from converters import keras_tensorflow  # noqa: PLC0415 -- only there with its extra

    keras_tensorflow.to_onnx(model, opset, batch, to)
    found = onnx.load(str(to))
    for side in (found.graph.input, found.graph.output):
        side.sort(key=attrgetter("name"))
        for value in side:
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                # It gives every open dimension a name of its own.
                if dim.dim_param:
                    dim.Clear()
                    if axis == 0:
                        dim.dim_param = "batch"
    names = {keras_tensorflow.input_name(i): t.name for i, t in enumerate(model.inputs)}
    names |= {keras_tensorflow.output_name(i): t.name for i, t in enumerate(model.outputs)}
    _rename(found, names)
    return _with_old_format(found)


def _rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    for graph in graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.name = names.get(value.name, value.name)
        for node in graph.node:
            for side in (node.input, node.output):
                side[:] = [names.get(name, name) for name in side]


def _with_old_format(model: onnx.ModelProto) -> onnx.ModelProto:
    # Old devices refuse a newer file format even where they know every operator in it.
    needed = onnx.helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    model.ir_version = min(max(needed, 8), _IR_VERSION_MAX)
    return model


def _fix_batch(model: onnx.ModelProto) -> None:
    weights = {i.name for i in model.graph.initializer}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in weights and dims and not dims[0].dim_value:
            dims[0].dim_value = 1
    # Shapes that were inferred for another batch would contradict the new one.
    del model.graph.value_info[:]
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.dim_value:
                dim.Clear()


def _missing_operator(error: BaseException | None) -> str | None:
    """Return the operator that PyTorch's exporter does not know; it is named in the last cause."""
    while error is not None:
        if found := re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", str(error)):
            return found[1]
        error = error.__cause__
    return None


def _first_line(error: BaseException) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
