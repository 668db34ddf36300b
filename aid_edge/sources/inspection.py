"""What inspecting a source model finds out, whatever its framework."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aid_edge.errors import SourceError
from aid_edge.model import MAX_MODEL_BYTES, CardInput, ModelCard, OperatorUse
from aid_edge.sources.inputs import as_declared, merged
from device_agent.contract.tensors import TensorInfo

_READ_BYTES = 2**20

NUMPY_NAMES: dict[str, str] = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16",
    "FP32": "float32", "FP64": "float64",
}  # fmt: skip
"""Open Inference Protocol element type to the name of the same numpy type."""

DATATYPES: dict[str, str] = {name: datatype for datatype, name in NUMPY_NAMES.items()}


@dataclass(frozen=True)
class SourceRequest:
    """What the user gave: enough to find and load a source model in any process.

    Attributes:
        spec: Path, or ``module:factory``.
        inputs: Inputs the user or the card declared; empty where the file says them itself.
        output_names: Names the card gives the outputs.
    """

    spec: str
    weights: Path | None = None
    inputs: tuple[CardInput, ...] = ()
    output_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [i.name for i in self.inputs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise SourceError(f"{self.spec}: two inputs are called {twice!r}")


@dataclass(frozen=True)
class Inspection:
    """Facts about a source model; as in :class:`aid_edge.model.SourceModel`."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    uses: tuple[OperatorUse, ...]
    parameters: int
    digest: str
    opset: int = 0
    quantized: bool = False
    notes: tuple[str, ...] = ()


def request_for(
    spec: str,
    weights: Path | None,
    card: ModelCard | None,
    inputs: Sequence[TensorInfo | CardInput],
) -> SourceRequest:
    """Return the request for a model whose card and inputs are known."""
    said = as_declared(inputs)
    declared = merged(card.inputs, said) if card is not None else said
    names = tuple(o.name for o in card.outputs) if card is not None else ()
    return SourceRequest(spec, weights, declared, names)


class OperatorCount:
    """Counts operators while a graph is walked."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, int, str]] = {}

    def add(self, type_: str, rank: int, node: str) -> None:
        """Count one node of this type, highest rank and name."""
        count, max_rank, first = self._found.get(type_, (0, 0, node))
        self._found[type_] = (count + 1, max(max_rank, rank), first)

    @property
    def uses(self) -> tuple[OperatorUse, ...]:
        """What was counted, most frequent first."""
        found = [OperatorUse(type_, *facts) for type_, facts in self._found.items()]
        return tuple(sorted(found, key=lambda use: (-use.count, use.type)))


def digest_of_files(kind: str, paths: Iterable[Path], *extra: bytes) -> str:
    """Return one sha256 digest over the bytes of files and of ``extra``, in order.

    Raises:
        SourceError: A file cannot be read.
    """
    hasher = hashlib.sha256(kind.encode())
    for path in paths:
        hasher.update(b"\0file\0")
        try:
            with path.open("rb") as file:
                while block := file.read(_READ_BYTES):
                    hasher.update(block)
        except OSError as e:
            raise SourceError(f"{path}: cannot be read: {e.strerror}") from e
    for part in extra:
        hasher.update(b"\0part\0" + part)
    return f"sha256:{hasher.hexdigest()}"


def check_file(path: Path, what: str) -> None:
    """Return if ``path`` is a readable, non-empty file within the size bound.

    Raises:
        SourceError: It is not.
    """
    try:
        size = path.stat().st_size
        is_file = path.is_file()
    except OSError as e:
        raise SourceError(f"{path}: {what} cannot be read: {e.strerror}") from e
    if not is_file:
        raise SourceError(f"{path}: {what} is not a file")
    if size == 0:
        raise SourceError(f"{path}: {what} is empty")
    if size > MAX_MODEL_BYTES:
        raise SourceError(f"{path}: {what} has {size} bytes; at most {MAX_MODEL_BYTES} are allowed")


def named(names: Sequence[str], found: int, spec: str) -> tuple[str, ...]:
    """Return a name for each of ``found`` outputs: those the card gives, or made ones.

    Raises:
        SourceError: The card names another number of outputs.
    """
    if not names:
        return ("output",) if found == 1 else tuple(f"output_{i}" for i in range(found))
    if len(names) != found:
        raise SourceError(
            f"{spec}: the card names {len(names)} outputs ({', '.join(names)}), "
            f"the model has {found}"
        )
    return tuple(names)
