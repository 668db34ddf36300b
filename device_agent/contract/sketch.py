"""A mergeable latency sketch: counts in logarithmic buckets (contract §6).

The bucketing is DDSketch's (Masson, Rim, Lee: "DDSketch: A Fast and Fully-Mergeable Quantile
Sketch with Relative-Error Guarantees", PVLDB 12(12), 2019): a value x falls into bucket
ceil(log_gamma(x)), so any quantile is known within a fixed relative error, and two sketches add
up exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

import msgspec

from device_agent.contract.manifest import Natural, NonNegative

GAMMA = 1.05
"""Ratio of one bucket's bounds: quantiles are exact within (GAMMA - 1) / (GAMMA + 1) = 2.4 %."""

MIN_VALUE_S = 1e-6
"""Shorter times, in seconds, count as this."""

MAX_VALUE_S = 3600.0
"""Longer times, in seconds, count as this; with MIN_VALUE_S it bounds the number of buckets."""


MIN_BUCKET = -283
MAX_BUCKET = 168
"""Bounds of bucket indices: those of MIN_VALUE_S and MAX_VALUE_S."""

Bucket = Annotated[int, msgspec.Meta(ge=MIN_BUCKET, le=MAX_BUCKET)]


class Sketch(msgspec.Struct, frozen=True):
    """Durations in seconds, as bucket counts.

    Attributes:
        counts: Bucket index to number of values in ``(GAMMA**(i-1), GAMMA**i]`` seconds.
        total_s: Sum of all values in seconds.
    """

    counts: dict[Bucket, Natural] = {}
    total_s: NonNegative = 0.0

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.counts.values())

    def quantile(self, q: float) -> float | None:
        """Return the ``q``-quantile in seconds, or None when the sketch is empty."""
        rank = q * (self.count - 1)
        seen = 0
        for index in sorted(self.counts):
            seen += self.counts[index]
            if seen > rank:
                return 2 * GAMMA**index / (GAMMA + 1)
        return None


def bucket_of(seconds: float) -> int:
    """Return the bucket index of a duration in seconds; NaN and negatives count as the smallest."""
    if math.isnan(seconds):
        return MIN_BUCKET
    bounded = min(max(seconds, MIN_VALUE_S), MAX_VALUE_S)
    return math.ceil(math.log(bounded, GAMMA))


def upper_bound_s(index: int) -> float:
    """Return the upper bound of bucket ``index`` in seconds."""
    return GAMMA**index


def merge(sketches: Iterable[Sketch]) -> Sketch:
    """Return the sketch of all values of ``sketches`` together."""
    counts: dict[int, int] = {}
    total_s = 0.0
    for sketch in sketches:
        total_s += sketch.total_s
        for index, count in sketch.counts.items():
            counts[index] = counts.get(index, 0) + count
    return Sketch(counts=counts, total_s=total_s)
