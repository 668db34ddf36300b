"""What a reader of one kind of data finds: all about the samples, and a way to read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aid_edge.errors import DataError
from aid_edge.evaluate.data.targets import Kind, Targets
from aid_edge.model import SourceModel
from aid_edge.sources.inspection import NUMPY_NAMES
from device_agent.contract.tensors import TensorInfo

Array = npt.NDArray[Any]
Batches = Iterator[dict[str, Array]]

BATCH_BYTES = 8 * 2**20
"""About how much a batch holds while data are read: memory stays flat in their number."""


@dataclass(frozen=True)
class Reading:
    """Data that were looked through but not yet read.

    Attributes:
        spec: What the user gave.
        names: What to call each sample.
        batches: Yields the inputs of the samples with these indices (ascending), in order, array
            [n, ...] per input.
        targets: Of each sample, or None.
        kind: What the targets are.
        groups: Cluster of each sample, or None.
        images: Image file of each sample, or None.
        is_random: Whether the inputs are noise.
    """

    spec: str
    names: Sequence[str]
    batches: Callable[[Sequence[int]], Batches]
    targets: Targets | None = None
    kind: Kind = "classes"
    groups: Sequence[str] | None = None
    images: Sequence[Path] | None = None
    is_random: bool = False


def evenly(n: int, limit: int | None) -> list[int]:
    """Return the indices of at most ``limit`` of ``n`` samples, evenly spaced."""
    if limit is None or n <= limit:
        return list(range(n))
    return [i * n // limit for i in range(limit)]


def per_batch(sample_bytes: int) -> int:
    """Return how many samples of this size make a batch."""
    return max(1, min(1024, BATCH_BYTES // max(sample_bytes, 1)))


def check_input(
    spec: str,
    array: Array,
    tensor: TensorInfo,
    n: int,
    *,
    batched: bool = True,
    first: int = 0,
    chosen: Sequence[int] | None = None,
) -> None:
    """Return if ``array`` holds ``n`` finite samples of ``tensor``.

    Args:
        spec: What the user gave, for messages.
        array: A batch.
        tensor: The input.
        n: Number of samples of the batch.
        batched: Whether the first axis of the tensor is the batch; else samples are [n, *shape].
        first: Number of samples that came before the batch.
        chosen: Index of every chosen sample in the whole of the data, for messages.

    Raises:
        DataError: It does not; names the input, what was expected and what was found.
    """
    where = f"{spec}: input {tensor.name!r}"
    check_shape(where, array.shape, array.dtype, tensor, batched=batched)
    if len(array) != n:
        raise DataError(f"{where}: has {len(array)} samples where the first input has {n}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array.reshape(n, -1)).all(axis=1))
        index = first + int(bad[0])
        number = index if chosen is None else chosen[index]
        raise DataError(
            f"{where}: {len(bad)} of {n} samples read together hold NaN or infinity, "
            f"first sample {number}"
        )


def check_shape(
    where: str,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    tensor: TensorInfo,
    *,
    batched: bool = True,
) -> None:
    """Return if arrays of this shape [n, ...] and element type are samples of ``tensor``.

    Args:
        where: Begins the message.
        shape: Of the array.
        dtype: Of the array.
        tensor: The input.
        batched: Whether the first axis of the tensor is the batch; else samples are [n, *shape].

    Raises:
        DataError: They are not.
    """
    sizes = tensor.shape[1:] if batched else tensor.shape
    wanted = ["n", *("any" if d == -1 else str(d) for d in sizes)]
    fits = len(shape) == len(wanted) and all(
        want in {"n", "any"} or int(want) == have for want, have in zip(wanted, shape, strict=True)
    )
    if not fits:
        raise DataError(f"{where}: expected shape [{', '.join(wanted)}], found {list(shape)}")
    if dtype != np.dtype(NUMPY_NAMES[tensor.datatype]):
        raise DataError(
            f"{where}: expected dtype {NUMPY_NAMES[tensor.datatype]}, found {dtype}",
            hint="Data are taken as they are, after the model's own preprocessing.",
        )


def sample_shape(model: SourceModel, tensor: TensorInfo) -> tuple[int, ...]:
    """Return the shape of one sample of an input, without the axis that counts samples."""
    return tensor.shape[1:] if model.batched else tensor.shape
