"""Tensors as numpy arrays: conversion, top answer, closeness to golden outputs. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from device_agent.contract.tensors import Tensor, TensorInfo

Array = npt.NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"), "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
}  # fmt: skip
"""numpy's type of each element type of the Open Inference Protocol."""


def array_of(tensor: Tensor) -> Array:
    """Return ``tensor`` as a read-only view of its bytes."""
    return np.frombuffer(tensor.data, DTYPES[tensor.datatype]).reshape(tensor.shape)


def tensor_of(info: TensorInfo, values: Array) -> Tensor:
    """Return ``values`` as a tensor with the name and element type of ``info``."""
    shape = tuple(int(d) for d in values.shape)
    packed = np.ascontiguousarray(values, DTYPES[info.datatype])
    data = packed.data.cast("B") if packed.size else b""
    return Tensor(info.name, info.datatype, shape, data)


def cosine(found: Array, golden: Array) -> float:
    """Return the cosine similarity of two tensors; -1 where they cannot be compared.

    Two tensors of zeros are alike; one of zeros is like nothing else.
    """
    if found.shape != golden.shape:
        return -1.0
    a, b = found.astype(np.float64).ravel(), golden.astype(np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return -1.0
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms == 0:
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(np.clip(a @ b / norms, -1, 1))


def agrees(found: Array, golden: Array) -> bool:
    """Return whether the arg-max over the last axis is the same everywhere."""
    if found.shape != golden.shape or not np.isfinite(found.astype(np.float64)).all():
        return False
    if found.ndim == 0 or found.size == 0:
        return True
    return bool(np.array_equal(found.argmax(-1), golden.argmax(-1)))


def quantile(values: Sequence[float], q: float) -> float:
    """Return the ``q``-quantile of ``values``."""
    return float(np.quantile(np.asarray(values), q))


def top(scores: Array, *, has_softmax: bool) -> tuple[int | None, float | None]:
    """Return the best class of one example and its probability.

    Args:
        scores: [classes] or [1, classes]; anything with more examples has no single answer.
        has_softmax: The values are scores, which softmax makes probabilities.

    Returns:
        Class index and probability. Both None when there is no single answer or a value is not
        finite; the probability None when the values are no probabilities.
    """
    if scores.size == 0 or scores.size != scores.shape[-1]:
        return None, None
    values = scores.astype(np.float64).ravel()
    if not np.isfinite(values).all():
        return None, None
    best = int(values.argmax())
    if has_softmax:
        weights = np.exp(values - values[best])
        return best, float(weights[best] / weights.sum())
    probability = float(values[best])
    return best, probability if 0 <= probability <= 1 else None
