"""What is right for each sample: classes, several labels at once, values, or sequences of ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from aid_edge.errors import DataError
from aid_edge.model import SourceModel

Kind = Literal["classes", "multi-label", "values", "sequences"]
"""What targets are.

- ``classes``: int64 [n], the index of the right class; 0 or 1 where the output has one score.
- ``multi-label``: int64 [n, k] of 0 and 1, for outputs of k scores.
- ``values``: float [n] or [n, ...], for regression and whatever a metric of the user takes.
- ``sequences``: n arrays of int64 ids of any length, for error rates of words and characters.
"""

Targets = npt.NDArray[Any] | tuple[npt.NDArray[np.int64], ...]

PADDING = -1
"""Fills up shorter rows where sequences of ids are given as one array."""


def understand(spec: str, values: Any, model: SourceModel, n: int) -> tuple[Targets, Kind]:
    """Return targets as their kind holds them.

    Whole numbers [n] are classes where the model is a classifier (card) or its first output has
    several scores; with one output value, 0 and 1 are the two classes and anything else is a value.
    Whole numbers [n, k] of only 0 and 1, k the number of scores, are several labels at once; other
    [n, m], and lists of different lengths, are sequences of ids, padded with ``PADDING``. Floats
    are values.

    Args:
        spec: What the user gave, for messages.
        values: An array, or a list of n arrays of ids.
        model: Whose first output they are for.
        n: Number of samples.

    Raises:
        DataError: They are of another number or type, or name classes the output does not have.
    """
    sequences = _ragged(spec, values)
    if sequences is not None:
        _check_count(spec, len(sequences), n, [len(sequences)])
        return sequences, "sequences"
    array = np.asarray(values)
    _check_count(spec, len(array) if array.ndim else -1, n, list(array.shape))
    if array.dtype.kind not in "iubf":
        raise DataError(f"{spec}: labels: expected numbers, found dtype {array.dtype}")
    if array.dtype.kind != "f":
        return _whole_numbers(spec, array.astype(np.int64), model)
    if _classifies(model):
        raise DataError(f"{spec}: labels: expected whole numbers, found dtype {array.dtype}")
    if not np.isfinite(array).all():
        raise DataError(f"{spec}: labels: hold NaN or infinity")
    return array.astype(np.float64), "values"


def _whole_numbers(
    spec: str, whole: npt.NDArray[np.int64], model: SourceModel
) -> tuple[Targets, Kind]:
    scores = _scores(model)
    is_binary = bool(((whole == 0) | (whole == 1)).all())
    if whole.ndim == 1 and (_classifies(model) or scores > 1 or is_binary):
        return check_labels(spec, whole, model), "classes"
    if whole.ndim == 2 and is_binary and whole.shape[1] == scores:
        return whole, "multi-label"
    if whole.ndim == 2:
        if whole.min() < PADDING:
            raise DataError(f"{spec}: labels: sequences of ids hold {whole.min()}")
        return tuple(row[row != PADDING] for row in whole), "sequences"
    return whole.astype(np.float64), "values"


def _classifies(model: SourceModel) -> bool:
    return model.card is not None and model.card.task == "classification"


def check_labels(spec: str, labels: npt.NDArray[Any], model: SourceModel) -> npt.NDArray[np.int64]:
    """Return ``labels`` as class indices of the model's first output.

    Raises:
        DataError: They are not whole numbers, or name classes that the output does not have.
    """
    if labels.dtype.kind not in "iu":
        raise DataError(f"{spec}: labels: expected whole numbers, found dtype {labels.dtype}")
    indices = labels.astype(np.int64)
    # One score tells two classes apart.
    classes = 2 if _scores(model) == 1 else _scores(model)
    if classes > 0 and len(indices) and (indices.min() < 0 or indices.max() >= classes):
        wrong = int(indices.max() if indices.max() >= classes else indices.min())
        raise DataError(
            f"{spec}: labels: {wrong} is not a class of output {model.outputs[0].name!r}, "
            f"which has {classes} (0 to {classes - 1})"
        )
    return indices


def class_of(spec: str, text: str, model: SourceModel) -> int:
    """Return the class that a folder or cell names: by the card's label, or by its number.

    Raises:
        DataError: There is no such class.
    """
    labels = model.card.labels if model.card is not None else ()
    if text in labels:
        return labels.index(text)
    if text.isdecimal():
        return int(check_labels(spec, np.array([int(text)]), model)[0])
    raise DataError(
        f"{spec}: {text!r} is neither a label of the model nor a class number",
        hint="Use the names in the model card's labels, or class numbers.",
    )


def pick(targets: Targets, indices: Sequence[int]) -> Targets:
    """Return the targets of some samples."""
    if isinstance(targets, tuple):
        return tuple(targets[i] for i in indices)
    return targets[list(indices)]


def encode(targets: Targets) -> bytes:
    """Return targets as bytes for a digest."""
    if isinstance(targets, tuple):
        return b"\n".join(row.astype("<i8").tobytes() + b"%d" % len(row) for row in targets)
    kind = "<f8" if targets.dtype.kind == "f" else "<i8"
    return targets.astype(kind).tobytes()


def _scores(model: SourceModel) -> int:
    """Return how many scores the first output has; 0 when that varies."""
    shape = model.outputs[0].shape
    return max(shape[-1], 0) if len(shape) > 1 else 0


def _check_count(spec: str, found: int, n: int, shape: list[int]) -> None:
    if found != n:
        raise DataError(f"{spec}: labels: expected shape [{n}], found {shape}")


def _ragged(spec: str, values: Any) -> tuple[npt.NDArray[np.int64], ...] | None:
    """Return a list of lists of ids of different lengths as arrays; None for anything else."""
    if isinstance(values, np.ndarray) and values.dtype.kind != "O":
        return None
    if not isinstance(values, Iterable):
        return None
    rows = list(values)
    is_nested = rows and all(isinstance(r, Sequence | np.ndarray) for r in rows)
    if not is_nested or any(isinstance(r, str) for r in rows) or len({len(r) for r in rows}) == 1:
        return None
    found = []
    for row in rows:
        ids = np.asarray(row)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise DataError(f"{spec}: labels: a sequence holds other things than whole numbers")
        found.append(ids.astype(np.int64))
    return tuple(found)
