"""``.pt2`` files (``torch.export``): checked before they are opened, then a module like any other.

Imported only in worker processes.

``torch.export.load`` trusts its file: it unpickles tensors and constants that are marked so,
evaluates expressions with sympy, resolves operators to anything below ``torch`` (``torch.os``
among it) and executes guards. So a file may hold only operators, plain tensors and plain
expressions; guards are not made (``check_guards=False``).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from aid_edge.errors import ConversionError, SourceError, first_line
from aid_edge.model import MAX_MODEL_BYTES
from aid_edge.sources.inspection import NUMPY_NAMES, check_file
from aid_edge.sources.recognition import archive_kind
from device_agent.contract.tensors import TensorInfo

_MAX_JSON_BYTES = 256 * 2**20
_MAX_JSON_DEPTH = 64
_TARGET = re.compile(
    r"torch\.ops\.(aten|prims|prim|quantized_decomposed|torchao)"
    r"\.(?!from_file)[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?\Z"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|associative_scan|map_impl"
    r"|wrap_with_set_grad_enabled|wrap_with_autocast)\Z"
    r"|torch\.(sym|_sym)_[a-z]+\Z|math\.[a-z0-9]+\Z"
    # Not all of it: attrgetter, methodcaller and call reach everything.
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|lt|le|gt|ge|eq|ne|and_|or_"
    r"|not_|getitem|is_|is_not)\Z"
)
# What torch prints of sizes: numbers, symbols, and the functions of torch.utils._sympy.
_EXPRESSION = re.compile(r"[A-Za-z0-9_+\-*/(),. <>=&|~%]*\Z")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# As sympy.srepr prints them.
_NAMED = re.compile(r"Symbol\('([a-z]+[0-9]+)'(, [a-z_]+=(True|False))*\)")
_SYMBOL = re.compile(r"(s|u|z|zf|zuf|f)[0-9]+\Z")
_FUNCTIONS = frozenset(
    word
    for line in """
    Add Mul Pow Rational Float Boolean BooleanTrue BooleanFalse Integer Abs true false True False
    FloorDiv CleanDiv CeilDiv PythonMod Mod Max Min ModularIndexing Where Identity IntTrueDiv
    FloatTrueDiv TruncToInt TruncToFloat CeilToInt FloorToInt RoundToInt RoundDecimal ToFloat
    PowByNatural FloatPow LShift RShift Eq Ne Lt Le Gt Ge And Or Not oo int_oo zoo nan floor ceiling
    OpaqueUnaryFn_sqrt OpaqueUnaryFn_log OpaqueUnaryFn_exp
    """.splitlines()
    for word in line.split()
)


class Exported(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """The module of an exported program; always as it was exported, which is for evaluation."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self.program = program.module(check_guards=False)
        for module in self.modules():
            module.training = False

    def train(self, mode: bool = True) -> Exported:
        """Do nothing: the graph has one mode, and torch refuses to change it."""
        del mode
        return self

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Return what the program returns."""
        return self.program(*inputs)


def check(path: Path) -> None:
    """Return if the file at ``path`` can be opened without running anything of it.

    Raises:
        SourceError: It is no archive of torch.export, too large, or holds pickles, compiled code,
            or operators and expressions that are none.
    """
    check_file(path, "PyTorch archive")
    if archive_kind(path) != "pt2":
        raise SourceError(
            f"{path}: is not a torch.export archive, or is cut short",
            hint="Write it with torch.export.save(torch.export.export(model, inputs), path).",
        )
    with zipfile.ZipFile(path) as archive:
        _check_sizes(archive, path)
        models = 0
        for entry in archive.infolist():
            inside = entry.filename.partition("/")[2]
            if inside.startswith("data/aotinductor/") or inside.endswith((".so", ".cubin")):
                raise SourceError(
                    f"{path}: holds compiled code ({inside}), which is not run",
                    hint="Save the exported program itself: torch.export.save(program, path).",
                )
            if "custom_obj" in inside or "script_obj" in inside:
                raise _pickled(path, inside)
            if inside.endswith(".json"):
                for table in _tables(_read_json(archive, entry, path), path):
                    _check_table(table, path)
                models += inside.startswith("models/")
            elif inside.startswith("data/sample_inputs/"):
                _check_sample_inputs(archive.read(entry), path)
        if not models:
            raise SourceError(f"{path}: holds no program (models/*.json)")


def load_program(path: Path) -> torch.export.ExportedProgram:
    """Return the exported program in the file at ``path``, on the CPU; not to be changed.

    Raises:
        SourceError: It was refused by :func:`check`, or torch cannot read it.
    """
    check_file(path, "PyTorch archive")
    state = path.stat()
    return _opened(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=1)
def _opened(path: Path, *_: int) -> torch.export.ExportedProgram:
    """Return it; asked for again and again, and opening takes seconds."""
    check(path)
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except Exception as e:  # torch raises whatever its parser meets
        raise SourceError(
            f"{path}: torch {torch.__version__} cannot open the archive: {first_line(e)}",
            hint="It may be cut short, or written by another version of torch: export it again.",
        ) from e


def load(path: Path) -> torch.nn.Module:
    """Return the program in the file at ``path`` as a module in evaluation mode.

    Raises:
        SourceError: As :func:`load_program`.
    """
    return Exported(load_program(path))


def declared(path: Path) -> tuple[TensorInfo, ...]:
    """Return the inputs that the program in the file at ``path`` declares.

    Raises:
        SourceError: As :func:`load_program`, or an input is no tensor.
    """
    program = load_program(path)
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    infos = []
    for name in program.graph_signature.user_inputs:
        value = values.get(name)
        if not isinstance(value, torch.Tensor):
            raise SourceError(
                f"{path}: input {name!r} is no tensor", hint="Export it with tensors as inputs."
            )
        shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
        infos.append(TensorInfo(str(name), datatype_of(value, str(path)), shape))
    if not infos:
        raise SourceError(f"{path}: the program takes no inputs")
    return tuple(infos)


def datatype_of(tensor: torch.Tensor, spec: str) -> Any:
    """Return the element type of ``tensor`` as the wire names it.

    Raises:
        SourceError: The wire does not know it.
    """
    name = str(tensor.dtype).removeprefix("torch.")
    found = next((d for d, n in NUMPY_NAMES.items() if n == name), None)
    if found is None:
        raise SourceError(f"{spec}: a tensor is {name}, which has no type on the wire")
    return found


def save(module: torch.nn.Module, inputs: Sequence[TensorInfo], to: Path) -> None:
    """Write ``module`` as a ``.pt2`` file whose batch may vary where that of ``inputs`` does.

    Args:
        module: In evaluation mode; it gives a tensor or a structure of tensors.
        inputs: What it takes, in order.
        to: File to write.

    Raises:
        ConversionError: torch.export cannot follow the module, or not with a varying batch.
    """
    write(exported(module, inputs), to)


def write(program: torch.export.ExportedProgram, to: Path) -> None:
    """Write ``program`` as a ``.pt2`` file, without traces of the machine it was made on.

    Raises:
        ConversionError: torch.export cannot save it.
    """
    # The example inputs are nobody's business, and the only pickle in the file.
    program.example_inputs = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(_without_traces(program), to)
    except Exception as e:  # the serializer raises whatever it meets
        raise ConversionError(f"{to}: torch.export cannot save the model: {first_line(e)}") from e


def exported(module: torch.nn.Module, inputs: Sequence[TensorInfo]) -> torch.export.ExportedProgram:
    """Return ``module`` as an exported program whose batch may vary where that of ``inputs`` does.

    Raises:
        ConversionError: torch.export cannot follow the module, or not with a varying batch.
    """
    examples = []
    for info in inputs:
        # Two: torch.export takes a size of one for a constant.
        shape = tuple(2 if size == -1 else size for size in info.shape)
        dtype = getattr(torch, NUMPY_NAMES[info.datatype])
        floats = dtype.is_floating_point
        examples.append(
            torch.rand(shape, dtype=dtype) if floats else torch.zeros(shape, dtype=dtype)
        )
    batch = torch.export.Dim("batch")
    varies = [{0: batch} if info.shape[:1] == (-1,) else None for info in inputs]
    shapes = (tuple(varies),) if _is_variadic(module) else tuple(varies)
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            # When it fails, it prints the whole graph.
            warnings.simplefilter("ignore")
            return torch.export.export(module, tuple(examples), dynamic_shapes=shapes)
    except Exception as e:  # the exporter raises whatever its many parts raise
        raise ConversionError(f"torch.export cannot follow the model: {first_line(e)}") from e


def _is_variadic(module: torch.nn.Module) -> bool:
    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL in kinds


def _without_traces(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Remove where each node came from: paths and code of the machine it was made on."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
                node.meta.pop("nn_module_stack", None)
                node.meta.pop("source_fn_stack", None)
    return program


def _check_sizes(archive: zipfile.ZipFile, path: Path) -> None:
    total = sum(entry.file_size for entry in archive.infolist())
    if total > MAX_MODEL_BYTES:
        raise SourceError(
            f"{path}: unpacks to {total} bytes; at most {MAX_MODEL_BYTES} are allowed"
        )


def _read_json(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> Any:
    if entry.file_size > _MAX_JSON_BYTES:
        raise SourceError(
            f"{path}: {entry.filename} has {entry.file_size} bytes; at most {_MAX_JSON_BYTES}"
        )
    try:
        return json.loads(archive.read(entry))
    except (ValueError, zipfile.BadZipFile, RecursionError, OSError) as e:
        raise SourceError(f"{path}: {entry.filename} is damaged: {first_line(e)}") from e


def _tables(value: Any, path: Path, depth: int = 0) -> Iterator[dict[str, Any]]:
    if depth > _MAX_JSON_DEPTH:
        raise SourceError(f"{path}: is nested more than {_MAX_JSON_DEPTH} deep")
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _tables(inner, path, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _tables(inner, path, depth + 1)


def _check_table(table: dict[str, Any], path: Path) -> None:
    if table.get("use_pickle"):
        raise _pickled(path, "tensors")
    if "target" in table and "inputs" in table and not _TARGET.match(str(table["target"])):
        raise SourceError(
            f"{path}: calls {str(table['target'])[:80]!r}, which is no operator of PyTorch",
            hint="Write the model with PyTorch's own operators and export it again.",
        )
    expression = table.get("expr_str", "")
    plain = _NAMED.sub(r"\1", str(expression))
    known = all(_SYMBOL.match(word) or word in _FUNCTIONS for word in _WORD.findall(plain))
    if not _EXPRESSION.match(plain) or not known:
        raise SourceError(
            f"{path}: holds an expression that is not one of sizes: {str(expression)[:80]!r}"
        )


def _check_sample_inputs(data: bytes, path: Path) -> None:
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as e:  # the unpickler and its zip reader raise many kinds
        raise _pickled(path, "example inputs") from e


def _pickled(path: Path, what: str) -> SourceError:
    return SourceError(
        f"{path}: holds pickled {what}, which could run code when loaded",
        hint="Export it again with plain tensors as weights and inputs.",
    )
