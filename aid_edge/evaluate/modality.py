"""What an input holds (an image, a series, tokens, a row of a table), told from its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from device_agent.contract.manifest import Layout, Normalize, PreprocessStep

Kind = Literal["image", "series", "tokens", "table"]

MIN_IMAGE_PIXELS = 4
"""Shortest side of what is taken for an image."""

MIN_WAVEFORM = 256
"""Values in a row from which a float input of rank 2 is a waveform, not a row of a table."""

_COLORS = (1, 3)
_PIXEL_MAX = 255.0
_RANGE_SAMPLES, _MIN_RANGE_SAMPLES = 256, 16
_RANGE_VALUES = 4_000_000
"""Ranges are of so many samples and values at most: they are taken in double precision."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Modality:
    """What the main input of a model holds, and which values it may take.

    Attributes:
        kind: What it is.
        input: Name of the input.
        axis: Of the channels of an image or series, without the batch axis; None without channels.
        low: Smallest value, per channel or feature, in the shape that broadcasts to a sample.
        high: Largest value, likewise.
        mean: Of the data, likewise: what stands for "nothing known".
        vocabulary: Tokens that occur in the data, without the special ones; empty otherwise.
        special: Tokens that frame or pad a sentence and are never touched.
        pad: What fills the end of a sentence that got shorter.
    """

    kind: Kind
    input: str
    axis: int | None
    low: Array
    high: Array
    mean: Array
    vocabulary: tuple[int, ...] = ()
    special: frozenset[int] = frozenset()
    pad: int = 0


def detect(
    inputs: Mapping[str, Array], preprocess: Sequence[PreprocessStep] = ()
) -> Modality | None:
    """Return what the main input holds, or None when nothing here fits it.

    The main input is the largest of the floating ones; where all are whole numbers, the one with
    the most different values (token numbers rather than a mask).

    Args:
        inputs: Data of the model, array [n, ...] per input.
        preprocess: Steps of the model card: a ``normalize`` step says what range pixels have.
    """
    floats = {name: a for name, a in inputs.items() if a.dtype.kind == "f" and a.ndim > 1}
    if floats:
        name = max(floats, key=lambda key: floats[key][0].size)
        return _of_floats(name, floats[name], preprocess)
    whole = {name: a for name, a in inputs.items() if a.dtype.kind in "iu"}
    pictures = {name: a for name, a in whole.items() if a.dtype == np.uint8 and _is_image(a)}
    if pictures:
        name = max(pictures, key=lambda key: pictures[key][0].size)
        return _of_floats(name, pictures[name], preprocess)
    sentences = {name: a for name, a in whole.items() if a.ndim == 2 and a.shape[1] > 1}
    if not sentences:
        return None
    name = max(sentences, key=lambda key: len(np.unique(sentences[key])))
    return _of_tokens(name, sentences[name])


def _is_image(array: Array) -> bool:
    return array.ndim == 4 and _channel_axis(array, ()) is not None


def _channel_axis(array: Array, preprocess: Sequence[PreprocessStep]) -> int | None:
    shape = array.shape[1:]
    axes: tuple[int, ...] = (0, 2)
    for step in preprocess:
        if isinstance(step, Layout):
            axes = (0,) if step.order == "NCHW" else (2,)
    for axis in axes:
        sides = [d for i, d in enumerate(shape) if i != axis]
        if shape[axis] in _COLORS and min(sides) >= MIN_IMAGE_PIXELS:
            return axis
    return None


def _of_floats(name: str, array: Array, preprocess: Sequence[PreprocessStep]) -> Modality | None:
    count = max(_MIN_RANGE_SAMPLES, _RANGE_VALUES // max(1, int(np.prod(array.shape[1:]))))
    some = array[: min(_RANGE_SAMPLES, count)]
    if array.ndim == 4:
        axis = _channel_axis(array, preprocess)
        if axis is None:
            return None
        low, high, mean = _ranges(some, axis)
        for step in preprocess:
            if isinstance(step, Normalize):
                low, high = _declared(step, low, axis)
        return Modality("image", name, axis, low, high, mean)
    if array.ndim == 3:
        # The shorter axis holds the channels: ten sensors, a thousand instants.
        axis = 0 if array.shape[1] <= array.shape[2] else 1
        return Modality("series", name, axis, *_ranges(some, axis))
    if array.ndim == 2:
        if array.shape[1] >= MIN_WAVEFORM:
            return Modality("series", name, None, *_ranges(some, None))
        return Modality("table", name, 0, *_ranges(some, 0))
    return None


def _ranges(array: Array, axis: int | None) -> tuple[Array, Array, Array]:
    over = tuple(i for i in range(array.ndim) if axis is None or i != axis + 1)
    values = array.astype(np.float64)

    def shaped(found: Array) -> Array:
        return np.asarray(found[0])  # without the batch axis, which keepdims kept

    return (
        shaped(values.min(axis=over, keepdims=True)),
        shaped(values.max(axis=over, keepdims=True)),
        shaped(values.mean(axis=over, keepdims=True)),
    )


def _declared(step: Normalize, like: Array, axis: int) -> tuple[Array, Array]:
    """Return what black and white become by ``(x - mean) / std`` on values 0 to 255."""
    shape = [1] * like.ndim
    shape[axis] = -1
    mean, std = np.asarray(step.mean).reshape(shape), np.asarray(step.std).reshape(shape)
    whole = np.zeros_like(like)
    return (0 - mean) / std + whole, (_PIXEL_MAX - mean) / std + whole


def _of_tokens(name: str, array: Array) -> Modality:
    tokens, counts = np.unique(array[:, -1], return_counts=True)
    # Sentences of one batch are padded to one length: what most of them end with.
    pad = int(tokens[counts.argmax()]) if counts.max() > 1 else 0
    special = {pad}
    if len(array) > 1 and len(first := np.unique(array[:, 0])) == 1:
        special.add(int(first[0]))
    last = {int(row[row != pad][-1]) for row in array if (row != pad).any()}
    if len(array) > 1 and len(last) == 1:
        special |= last
    vocabulary = tuple(int(t) for t in np.unique(array) if int(t) not in special)
    edge = np.zeros((1,))
    return Modality(
        "tokens", name, None, edge, edge + array.max(), edge, vocabulary, frozenset(special), pad
    )
