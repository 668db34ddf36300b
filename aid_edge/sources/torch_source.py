"""PyTorch models: a factory in a Python file or module with its weights, or a ``.pt2`` file.

Imported only in worker processes: it imports torch, and it runs the code that the user named.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch.utils import _pytree as pytree

from aid_edge.errors import SourceError, first_line
from aid_edge.model import OperatorUse
from aid_edge.sources import torch_archive
from aid_edge.sources.inputs import fitted
from aid_edge.sources.inspection import (
    NUMPY_NAMES,
    Inspection,
    OperatorCount,
    SourceRequest,
    check_file,
    digest_of_files,
    named,
)
from aid_edge.sources.recognition import ARCHIVE_SUFFIX, check_whole
from device_agent.contract.tensors import TensorInfo

_NAMED_KEYS = 5
_WRAPPERS = ("state_dict", "model_state_dict", "model")


class Flat(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A module whose outputs are always a tuple of tensors, whatever structure they had."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the inner module's output tensors in the order of its structure."""
        return tuple(
            leaf for leaf in pytree.tree_leaves(self.inner(*inputs)) if torch.is_tensor(leaf)
        )


def load(request: SourceRequest) -> torch.nn.Module:
    """Return the module in evaluation mode, with its weights, on the CPU.

    Raises:
        SourceError: The factory is missing, fails or gives no module, or the weights do not fit.
    """
    torch.manual_seed(0)
    archive = _archive(request)
    module = torch_archive.load(archive) if archive else _call_factory(request.spec)
    if request.weights is not None:
        _fit(module, _read_weights(request.weights), request.weights)
    module = module.cpu().eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def inspect(request: SourceRequest) -> Inspection:
    """Return the facts about the model that ``request`` names.

    Raises:
        SourceError: It cannot be loaded, run or exported.
    """
    archive = _archive(request)
    for file in (archive, request.weights):
        if file is not None:
            check_file(file, "model" if file is archive else "weights file")
            check_whole(file)
    module = load(request)
    flat = Flat(module)
    examples = example_inputs(request, batch=1)
    state = _state_digest(module)
    outputs = output_infos(flat, request, module)
    if _state_digest(module) != state:
        raise SourceError(
            f"{request.spec}: changes its own weights or buffers when it runs",
            hint="Make its state an input and an output of forward().",
        )
    if archive is None and request.weights is None and _state_digest(load(request)) != state:
        raise SourceError(
            f"{request.spec}: gives other weights each time it is called",
            hint="Give the weights with --weights, or let the factory seed what it draws from.",
        )
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    try:
        program = torch.export.export(flat, examples)
    except Exception as e:  # the exporter raises whatever its many parts raise
        raise SourceError(
            f"{request.spec}: torch.export cannot follow the model: {first_line(e)}",
            hint="Control flow that depends on values must go; see the torch.export documentation.",
        ) from e
    inputs = declared_inputs(request)
    if archive is not None:
        digest = digest_of_files("torch", [archive])
    else:
        code = [p for p in (_code_path(request.spec), request.weights) if p is not None]
        # The architecture may come from packages that the file imports: so the graph is hashed too.
        graph = program.graph_module.code.encode()
        digest = digest_of_files("torch", code, graph, state)
    parameters = sum(p.numel() for p in module.parameters())
    return Inspection(inputs, outputs, operator_uses(program), parameters, digest)


def operator_uses(program: torch.export.ExportedProgram) -> tuple[OperatorUse, ...]:
    """Return the ATen operators of an exported program."""
    count = OperatorCount()
    for node in program.graph.nodes:
        if node.op == "call_function":
            count.add(_operator_name(node), _rank(node), node.name)
    return count.uses


def run(
    request: SourceRequest, inputs: Mapping[str, Any], batches: Sequence[slice | int]
) -> Iterator[list[np.ndarray[Any, Any]]]:
    """Yield the outputs of the model for each slice of ``inputs``.

    Raises:
        SourceError: The model cannot be loaded or fails.
    """
    flat = Flat(load(request))
    names = [i.name for i in declared_inputs(request)]
    for batch in batches:
        tensors = tuple(torch.from_numpy(np.array(inputs[n][batch])) for n in names)
        yield [t.numpy() for t in run_flat(flat, tensors, request.spec)]


def declared_inputs(request: SourceRequest) -> tuple[TensorInfo, ...]:
    """Return the inputs of a PyTorch model: a module's only its author can say.

    Raises:
        SourceError: Nobody said them, they are not the file's, or more than a batch varies.
    """
    archive = _archive(request)
    if archive is not None:
        inputs = fitted(request.inputs, torch_archive.declared(archive), request.spec)
    else:
        inputs = tuple(
            TensorInfo(i.name, i.datatype or "FP32", tuple(i.shape)) for i in request.inputs
        )
    check_declared(inputs, request.spec)
    return inputs


def check_declared(inputs: Sequence[TensorInfo], spec: str) -> None:
    """Return if a PyTorch model with these inputs can be exported.

    Raises:
        SourceError: There are none, or one varies in more than its batch.
    """
    if not inputs:
        raise SourceError(
            f"{spec}: a PyTorch module does not say what it takes",
            hint="Say it with --input NAME=SHAPE, or under [[inputs]] of a model card "
            "(model.toml beside the weights).",
        )
    for tensor in inputs:
        if -1 in tensor.shape[1:] or 0 in tensor.shape:
            raise SourceError(
                f"{spec}: input {tensor.name} has shape {list(tensor.shape)}; "
                "only the first dimension may vary (-1), the others are at least 1"
            )


def example_inputs(request: SourceRequest, *, batch: int) -> tuple[torch.Tensor, ...]:
    """Return tensors of the declared types and shapes; a varying batch becomes ``batch``."""
    generator = np.random.default_rng(0)
    examples = []
    for tensor in declared_inputs(request):
        shape = tuple(batch if size == -1 else size for size in tensor.shape)
        dtype = np.dtype(NUMPY_NAMES[tensor.datatype])
        # Zeros are valid where integers index something, such as an embedding.
        floats = dtype.kind == "f"
        values = generator.standard_normal(shape) if floats else np.zeros(shape)
        examples.append(torch.from_numpy(np.asarray(values, dtype)))
    return tuple(examples)


def output_infos(
    flat: Flat, request: SourceRequest, module: torch.nn.Module
) -> tuple[TensorInfo, ...]:
    """Return the outputs of ``module``, found by running it at two batch sizes.

    Raises:
        SourceError: It fails, or gives no tensor.
    """
    raw = _run_structured(module, example_inputs(request, batch=1), request.spec)
    one = [t for t in pytree.tree_leaves(raw) if torch.is_tensor(t)]
    if not one:
        raise SourceError(f"{request.spec}: the model returns {type(raw).__name__}, no tensor")
    two = list(run_flat(flat, example_inputs(request, batch=2), request.spec))
    keys = tuple(map(str, raw)) if isinstance(raw, dict) and len(raw) == len(one) else ()
    names = named(request.output_names or keys, len(one), request.spec)
    return tuple(
        TensorInfo(
            name,
            torch_archive.datatype_of(a, request.spec),
            tuple(x if x == y else -1 for x, y in zip(a.shape, b.shape, strict=True)),
        )
        for name, a, b in zip(names, one, two, strict=True)
    )


def run_flat(flat: Flat, tensors: tuple[torch.Tensor, ...], spec: str) -> tuple[torch.Tensor, ...]:
    """Return the outputs of ``flat`` for one feed.

    Raises:
        SourceError: It fails.
    """
    outputs: tuple[torch.Tensor, ...] = _run_structured(flat, tensors, spec)
    return outputs


def _run_structured(module: torch.nn.Module, tensors: tuple[torch.Tensor, ...], spec: str) -> Any:
    try:
        with torch.inference_mode():
            return module(*tensors)
    except Exception as e:  # the user's forward() may raise anything
        shapes = ", ".join(str(list(t.shape)) for t in tensors)
        raise SourceError(f"{spec}: the model fails on inputs {shapes}: {first_line(e)}") from e


def _operator_name(node: torch.fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return getattr(node.target, "__name__", str(node.target))
    name = str(schema.name).partition("::")[2]
    if name == "conv2d" and _groups(node) > 1:
        return "depthwise_conv2d"
    return name.removesuffix("_")


def _groups(node: torch.fx.Node) -> int:
    position = 6  # conv2d(input, weight, bias, stride, padding, dilation, groups)
    found = node.args[position] if len(node.args) > position else node.kwargs.get("groups", 1)
    return found if isinstance(found, int) else 1


def _rank(node: torch.fx.Node) -> int:
    values = [node.meta.get("val"), *(n.meta.get("val") for n in node.all_input_nodes)]
    return max((v.dim() for v in pytree.tree_leaves(values) if torch.is_tensor(v)), default=0)


def _state_digest(module: torch.nn.Module) -> bytes:
    hasher = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        hasher.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        hasher.update(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().data)
    return hasher.digest()


def _archive(request: SourceRequest) -> Path | None:
    path = Path(request.spec)
    return path if path.is_file() and path.suffix.lower() == ARCHIVE_SUFFIX else None


# --- code ------------------------------------------------------------------------------------


def _code_path(spec: str) -> Path | None:
    where = spec.rpartition(":")[0]
    if where.endswith(".py"):
        return Path(where)
    found = importlib.util.find_spec(where)
    return Path(found.origin) if found is not None and found.origin else None


def _call_factory(spec: str) -> torch.nn.Module:
    where, _, name = spec.rpartition(":")
    code = _import_code(where, spec)
    factory = getattr(code, name, None)
    if not callable(factory):
        choices = [
            found
            for found, value in vars(code).items()
            if callable(value) and getattr(value, "__module__", "") == code.__name__
        ]
        raise SourceError(
            f"{spec}: {where} has no function or class {name!r}",
            hint=f"It has: {', '.join(choices) or 'none'}.",
        )
    try:
        module = factory()
    except Exception as e:  # the user's factory may raise anything
        raise SourceError(f"{spec}: {name}() raised {type(e).__name__}: {first_line(e)}") from e
    if not isinstance(module, torch.nn.Module):
        raise SourceError(f"{spec}: {name}() gave {type(module).__name__}, not a torch.nn.Module")
    return module


def _import_file(path: Path) -> ModuleType:
    """Return the module in the file at ``path``, whatever else goes by the same name."""
    name = path.stem
    if (known := sys.modules.get(name)) is not None:
        if getattr(known, "__file__", None) == str(path):
            return known
        name = f"{name} of {path.parent}"
        if name in sys.modules:
            return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    # As an import does: dataclasses and pickles look their module up.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_code(where: str, spec: str) -> ModuleType:
    if where.endswith(".py"):
        path = Path(where).resolve()
        check_file(path, "model code")
        # As for a script: what lies beside the file can be imported by it.
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
    try:
        return _import_file(path) if where.endswith(".py") else importlib.import_module(where)
    except ModuleNotFoundError as e:
        hint = "Install it, or name the file: path/to/model.py:factory."
        raise SourceError(f"{spec}: there is no module {e.name!r}", hint=hint) from e
    except Exception as e:  # the user's code may raise anything
        raise SourceError(
            f"{spec}: importing {where} raised {type(e).__name__}: {first_line(e)}"
        ) from e


# --- weights ---------------------------------------------------------------------------------


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    check_file(path, "weights file")
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise _unpickling_error(path, e) from e
    except Exception as e:  # the unpickler and its zip reader raise whatever damage leads to
        raise SourceError(
            f"{path}: is not a whole weights file: {first_line(e)}",
            hint="It may be cut short; compare its size and checksum with the original.",
        ) from e
    for key in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise SourceError(
            f"{path}: holds {type(state).__name__}, not a state dict of tensors",
            hint="Save with torch.save(model.state_dict(), path) or as safetensors.",
        )
    return {str(k): v for k, v in state.items()}


def _unpickling_error(path: Path, error: pickle.UnpicklingError) -> SourceError:
    text = str(error)
    if "Unsupported global" in text or "Unsupported class" in text or "weights_only" in text:
        return SourceError(
            f"{path}: holds pickled objects other than tensors, which could run code when loaded",
            cause=first_line(error),
            hint="Save with torch.save(model.state_dict(), path) or as safetensors.",
        )
    return SourceError(f"{path}: is not a weights file: {first_line(error)}")


def _fit(module: torch.nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    wanted = module.state_dict()
    if not wanted.keys() & state.keys():
        # DataParallel saves every key under "module.".
        state = {k.removeprefix("module."): v for k, v in state.items()}
    # Old checkpoints lack BatchNorm's batch counter, which inference does not use.
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    unknown = [k for k in state if k not in wanted]
    wrong = [
        f"{k} is {list(state[k].shape)} in the file, {list(wanted[k].shape)} in the model"
        for k in wanted
        if k in state and state[k].shape != wanted[k].shape
    ]
    problems = [
        f"{what}: {', '.join(keys[:_NAMED_KEYS])}"
        + (f" and {len(keys) - _NAMED_KEYS} more" if len(keys) > _NAMED_KEYS else "")
        for what, keys in (
            ("missing in the file", missing),
            ("unknown to the model", unknown),
            ("of another shape", wrong),
        )
        if keys
    ]
    if problems:
        raise SourceError(f"{path}: the weights do not fit the model", cause="; ".join(problems))
    module.load_state_dict(state, strict=False)
