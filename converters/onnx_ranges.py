"""Which range of an activation gets the 256 codes, given a histogram of it. Pure.

Every range includes zero, because padding and clipping need an exact zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aid_edge.errors import ConversionError

BINS = 2048
"""Of each histogram; ONNX Runtime's own 128 make entropy calibration equal to the extremes."""

LEVELS = 256
PERCENTILE = 99.99
"""Share of values inside the range, in per cent; the rest is split between both ends."""

_SHRINKS = np.linspace(0.3, 1.0, 71)
"""Candidate ranges as shares of the extremes."""

_SWEEPS = 3
_TINY = 1e-12


@dataclass(frozen=True)
class Histogram:
    """Values of one tensor, counted.

    Attributes:
        low: Smallest value seen.
        high: Largest value seen.
        counts: Number of values in each of equally wide bins between them.
    """

    low: float
    high: float
    counts: NDArray[np.int64]

    @property
    def centers(self) -> NDArray[np.float64]:
        """Middle of each bin."""
        width = (self.high - self.low) / len(self.counts)
        return np.asarray(self.low + width * (np.arange(len(self.counts)) + 0.5))


Range = tuple[float, float]


def choose(histogram: Histogram, method: str, *, symmetric: bool = False) -> Range:
    """Return the range for a tensor by ``min-max``, ``percentile``, ``entropy`` or ``mse``.

    Args:
        histogram: What was observed.
        method: As in :class:`aid_edge.recipe.StaticInt8`.
        symmetric: The range will be widened to one that is symmetric about zero.

    Raises:
        ConversionError: There is no such method.
    """
    if method == "min-max":
        return _with_zero(histogram.low, histogram.high)
    chooser = _CHOOSERS.get(method)
    if chooser is None:
        known = ", ".join(["min-max", *_CHOOSERS])
        raise ConversionError(f"ranges cannot be chosen by {method}; only by {known}")
    if not histogram.counts.any() or histogram.high <= histogram.low:
        return _with_zero(histogram.low, histogram.high)
    return chooser(_mirrored(histogram) if symmetric else histogram)


def _percentile(histogram: Histogram) -> Range:
    total = histogram.counts.sum()
    outside = (1 - PERCENTILE / 100) * total
    # A tensor that begins or ends at zero, as after ReLU, has outliers on one side only.
    sides = int(histogram.low < 0) + int(histogram.high > 0)
    outside /= max(sides, 1)
    below = np.cumsum(histogram.counts)
    above = np.cumsum(histogram.counts[::-1])
    width = (histogram.high - histogram.low) / len(histogram.counts)
    first = int(np.searchsorted(below, outside, side="right")) if histogram.low < 0 else 0
    last = int(np.searchsorted(above, outside, side="right")) if histogram.high > 0 else 0
    return _with_zero(histogram.low + first * width, histogram.high - last * width)


def _mse(histogram: Histogram) -> Range:
    """Return the range with the least mean squared error of rounding and clipping.

    Both ends are moved in turn, each to its best place given the other.
    """
    values, weights = histogram.centers, histogram.counts / histogram.counts.sum()
    low, high = _with_zero(histogram.low, histogram.high)
    for _ in range(_SWEEPS):
        lows = low if low == 0 else min(histogram.low, 0.0) * _SHRINKS
        low = _best(values, weights, np.atleast_1d(lows), np.array([high]))[0]
        highs = high if high == 0 else max(histogram.high, 0.0) * _SHRINKS
        high = _best(values, weights, np.array([low]), np.atleast_1d(highs))[1]
    return low, high


def _best(
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    lows: NDArray[Any],
    highs: NDArray[Any],
) -> Range:
    low, high = np.broadcast_arrays(lows[:, None], highs[:, None])
    step = np.maximum((high - low) / (LEVELS - 1), _TINY)
    zero = np.round(-low / step)
    codes = np.clip(np.round(values / step) + zero, 0, LEVELS - 1)
    error = ((codes - zero) * step - values) ** 2 @ weights
    index = int(np.argmin(error))
    return float(low[index, 0]), float(high[index, 0])


def _entropy(histogram: Histogram) -> Range:
    """Return the range that loses least information, by Kullback-Leibler divergence.

    After Migacz, "8-bit inference with TensorRT" (GTC 2017), with one threshold for both signs.
    As there, exact zeros do not count: after ReLU they would outweigh everything else.
    """
    values = histogram.centers
    counts = histogram.counts.astype(np.float64)
    zero = int(np.argmin(np.abs(values)))
    beside = np.concatenate([counts[max(zero - 1, 0) : zero], counts[zero + 1 : zero + 2]])
    counts[zero] = min(counts[zero], beside.max(initial=0.0))
    low, high = _with_zero(histogram.low, histogram.high)
    extreme = max(-low, high)
    if not counts.any():
        return low, high
    best, found = np.inf, (low, high)
    for share in _SHRINKS[::-1]:
        end = float(extreme * share)
        tried = (max(low, -end), min(high, end))
        divergence = _divergence(values, counts, tried)
        if divergence < best:
            best, found = divergence, tried
    return found


def _divergence(values: NDArray[np.float64], counts: NDArray[np.float64], tried: Range) -> float:
    """Return KL(P || Q): P is clipped to the range, Q spreads each code over its bins."""
    low, high = tried
    inside = (values >= low) & (values <= high)
    if not inside.any():
        return np.inf
    p = counts[inside].copy()
    p[0] += counts[values < low].sum()
    p[-1] += counts[values > high].sum()
    kept = counts[inside]
    code = np.floor((values[inside] - low) / (high - low) * LEVELS).astype(int)
    code = np.clip(code, 0, LEVELS - 1)
    occupied = kept > 0
    mass = np.bincount(code, kept, LEVELS)
    bins = np.bincount(code, occupied, LEVELS)
    q = np.where(occupied, mass[code] / np.maximum(bins[code], 1), 0.0)
    if not q.any():
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    # What was clipped onto an empty bin costs as much as the smallest probability does.
    q = np.maximum(q, _TINY)
    live = p > 0
    return float(np.sum(p[live] * np.log(p[live] / q[live])))


def _mirrored(histogram: Histogram) -> Histogram:
    """Return the histogram of absolute values and their negatives."""
    end = max(abs(histogram.low), abs(histogram.high))
    edges = np.linspace(-end, end, len(histogram.counts) + 1)
    both = np.concatenate([histogram.centers, -histogram.centers])
    weights = np.concatenate([histogram.counts, histogram.counts])
    counts, _ = np.histogram(both, edges, weights=weights)
    return Histogram(-end, end, counts)


def _with_zero(low: float, high: float) -> Range:
    return min(low, 0.0), max(high, 0.0)


_CHOOSERS: dict[str, Callable[[Histogram], Range]] = {
    "percentile": _percentile, "mse": _mse, "entropy": _entropy,
}  # fmt: skip
