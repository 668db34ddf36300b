"""The source model as every later step knows it: facts about it, none of its code."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from aid_edge.errors import SourceError
from device_agent.contract.manifest import Identifier, PostprocessStep, PreprocessStep, Version
from device_agent.contract.tensors import Datatype, TensorInfo

Framework = Literal["torch", "torchscript", "onnx", "keras", "tflite"]
Task = Literal["classification", "other"]

_SEE = "docs/model-card.md lists every key."
CARD_NAME = "model.toml"
CARD_SCHEMA = 1
MAX_CARD_BYTES = 64 * 1024
MAX_LABELS_BYTES = 4 * 2**20
MAX_MODEL_BYTES = 2 * 2**30
"""Bound of a model or weights file; also the limit of protobuf, so of an ONNX file."""


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the card; unknown keys are refused."""


class CardInput(_Table, frozen=True, kw_only=True):
    """One input as the card declares it; -1 is a dimension that may vary.

    Attributes:
        datatype: None is what the file says, and FP32 where the file says nothing.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    datatype: Datatype | None = None
    shape: tuple[Annotated[int, msgspec.Meta(ge=-1)], ...]


class CardOutput(_Table, frozen=True, kw_only=True):
    """The name of one output; its type and shape are found by running the model."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class _Preprocess(_Table, frozen=True, kw_only=True):
    preprocess: tuple[PreprocessStep, ...] = ()


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
        batched: Whether the first axis of every input and output is the batch. Where it is not,
            as with a state [2, 1, 128] beside a sample [1, 512], a sample is a whole feed: arrays
            are [n, *shape] and the model takes one of them at a time. See :meth:`feeds`.
        quantized: Whether the file is quantized already; it can only be passed through.
        notes: What opening it found that the reader of a report must know.
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
    batched: bool = True
    quantized: bool = False
    notes: tuple[str, ...] = ()

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
        return self.batched and all(
            i.shape and i.shape[0] == -1 and -1 not in i.shape[1:] for i in self.inputs
        )

    def feeds(self, arrays: Mapping[str, Any], batch: int = 1) -> Iterator[dict[str, Any]]:
        """Yield what the model takes at a time from samples ``arrays`` [n, ...].

        Args:
            arrays: Input name to samples: the first axis counts samples.
            batch: Samples at a time, the last time fewer; without a batch axis it is always one.
        """
        count = len(next(iter(arrays.values())))
        if not self.batched:
            for i in range(count):
                yield {name: array[i] for name, array in arrays.items()}
            return
        for start in range(0, count, batch):
            yield {name: array[start : start + batch] for name, array in arrays.items()}


def is_batched(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> bool:
    """Return whether the first axis of all these tensors can be one batch: all of one size."""
    tensors = (*inputs, *outputs)
    return all(t.shape for t in tensors) and len({t.shape[0] for t in tensors}) == 1


def read_card(path: Path) -> ModelCard:
    """Return the card in the file at ``path``, with its labels read.

    Raises:
        SourceError: The card or its labels file is missing or not valid; names file and key.
    """
    table = _read_table(path)
    if table.get("schema") != CARD_SCHEMA:
        raise SourceError(f"{path}: schema: is {table.get('schema')!r}; allowed: {CARD_SCHEMA}")
    try:
        card = msgspec.convert(table, _Card)
    except msgspec.ValidationError as e:
        raise _invalid(path, e) from e
    labels: tuple[str, ...] = ()
    if card.labels:
        labels = _read_labels(_beside(card.labels, path), path)
    return ModelCard(
        path, card.name, card.version, card.title or card.name, card.task, labels, card.licence,
        card.inputs, card.outputs, card.preprocess, card.postprocess,
    )  # fmt: skip


def read_preprocess(path: Path) -> tuple[PreprocessStep, ...]:
    """Return the steps in a file that holds ``[[preprocess]]`` tables, as a card has them.

    A whole card will do as well; its other keys are not looked at.

    Raises:
        SourceError: The file is missing, not valid, or has no step; names file and key.
    """
    table = _read_table(path)
    if "schema" in table:
        steps = read_card(path).preprocess
    else:
        try:
            steps = msgspec.convert(table, _Preprocess).preprocess
        except msgspec.ValidationError as e:
            raise _invalid(path, e) from e
    if not steps:
        raise SourceError(f"{path}: has no [[preprocess]] table", hint=_SEE)
    return steps


def find_card(*beside: Path | None) -> Path | None:
    """Return the first ``model.toml`` that lies in the folder of one of these files, or None."""
    for file in beside:
        if file is not None and (found := file.parent / CARD_NAME).is_file():
            return found
    return None


def _read_table(path: Path) -> dict[str, Any]:
    raw = _read(path, MAX_CARD_BYTES)
    try:
        return tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise SourceError(f"{path}: is not TOML: {e}") from e


def _invalid(path: Path, error: msgspec.ValidationError) -> SourceError:
    problem, _, key = str(error).partition(" - at `$")
    where = key.strip("`.")
    return SourceError(f"{path}: {where}: {problem}" if where else f"{path}: {problem}", hint=_SEE)


def _beside(name: str, card: Path) -> Path:
    # A card may come from anyone; what it names must not be another file of this machine.
    folder = card.parent.resolve()
    found = (folder / name).resolve()
    if not found.is_relative_to(folder):
        raise SourceError(
            f"{card}: labels: {name!r} lies outside the folder of the card",
            hint="Put the labels file beside the card and give its name.",
        )
    return card.parent / name


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
