"""Inputs with parts hidden: what is hidden, where, and what stands in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aid_edge.evaluate.conditions import words
from aid_edge.evaluate.modality import Modality

IMAGE_CELLS = 8
"""Cells along each side of an image; a square of two by two cells is hidden at a time."""

SERIES_SEGMENTS = 16
MAX_CHANNELS = 8
"""Series of more channels are divided by time only."""

MAX_PARTS = 96
"""Words or features; more of them are hidden in groups of neighbors."""

RISE_CELLS = 7
RISE_KEPT = 0.5

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Hidden:
    """One input in many copies, each with something hidden.

    Attributes:
        inputs: Array [k, ...] per input of the model.
        shares: How much of each part a copy hides, [k, parts], 0 to 1.
        names: Of the parts.
        grid: Rows and columns of the parts; (1, parts) where they are in a line.
        method: How and with what parts were hidden, for people.
        is_random: Whether what is hidden was drawn: then only differences between parts count.
    """

    inputs: dict[str, Array]
    shares: npt.NDArray[np.float64]
    names: tuple[str, ...]
    grid: tuple[int, int]
    method: str
    is_random: bool = False


def hide(sample: Mapping[str, Array], modality: Modality) -> Hidden:
    """Return a sample with each of its parts hidden in turn (Zeiler and Fergus 2014, section 4.2).

    Args:
        sample: Array [1, ...] per input.
        modality: What the main input holds, and what stands for "nothing known".
    """
    match modality.kind:
        case "image":
            return _squares(sample, modality)
        case "series":
            return _segments(sample, modality)
        case "tokens":
            return _words(sample, modality)
        case "table":
            return _features(sample, modality)


def rise(sample: Mapping[str, Array], modality: Modality, masks: int, seed: int) -> Hidden:
    """Return an image behind random soft masks (RISE: Petsiuk, Das and Saenko 2018).

    Args:
        sample: Array [1, ...] per input; the main one is an image.
        modality: Of an image.
        masks: How many.
        seed: Of the masks.
    """
    main = sample[modality.input][0]
    axis = modality.axis or 0
    height, width = (d for i, d in enumerate(main.shape) if i != axis)
    random = np.random.default_rng(seed)
    cells = random.random((masks, RISE_CELLS + 1, RISE_CELLS + 1)) < RISE_KEPT
    shifts = random.random((masks, 2))
    hidden, shares = [], []
    for kept, shift in zip(cells, shifts, strict=True):
        rows = np.linspace(0, RISE_CELLS - 1, height) + shift[0]
        columns = np.linspace(0, RISE_CELLS - 1, width) + shift[1]
        mask = _interpolated(kept.astype(np.float64), rows, columns)
        hidden.append(1 - mask)
        shares.append([1 - mask[part].mean() for part in _cells(height, width)])
    inputs = _blended(sample, modality, np.stack(hidden))
    rows, columns = _sides(height, width)
    return Hidden(
        inputs, np.asarray(shares), _cell_names(rows, columns), (rows, columns),
        f"{masks} random soft masks, the data's mean behind them (RISE)", is_random=True,
    )  # fmt: skip


def _interpolated(values: Array, rows: Array, columns: Array) -> Array:
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = (rows - top)[:, None], (columns - left)[None, :]
    bottom, other = np.minimum(top + 1, len(values) - 1), np.minimum(left + 1, len(values) - 1)
    upper = values[top][:, left] * (1 - right) + values[top][:, other] * right
    lower = values[bottom][:, left] * (1 - right) + values[bottom][:, other] * right
    return np.asarray(upper * (1 - down) + lower * down)


def _sides(height: int, width: int) -> tuple[int, int]:
    return min(IMAGE_CELLS, height), min(IMAGE_CELLS, width)


def _edges(length: int, count: int) -> list[int]:
    return [i * length // count for i in range(count + 1)]


def _cells(height: int, width: int) -> list[tuple[slice, slice]]:
    rows, columns = _sides(height, width)
    down, across = _edges(height, rows), _edges(width, columns)
    return [
        (slice(down[r], down[r + 1]), slice(across[c], across[c + 1]))
        for r in range(rows)
        for c in range(columns)
    ]


def _cell_names(rows: int, columns: int) -> tuple[str, ...]:
    def third(i: int, count: int, words: tuple[str, str, str]) -> str:
        return words[min(2, 3 * i // count)]

    names = []
    for r in range(rows):
        for c in range(columns):
            down = third(r, rows, ("upper", "", "lower"))
            across = third(c, columns, ("left", "", "right"))
            names.append(" ".join(w for w in (down, across) if w) or "middle")
    return tuple(names)


def _blended(sample: Mapping[str, Array], modality: Modality, hidden: Array) -> dict[str, Array]:
    """Return copies of an image; ``hidden`` [k, H, W] says how much the mean shows."""
    main = sample[modality.input]
    weights = np.expand_dims(hidden, 1 + (modality.axis or 0))
    blended = main * (1 - weights) + modality.mean * weights
    if main.dtype.kind in "iu":
        blended = np.rint(blended)
    copies = {name: np.repeat(array, len(hidden), axis=0) for name, array in sample.items()}
    return {**copies, modality.input: blended.astype(main.dtype)}


def _squares(sample: Mapping[str, Array], modality: Modality) -> Hidden:
    main = sample[modality.input][0]
    axis = modality.axis or 0
    height, width = (d for i, d in enumerate(main.shape) if i != axis)
    rows, columns = _sides(height, width)
    cells = _cells(height, width)
    hidden, shares = [], []
    for r in range(max(1, rows - 1)):
        for c in range(max(1, columns - 1)):
            covered = [
                rr * columns + cc
                for rr in (r, min(r + 1, rows - 1))
                for cc in (c, min(c + 1, columns - 1))
            ]
            mask, share = np.zeros((height, width)), np.zeros(len(cells))
            for part in covered:
                mask[cells[part]] = 1.0
                share[part] = 1.0
            hidden.append(mask)
            shares.append(share)
    return Hidden(
        _blended(sample, modality, np.stack(hidden)), np.stack(shares),
        _cell_names(rows, columns), (rows, columns),
        "squares of a quarter of each side hidden in turn by the data's mean",
    )  # fmt: skip


def _segments(sample: Mapping[str, Array], modality: Modality) -> Hidden:
    main = sample[modality.input][0]
    time = main.ndim - 1 if modality.axis is None else 1 - modality.axis
    channels = 1 if modality.axis is None else main.shape[modality.axis]
    rows = channels if channels <= MAX_CHANNELS else 1
    count = min(SERIES_SEGMENTS, main.shape[time])
    edges = _edges(main.shape[time], count)
    mean = np.broadcast_to(modality.mean, main.shape)
    copies, names = [], []
    for channel in range(rows):
        for i in range(count):
            places: list[Any] = [slice(None)] * main.ndim
            places[time] = slice(edges[i], edges[i + 1])
            if rows > 1 and modality.axis is not None:
                places[modality.axis] = channel
            copy = main.copy()
            copy[tuple(places)] = mean[tuple(places)]
            copies.append(copy)
            where = f"{100 * i // count} to {100 * (i + 1) // count} % of the time"
            names.append(f"channel {channel}, {where}" if rows > 1 else where)
    return Hidden(
        _with(sample, modality, copies), np.eye(len(copies)), tuple(names), (rows, count),
        "segments of time hidden in turn by the data's mean",
    )  # fmt: skip


def _groups(places: Array) -> list[Array]:
    return np.array_split(places, min(len(places), MAX_PARTS)) if len(places) else []


def _words(sample: Mapping[str, Array], modality: Modality) -> Hidden:
    sentence = sample[modality.input][0]
    groups = _groups(words(sentence, modality))
    copies: dict[str, list[Array]] = {name: [] for name in sample}
    for group in groups:
        for name, array in sample.items():
            row = array[0]
            if array.shape == sample[modality.input].shape:
                fill = modality.pad if name == modality.input else 0
                row = np.append(np.delete(row, group), np.full(len(group), fill, row.dtype))
            copies[name].append(row)
    names = tuple(
        f"token {sentence[g[0]]} at {g[0]}" if len(g) == 1 else f"tokens {g[0]} to {g[-1]}"
        for g in groups
    )
    inputs = {name: np.stack(rows) if rows else sample[name][:0] for name, rows in copies.items()}
    return Hidden(inputs, np.eye(len(groups)), names, (1, len(groups)), "words left out in turn")


def _features(sample: Mapping[str, Array], modality: Modality) -> Hidden:
    main = sample[modality.input][0]
    groups = _groups(np.arange(main.size))
    copies = []
    for group in groups:
        copy = main.copy()
        copy[group] = modality.mean[group]
        copies.append(copy)
    names = tuple(f"value {g[0]}" if len(g) == 1 else f"values {g[0]} to {g[-1]}" for g in groups)
    return Hidden(
        _with(sample, modality, copies), np.eye(len(groups)), names, (1, len(groups)),
        "values replaced in turn by the data's mean",
    )  # fmt: skip


def _with(sample: Mapping[str, Array], modality: Modality, copies: list[Array]) -> dict[str, Array]:
    inputs = {name: np.repeat(array, len(copies), axis=0) for name, array in sample.items()}
    return {**inputs, modality.input: np.stack(copies).astype(sample[modality.input].dtype)}
