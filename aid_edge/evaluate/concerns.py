"""What makes data doubtful though they fit the model: few, constant, noise, doubled, lopsided."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from aid_edge.evaluate.data.dataset import DataSet
from aid_edge.evaluate.data.reading import evenly
from aid_edge.model import SourceModel
from device_agent.contract.manifest import Normalize, Rescale
from device_agent.contract.tensors import TensorInfo

FEW_SAMPLES = 32
"""Fewer leave ranges and shares open by too much: NNCF and AI Edge ask for 100 to 500."""

LOOKED_AT = 64
"""Values are looked at in so many samples: what is wrong with data is wrong with most of them."""

MIN_CORRELATION = 0.1
"""Neighbors in photos and signals are alike (over 0.5, mostly over 0.9); in noise they are not."""

LOPSIDED = 10
"""Largest class over the smallest."""

MAX_CONSTANT = 0.1
"""Share of samples that may have one value throughout, such as silence."""

_MIN_NEIGHBORS = 1000
_MARGIN = 0.05


def concerns(data: DataSet, model: SourceModel) -> tuple[str, ...]:
    """Return what a reader must know of the data, one sentence each; nothing in the usual case.

    Looks at no more than ``LOOKED_AT`` samples' values.
    """
    found = []
    if data.is_random:
        found.append("The inputs are random noise: figures about quality mean nothing.")
    units = data.clusters
    if units < FEW_SAMPLES:
        what = "samples" if data.groups is None else f"groups ({len(data)} samples)"
        found.append(f"Only {units} independent {what}: ranges and figures are uncertain.")
    found += _doubles(data)
    picked = data.take(evenly(len(data), LOOKED_AT))
    for tensor in model.inputs:
        values = picked[tensor.name]
        if not data.is_random:
            found += _values(tensor.name, values, is_state=_is_state(tensor, model))
        found += _range(tensor.name, values, model)
    found += _classes(data, model)
    return tuple(found)


def _doubles(data: DataSet) -> list[str]:
    counts = Counter(data.sample_digests)
    repeated = len(data) - len(counts)
    if not repeated:
        return []
    names = dict(zip(data.sample_digests, data.names, strict=True))
    most, times = counts.most_common(1)[0]
    text = (
        f"{repeated} of {len(data)} samples are copies of others, such as {names[most]} "
        f"({times} times): they are counted as if they were not."
    )
    return [text]


def _is_state(tensor: TensorInfo, model: SourceModel) -> bool:
    """Return whether an input is what an output was a step before: its units have no order."""
    same = [o for o in model.outputs if (o.shape, o.datatype) == (tensor.shape, tensor.datatype)]
    return len(model.inputs) > 1 and bool(same)


def _values(name: str, values: npt.NDArray[Any], *, is_state: bool) -> list[str]:
    flat = values.reshape(len(values), -1)
    # Masks, rates and first states are constant by design.
    if values.dtype.kind != "f" or flat.shape[1] == 1:
        return []
    constant = int(np.sum(np.ptp(flat, axis=1) == 0))
    if np.ptp(flat) == 0 and len(values) > 1:
        return [f"Input {name!r} has the same value, {flat[0, 0]:g}, everywhere."]
    if constant > MAX_CONSTANT * len(values):
        return [f"Input {name!r} has one value throughout in {constant} of {len(values)} samples."]
    if values.ndim >= 3 and not is_state and _looks_random(values):
        text = (
            f"Input {name!r} looks like noise: neighboring values are not alike. "
            "Ranges found on it are not those of real data."
        )
        return [text]
    return []


def _looks_random(values: npt.NDArray[Any]) -> bool:
    """Return whether neighbors along every longer axis are unrelated.

    Their correlation after each sample's and channel's mean is taken out, lag 1.
    """
    found = []
    for axis in range(1, values.ndim):
        if values.shape[axis] < 8:
            continue
        moved = np.moveaxis(values.astype(np.float64), axis, -1)
        centered = moved - moved.mean(axis=-1, keepdims=True)
        a, b = centered[..., :-1], centered[..., 1:]
        power = float(np.sum(centered**2))
        if power > 0 and a.size >= _MIN_NEIGHBORS:
            found.append(float(np.sum(a * b)) / power)
    return bool(found) and max(found) < MIN_CORRELATION


def _range(name: str, values: npt.NDArray[Any], model: SourceModel) -> list[str]:
    """Return what does not fit the declared steps, which start from pixels of 0 to 255."""
    steps = model.card.preprocess if model.card is not None else ()
    if not any(isinstance(s, Normalize | Rescale) for s in steps) or values.dtype.kind != "f":
        return []
    ends = np.array([0.0, 255.0])
    low, high = ends, ends
    for step in steps:
        if isinstance(step, Rescale):
            low, high = (np.asarray(e * step.scale + step.offset) for e in (low, high))
        elif isinstance(step, Normalize):
            by_channel = [
                (np.stack([low, high]) - m) / s
                for m, s in zip(step.mean, step.std * len(step.mean), strict=False)
            ]
            low, high = np.min(by_channel, axis=0), np.max(by_channel, axis=0)
    wanted = float(np.min([low, high])), float(np.max([low, high]))
    room = _MARGIN * (wanted[1] - wanted[0])
    seen = float(values.min()), float(values.max())
    if seen[0] >= wanted[0] - room and seen[1] <= wanted[1] + room:
        return []
    text = (
        f"Input {name!r} holds values of {seen[0]:.4g} to {seen[1]:.4g}; the preprocessing "
        f"that the model card declares gives {wanted[0]:.4g} to {wanted[1]:.4g}."
    )
    return [text]


def _classes(data: DataSet, model: SourceModel) -> list[str]:
    if data.labels is None:
        return []
    output = model.outputs[0].shape
    classes = 2 if output and output[-1] == 1 else (output[-1] if output else 0)
    counts = np.bincount(data.labels, minlength=max(classes, 1))
    labels = model.card.labels if model.card is not None else ()

    def name(index: int) -> str:
        return labels[index] if index < len(labels) else str(index)

    found = []
    missing = np.flatnonzero(counts == 0)
    # Of a thousand classes, a hundred samples cannot have all.
    if len(missing) and len(data) >= 2 * len(counts):
        shown = ", ".join(name(int(i)) for i in missing[:5])
        more = ", ..." if len(missing) > 5 else ""
        found.append(
            f"{len(missing)} of {len(counts)} classes have no sample: {shown}{more}. "
            "Nothing is known about them."
        )
    present = counts[counts > 0]
    if len(present) == 1 and len(counts) > 1:
        found.append(f"All samples are of one class, {name(int(counts.argmax()))}.")
    elif present.max() > LOPSIDED * present.min() and len(data) >= 2 * len(counts):
        found.append(
            f"Classes are lopsided: {present.max()} samples of {name(int(counts.argmax()))}, "
            f"{present.min()} of the rarest; accuracy says little about that one."
        )
    return found
