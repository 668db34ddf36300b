"""What came of a conversion: is it what was declared, finite, and close to the source? Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aid_edge.converter import Arrays
from aid_edge.errors import ConversionError, DataError
from aid_edge.model import SourceModel
from aid_edge.runtimes import Placement
from aid_edge.sources.inspection import NUMPY_NAMES
from device_agent.contract.tensors import TensorInfo

FLOAT_MIN_COSINE = 0.999
FLOAT_MAX_RELATIVE = 1e-3
"""A float artifact's largest difference from the source, as a share of the largest output."""

_SAME_MIN_COSINE = 0.999
_CHECKED_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Closeness:
    """How close outputs are to the source model's, over ``n`` inputs.

    Attributes:
        max_abs: Largest absolute difference of any output value.
        cosine: Smallest cosine similarity of any one output to its source output.
        agreement: Share of inputs with the same arg-max over the last axis of the first output.
        batches: Batch sizes that were tried and gave the same answers.
    """

    n: int
    max_abs: float
    cosine: float
    agreement: float
    batches: tuple[int, ...]


@dataclass(frozen=True)
class Facts:
    """What a fresh process found out about an artifact."""

    version: str
    input_infos: tuple[TensorInfo, ...]
    output_infos: tuple[TensorInfo, ...]
    outputs: dict[str, NDArray[Any]]
    placement: Placement
    batches: tuple[int, ...]


def is_whole(arrays: Arrays, infos: Sequence[TensorInfo]) -> bool:
    """Return whether samples are whole feeds [n, *shape] of a model without a batch axis."""
    return all(
        info.name in arrays and arrays[info.name].ndim == len(info.shape) + 1 for info in infos
    )


def check_arrays(
    arrays: Arrays, infos: Sequence[TensorInfo], what: str, *, batched: bool = True
) -> int:
    """Return how many samples ``arrays`` hold, if they fit the tensors ``infos``.

    Args:
        arrays: Samples [n, ...].
        infos: What they must fit.
        what: What to call them in messages.
        batched: Whether the first axis of a tensor is the batch; else samples are [n, *shape].

    Raises:
        DataError: A tensor is missing, unknown, empty, not finite, or of another type or shape.
    """
    names = [info.name for info in infos]
    if set(arrays) != set(names):
        raise DataError(
            f"{what}: has {', '.join(sorted(arrays)) or 'nothing'}; wanted {', '.join(names)}"
        )
    for info in infos:
        array = arrays[info.name]
        wanted = NUMPY_NAMES[info.datatype]
        if array.dtype.name != wanted:
            raise DataError(f"{what}: {info.name} is {array.dtype.name}; wanted {wanted}")
        sizes = info.shape[1:] if batched else info.shape
        if array.ndim != len(sizes) + 1 or any(
            size not in {-1, found} for size, found in zip(sizes, array.shape[1:], strict=True)
        ):
            shape = ", ".join("any" if s == -1 else str(s) for s in sizes)
            raise DataError(
                f"{what}: {info.name} has shape {list(array.shape)}; wanted [n, {shape}]"
            )
        if array.dtype.kind == "f" and not _is_finite(array):
            raise DataError(f"{what}: {info.name} has values that are not finite (NaN or infinity)")
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1:
        raise DataError(f"{what}: the inputs have different numbers of samples: {sorted(counts)}")
    count = counts.pop()
    if not count:
        raise DataError(f"{what}: is empty")
    return int(count)


def _is_finite(array: NDArray[Any]) -> bool:
    # In parts: samples on disk may be larger than memory.
    rows = max(1, _CHECKED_BYTES // max(array[:1].nbytes, 1))
    return all(np.isfinite(array[i : i + rows]).all() for i in range(0, len(array), rows))


def check_declared(
    model: SourceModel, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]
) -> None:
    """Return if an artifact's inputs and outputs are the source model's.

    Raises:
        ConversionError: It does not; names the tensor.
    """
    for side, wanted, found in (
        ("inputs", model.inputs, inputs),
        ("outputs", model.outputs, outputs),
    ):
        if [t.name for t in wanted] != [t.name for t in found]:
            raise ConversionError(
                f"the artifact's {side} are {', '.join(t.name for t in found)}; "
                f"the source model's are {', '.join(t.name for t in wanted)}"
            )


def check_placed(placement: Placement, runtime: str) -> None:
    """Return if no operator that does the arithmetic runs on a runtime's reference kernels.

    Raises:
        ConversionError: Some do; names them.
    """
    if placement.slow:
        total = placement.integer + placement.floating
        named = ", ".join(f"{op} ({count}x)" for op, count in sorted(placement.slow.items()))
        raise ConversionError(
            f"{sum(placement.slow.values())} of {total} compute operators would run on the "
            f"reference kernels of {runtime}, hundreds of times slower than its fast ones: {named}",
            hint="Choose another runtime, or change the model so that the fast kernels take it.",
        )


def check_finite(outputs: Arrays, whose: str) -> None:
    """Return if all numbers are finite.

    Raises:
        ConversionError: Some are NaN or infinite; names the output.
    """
    for name, array in outputs.items():
        bad = int(np.count_nonzero(~np.isfinite(array))) if array.dtype.kind == "f" else 0
        if bad:
            raise ConversionError(
                f"output {name} of {whose} has {bad} of {array.size} values that are not finite "
                "(NaN or infinity)",
                hint="Check the model on these inputs; are they what it was trained on?",
            )


def check_close(found: Closeness, reference: Arrays, runtime: str) -> None:
    """Return if a float artifact computes what the source model does.

    Raises:
        ConversionError: It does not; says by how much.
    """
    largest = max(float(np.abs(a).max()) for a in reference.values())
    relative = found.max_abs / largest if largest else found.max_abs
    if found.cosine < FLOAT_MIN_COSINE or relative > FLOAT_MAX_RELATIVE:
        raise ConversionError(
            f"the float artifact for {runtime} does not compute what the source does: "
            f"smallest cosine {found.cosine:.6f}, largest difference {found.max_abs:.3g} "
            f"({relative:.2%} of the largest output) over {found.n} inputs",
            hint="This is a fault of the toolchain; the artifact is not to be used.",
        )


def compare(
    reference: Arrays, outputs: Arrays, model: SourceModel, batches: tuple[int, ...]
) -> Closeness:
    """Return how close ``outputs`` are to the source model's outputs ``reference``.

    Raises:
        ConversionError: Shapes differ.
    """
    cosine, largest, count = 1.0, 0.0, 0
    for info in model.outputs:
        want, got = reference[info.name], outputs[info.name]
        if want.shape != got.shape:
            raise ConversionError(
                f"output {info.name} has shape {list(got.shape)}; "
                f"the source's is {list(want.shape)}"
            )
        count = len(want)
        a = want.reshape(count, -1).astype(np.float64)
        b = got.reshape(count, -1).astype(np.float64)
        cosine = min(cosine, float(cosines(a, b).min()))
        largest = max(largest, float(np.abs(a - b).max()))
    first = model.outputs[0].name
    agreement = np.mean(_top(reference[first]) == _top(outputs[first]))
    return Closeness(count, largest, cosine, float(agreement), batches)


def cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return the cosine similarity of each row of ``a`` and ``b``, both [n, k]; shape [n].

    Two rows of all zeros are the same; one of them is as far off as can be.
    """
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = np.all(a == b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(norms > 0, np.minimum((a * b).sum(axis=1) / norms, 1.0), 0.0)
    return np.where(same, 1.0, found)


def _top(array: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(array.reshape(len(array), -1).argmax(axis=1))


def to_artifact(
    inputs: Arrays, axes: Mapping[str, tuple[int, ...]], infos: Sequence[TensorInfo]
) -> dict[str, NDArray[Any]]:
    """Return inputs in the source model's layout and types as the artifact takes them."""
    types = {info.name: NUMPY_NAMES[info.datatype] for info in infos}
    found = {}
    for name, array in inputs.items():
        moved = np.transpose(array, _with_samples(axes[name], array)) if name in axes else array
        found[name] = np.ascontiguousarray(moved, types[name])
    return found


def _with_samples(axes: tuple[int, ...], array: NDArray[Any]) -> tuple[int, ...]:
    """Return the permutation for samples that have an axis of their own before a tensor's."""
    return axes if array.ndim == len(axes) else (0, *(axis + 1 for axis in axes))


def check_same(single: Arrays, other: Arrays, where: str) -> None:
    """Return if two runs of one artifact on the same inputs agree.

    Raises:
        ConversionError: They do not; ``where`` says what was different about the other run.
    """
    for name, want in single.items():
        a = want.reshape(len(want), -1).astype(np.float64)
        b = other[name].reshape(len(want), -1).astype(np.float64)
        lowest = float(cosines(a, b).min())
        # Also false for NaN.
        if not lowest >= _SAME_MIN_COSINE:
            raise ConversionError(
                f"output {name} is another one {where} than alone: smallest cosine {lowest:.4f}",
                hint="This is a fault of the runtime; try another one.",
            )
