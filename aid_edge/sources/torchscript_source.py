"""TorchScript archives: what ``torch.jit.save`` wrote. Imported only in worker processes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aid_edge.errors import SourceError, first_line
from aid_edge.sources.inspection import (
    Inspection,
    OperatorCount,
    SourceRequest,
    check_file,
    digest_of_files,
)
from aid_edge.sources.recognition import archive_kind, check_whole
from aid_edge.sources.torch_source import (
    Flat,
    check_declared,
    example_inputs,
    output_infos,
    run_flat,
)
from device_agent.contract.tensors import TensorInfo

_MAX_DEPTH = 32
# They reach outside the model: to files and to Python.
_REFUSED = frozenset({"aten::from_file", "aten::save", "prim::PythonOp"})
_DEPTHWISE = frozenset({"aten::conv2d", "aten::_convolution"})


def load(request: SourceRequest) -> torch.jit.ScriptModule:
    """Return the module in evaluation mode, on the CPU.

    Raises:
        SourceError: Not a TorchScript archive, cut short, or it reaches outside of itself.
    """
    path = Path(request.spec)
    check_file(path, "TorchScript model")
    if archive_kind(path) != "torchscript":
        raise SourceError(
            f"{path}: is not a TorchScript archive, or is cut short",
            hint="Compare its size and checksum with the original.",
        )
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            # torch says that TorchScript is deprecated; people have their files all the same.
            warnings.simplefilter("ignore")
            module = torch.jit.load(str(path), map_location="cpu")
            module.eval()
    except Exception as e:  # torch raises whatever its parser meets
        raise SourceError(
            f"{path}: torch {torch.__version__} cannot open the TorchScript archive: "
            f"{first_line(e)}",
            hint="It may be cut short, or need operators of another package.",
        ) from e
    for node in _nodes(module, path):
        if node.kind() in _REFUSED:
            raise SourceError(
                f"{path}: calls {node.kind()}, which reaches outside the model",
                hint="Write the model without it and save it again.",
            )
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def inspect(request: SourceRequest) -> Inspection:
    """Return the facts about the model that ``request`` names.

    Raises:
        SourceError: It cannot be loaded or run, takes other inputs, or keeps a state inside.
    """
    path = Path(request.spec)
    check_file(path, "TorchScript model")
    check_whole(path)
    module = load(request)
    inputs = declared_inputs(request, module)
    flat = Flat(module)
    outputs = output_infos(flat, request, module)
    _check_stateless(flat, request)
    count = OperatorCount()
    constants = 0
    for node in _nodes(module, path):
        name = _name(node)
        if name is not None:
            count.add(name, _rank(node), next((o.debugName() for o in node.outputs()), ""))
        elif node.kind() == "prim::Constant" and node.hasAttribute("value"):
            constants += node.t("value").numel() if node.kindOf("value") == "t" else 0
    # A frozen module has constants where others have parameters.
    parameters = sum(p.numel() for p in module.parameters()) + constants
    digest = digest_of_files("torchscript", [path])
    return Inspection(inputs, outputs, count.uses, parameters, digest)


def run(
    request: SourceRequest, inputs: Mapping[str, Any], batches: Sequence[slice | int]
) -> Iterator[list[np.ndarray[Any, Any]]]:
    """Yield the outputs of the model for each slice of ``inputs``.

    Raises:
        SourceError: The model cannot be loaded or fails.
    """
    module = load(request)
    names = [i.name for i in declared_inputs(request, module)]
    flat = Flat(module)
    for batch in batches:
        tensors = tuple(torch.from_numpy(np.array(inputs[n][batch])) for n in names)
        yield [t.numpy() for t in run_flat(flat, tensors, request.spec)]


def declared_inputs(
    request: SourceRequest, module: torch.jit.ScriptModule
) -> tuple[TensorInfo, ...]:
    """Return the inputs as they are declared: the file knows only their names.

    Raises:
        SourceError: Nobody said them, or they are not those that ``forward`` takes.
    """
    arguments = list(module.forward.schema.arguments)[1:]
    needed = [a for a in arguments if not a.has_default_value()]
    other = next((a for a in needed if str(a.type) not in {"Tensor", "Optional[Tensor]"}), None)
    if other is not None:
        raise SourceError(
            f"{request.spec}: forward() takes {other.name}: {other.type}, which is no tensor",
            hint="Wrap it in a module whose forward() takes tensors only, and save that.",
        )
    names = [a.name for a in needed]
    if not request.inputs:
        raise SourceError(
            f"{request.spec}: a TorchScript module does not say the sizes of what it takes",
            hint=f"It takes {', '.join(names)}: say --input {names[0] if names else 'x'}=SHAPE, "
            "or [[inputs]] of a model card.",
        )
    if not len(names) <= len(request.inputs) <= len(arguments):
        raise SourceError(
            f"{request.spec}: forward() takes {len(names)} inputs ({', '.join(names)}), "
            f"{len(request.inputs)} are declared"
        )
    inputs = tuple(TensorInfo(i.name, i.datatype or "FP32", tuple(i.shape)) for i in request.inputs)
    check_declared(inputs, request.spec)
    return inputs


def _check_stateless(flat: Flat, request: SourceRequest) -> None:
    examples = example_inputs(request, batch=1)
    first = [t.clone() for t in run_flat(flat, examples, request.spec)]
    again = run_flat(flat, examples, request.spec)
    if any(
        not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, again, strict=True)
    ):
        raise SourceError(
            f"{request.spec}: gives another answer the second time: it keeps a state inside, or "
            "draws random numbers",
            hint="Make the state an input and an output of forward(), and save it again.",
        )


def _nodes(module: torch.jit.ScriptModule, path: Path) -> Iterator[Any]:
    yield from _walk(module.inlined_graph, path, 0)


def _walk(block: Any, path: Path, depth: int) -> Iterator[Any]:
    if depth > _MAX_DEPTH:
        raise SourceError(f"{path}: blocks are nested more than {_MAX_DEPTH} deep")
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _walk(inner, path, depth + 1)


def _name(node: Any) -> str | None:
    """Return the operator's ATen name; None for what only builds lists and constants."""
    kind = str(node.kind())
    if kind in {"prim::If", "prim::Loop"}:
        return kind.partition("::")[2]
    if not kind.startswith("aten::"):
        return None
    if kind in _DEPTHWISE and _groups(node) > 1:
        return "depthwise_conv2d"
    name = "convolution" if kind == "aten::_convolution" else kind.partition("::")[2]
    return name.rstrip("_")


def _groups(node: Any) -> int:
    # conv2d(input, weight, bias, stride, padding, dilation, groups); _convolution(..., transposed,
    # output_padding, groups, ...)
    position = 6 if node.kind() == "aten::conv2d" else 8
    value = list(node.inputs())[position].toIValue()
    return value if isinstance(value, int) else 1


def _rank(node: Any) -> int:
    ranks = [
        value.type().dim() or 0
        for value in (*node.inputs(), *node.outputs())
        if value.type().kind() == "TensorType"
    ]
    return max(ranks, default=0)
