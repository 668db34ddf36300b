"""The source model as every later step knows it: facts about it, none of its code."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from aid_edge.errors import SourceError
from device_agent.contract.manifest import Identifier, PostprocessStep, PreprocessStep, Version
from device_agent.contract.tensors import Datatype, TensorInfo

Framework = Literal["torch", "torchscript", "onnx", "keras", "tflite"]
Task = Literal["classification", "other"]

CARD_NAME = "model.toml"
CARD_SCHEMA = 1
MAX_CARD_BYTES = 64 * 1024
MAX_LABELS_BYTES = 4 * 2**20
MAX_MODEL_BYTES = 2 * 2**30
"""Bound of a model or weights file; also the limit of protobuf, so of an ONNX file."""


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the card; unknown keys are refused."""


class CardInput(_Table, frozen=True, kw_only=True):
    """One input as the card declares it; -1 is a dimension that may vary."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    datatype: Datatype = "FP32"
    shape: tuple[Annotated[int, msgspec.Meta(ge=-1)], ...]


class CardOutput(_Table, frozen=True, kw_only=True):
    """The name of one output; its type and shape are found by running the model."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class _Card(_Table, frozen=True, kw_only=True):
    schema: int
    name: Identifier
    version: Version
    title: str = ""
    task: Task = "other"
    labels: str = ""
    licence: str = ""
    inputs: tuple[CardInput, ...] = ()
    outputs: tuple[CardOutput, ...] = ()
    preprocess: tuple[PreprocessStep, ...] = ()
    postprocess: tuple[PostprocessStep, ...] = ()


@dataclass(frozen=True)
class ModelCard:
    """What the author says about the model (``model.toml``).

    Attributes:
        path: The card's file.
        labels: Class names in the order of the outputs; empty when there are none.
        inputs: Needed for PyTorch, whose modules do not declare any.
        preprocess: From an image to the *source* model's input.
    """

    path: Path
    name: str
    version: str
    title: str
    task: Task
    labels: tuple[str, ...]
    licence: str
    inputs: tuple[CardInput, ...]
    outputs: tuple[CardOutput, ...]
    preprocess: tuple[PreprocessStep, ...]
    postprocess: tuple[PostprocessStep, ...]


@dataclass(frozen=True)
class OperatorUse:
    """How a model uses one operator type.

    Attributes:
        type: As the source framework names it: ``conv2d`` (ATen), ``Conv`` (ONNX).
        count: Number of nodes.
        max_rank: Highest rank of any of their inputs or outputs that is known; 0 when none is.
        first_node: Name of the first such node, for messages.
    """

    type: str
    count: int
    max_rank: int = 0
    first_node: str = ""


@dataclass(frozen=True)
class SourceModel:
    """What the researcher has, inspected. Frozen and picklable; holds no framework object.

    Attributes:
        spec: The path, or ``module:factory``, as it was given.
        framework: Which framework the model is written for.
        weights: Weights file, for PyTorch.
        inputs: Names, element types and shapes; -1 is a dimension that may vary.
        outputs: Likewise.
        uses: Operators, most frequent first.
        parameters: Number of trained values.
        digest: sha256 over all files that make the model: code, weights, graph.
        card: The model card, where there is one.
        opset: Version of the ONNX operator set; 0 for other frameworks.
    """

    spec: str
    framework: Framework
    weights: Path | None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    uses: tuple[OperatorUse, ...]
    parameters: int
    digest: str
    card: ModelCard | None = None
    opset: int = 0

    @property
    def operators(self) -> dict[str, int]:
        """Operator type to number of nodes."""
        return {use.type: use.count for use in self.uses}

    @property
    def name(self) -> str:
        """Name from the card, else from the file or factory."""
        if self.card is not None:
            return self.card.name
        stem = Path(self.spec.partition(":")[0]).stem.rpartition(".")[2]
        return "".join(c if c.isalnum() else "-" for c in stem.lower()).strip("-") or "model"

    @property
    def version(self) -> str:
        """Version from the card, else ``0.0.0``."""
        return self.card.version if self.card is not None else "0.0.0"

    @property
    def has_dynamic_batch(self) -> bool:
        """Whether the first dimension of every input may vary, and no other dimension does."""
        return all(i.shape and i.shape[0] == -1 and -1 not in i.shape[1:] for i in self.inputs)


def read_card(path: Path) -> ModelCard:
    """Return the card in the file at ``path``, with its labels read.

    Raises:
        SourceError: The card or its labels file is missing or not valid; names file and key.
    """
    raw = _read(path, MAX_CARD_BYTES)
    try:
        table = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise SourceError(f"{path}: is not TOML: {e}") from e
    if table.get("schema") != CARD_SCHEMA:
        raise SourceError(f"{path}: schema: is {table.get('schema')!r}; allowed: {CARD_SCHEMA}")
    try:
        card = msgspec.convert(table, _Card)
    except msgspec.ValidationError as e:
        problem, _, key = str(e).partition(" - at `$")
        where = key.strip("`.")
        raise SourceError(
            f"{path}: {where}: {problem}" if where else f"{path}: {problem}",
            hint="docs/model-card.md lists every key.",
        ) from e
    labels: tuple[str, ...] = ()
    if card.labels:
        labels = _read_labels(path.parent / card.labels, path)
    return ModelCard(
        path, card.name, card.version, card.title or card.name, card.task, labels, card.licence,
        card.inputs, card.outputs, card.preprocess, card.postprocess,
    )  # fmt: skip


def find_card(*beside: Path | None) -> Path | None:
    """Return the first ``model.toml`` that lies in the folder of one of these files, or None."""
    for file in beside:
        if file is not None and (found := file.parent / CARD_NAME).is_file():
            return found
    return None


def _read_labels(path: Path, card: Path) -> tuple[str, ...]:
    try:
        text = _read(path, MAX_LABELS_BYTES).decode()
    except UnicodeDecodeError as e:
        raise SourceError(f"{card}: labels: {path} is not UTF-8 text: {e}") from e
    except SourceError as e:
        raise SourceError(f"{card}: labels: {e}") from e
    labels = tuple(line.strip() for line in text.splitlines())
    if not labels or "" in labels:
        raise SourceError(f"{card}: labels: {path} has an empty line; one class name per line")
    return labels


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise SourceError(f"{path}: has {size} bytes; at most {max_bytes} are allowed")
        return path.read_bytes()
    except OSError as e:
        raise SourceError(f"{path}: cannot be read: {e.strerror}") from e
