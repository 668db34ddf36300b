"""What activations look like on calibration data, collected with bounded memory.

ONNX Runtime's histogram calibrators keep every activation of every sample (5 GB for a MobileNetV2
and 300 images). Here the data are gone through twice: first for the extremes, then for counts in
bins between them, one sample at a time. Heavy: used in worker processes only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from aid_edge.errors import ConversionError
from aid_edge.isolate import progress
from converters.onnx_feeds import Feeds, run, session_of
from converters.onnx_ranges import BINS, Histogram, Range, choose

MAX_TENSORS = 20_000
"""Of one model; with ``BINS`` counts each, 320 MB at most."""

HELD_BYTES = 256 * 2**20
"""Activations that are held at a time; a model with more is run several times per sample."""

_UNKNOWN_BYTES = HELD_BYTES // 16
_EXTREMES_HELD = 4096
"""Outputs of one run that takes extremes only: a few bytes each."""

# What these give lies in a known range, whatever the calibration data reached.
_FIXED: Mapping[str, Range] = {"Softmax": (0.0, 1.0), "Sigmoid": (0.0, 1.0), "Tanh": (-1.0, 1.0)}


@dataclass(frozen=True)
class Extremes:
    """Smallest and largest value of one tensor over all samples."""

    low: float
    high: float


def ranges(
    model: onnx.ModelProto, tensors: Sequence[str], feeds: Feeds, method: str, *, symmetric: bool
) -> dict[str, Range]:
    """Return the range that each of ``tensors`` is quantized to.

    Args:
        model: Float, with inferred shapes.
        tensors: Names of float activations.
        feeds: Calibration inputs.
        method: As in :class:`aid_edge.recipe.StaticInt8`.
        symmetric: Whether ranges will be widened to symmetric ones.

    Raises:
        ConversionError: Too many tensors, or activations that are not finite.
    """
    if len(tensors) > MAX_TENSORS:
        raise ConversionError(f"{len(tensors)} activations; at most {MAX_TENSORS} are calibrated")
    found = extremes(model, tensors, feeds)
    fixed = _fixed(model)
    chosen = {name: fixed[name] for name in found if name in fixed}
    chosen |= {
        name: (min(e.low, 0.0), max(e.high, 0.0)) for name, e in found.items()
        if name not in chosen and (method == "min-max" or e.high <= e.low)
    }  # fmt: skip
    left = {name: e for name, e in found.items() if name not in chosen}
    for histogram_of, histogram in histograms(model, left, feeds):
        chosen[histogram_of] = choose(histogram, method, symmetric=symmetric)
    return chosen


def extremes(model: onnx.ModelProto, tensors: Sequence[str], feeds: Feeds) -> dict[str, Extremes]:
    """Return the extremes of each tensor; empty tensors are left out.

    Raises:
        ConversionError: A tensor has values that are not finite; names it.
    """
    low = dict.fromkeys(tensors, np.inf)
    high = dict.fromkeys(tensors, -np.inf)
    for start in range(0, len(tensors), _EXTREMES_HELD):
        part = tensors[start : start + _EXTREMES_HELD]
        session, names = _reduced(model, part)
        for done, feed in enumerate(feeds, start=1):
            values = run(session, names, feed)
            for name, least, most in zip(part, values[0::2], values[1::2], strict=True):
                low[name] = min(low[name], float(least))
                high[name] = max(high[name], float(most))
            progress(0.6 + 0.1 * done / feeds.count, "calibrate: extremes")
    bad = [n for n in tensors if low[n] != np.inf and not np.isfinite([low[n], high[n]]).all()]
    if bad:
        raise ConversionError(
            f"activation {bad[0]} is not finite (NaN or infinity) on the calibration data",
            hint="Check the preprocessing: are the inputs what the model was trained on?",
        )
    return {name: Extremes(low[name], high[name]) for name in tensors if high[name] >= low[name]}


def histograms(
    model: onnx.ModelProto, found: Mapping[str, Extremes], feeds: Feeds
) -> Iterator[tuple[str, Histogram]]:
    """Yield the histogram of each tensor between its extremes, ``BINS`` bins each."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    groups = _grouped(model, list(found))
    session = session_of(copy, list(found)) if found else None
    for number, group in enumerate(groups):
        counts = {name: np.zeros(BINS, np.int64) for name in group}
        for done, feed in enumerate(feeds, start=1):
            for name, value in zip(group, run(session, group, feed), strict=True):
                counts[name] += _counted(value, found[name])
            share = (number + done / feeds.count) / len(groups)
            progress(0.7 + 0.15 * share, "calibrate: histograms")
        for name in group:
            yield name, Histogram(found[name].low, found[name].high, counts[name])


def _counted(value: NDArray[np.floating], ends: Extremes) -> NDArray[np.int64]:
    """Return counts per bin; values outside, as rounding can make them, go to the ends."""
    scale = np.float32(BINS / (ends.high - ends.low))
    index = ((value.ravel() - np.float32(ends.low)) * scale).astype(np.int32)
    np.clip(index, 0, BINS - 1, out=index)
    return np.bincount(index, minlength=BINS)


def _reduced(model: onnx.ModelProto, tensors: Sequence[str]) -> tuple[Any, list[str]]:
    """Return a session that gives two scalars per tensor instead of the tensor."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = []
    for i, tensor in enumerate(tensors):
        for op, name in (("ReduceMin", f"__least_{i}"), ("ReduceMax", f"__most_{i}")):
            copy.graph.node.append(onnx.helper.make_node(op, [tensor], [name], name, keepdims=0))
            names.append(name)
    return session_of(copy, names), names


def _grouped(model: onnx.ModelProto, tensors: Sequence[str]) -> list[list[str]]:
    """Return the tensors in groups that fit ``HELD_BYTES``."""
    values = (*model.graph.value_info, *model.graph.output, *model.graph.input)
    sizes = {v.name: size_bytes(v) for v in values}
    groups: list[list[str]] = []
    held = HELD_BYTES
    for name in tensors:
        size = sizes.get(name, _UNKNOWN_BYTES)
        if held + size > HELD_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    return groups


def size_bytes(value: onnx.ValueInfoProto) -> int:
    """Return the bytes of a float tensor for one sample; a guess where its shape is unknown."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return _UNKNOWN_BYTES
    return 4 * int(np.prod([d.dim_value or 1 for d in kind.shape.dim], dtype=np.int64))


def _fixed(model: onnx.ModelProto) -> dict[str, Range]:
    return {
        node.output[0]: _FIXED[node.op_type]
        for node in model.graph.node if node.op_type in _FIXED
    }  # fmt: skip
