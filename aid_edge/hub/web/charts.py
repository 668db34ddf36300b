"""Geometry of the charts that the server draws as SVG; the templates write the elements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aid_edge.hub.rows import Bucket
from aid_edge.hub.web.texts import duration

WIDTH, HEIGHT = 460.0, 243.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 8.0, 58.0, 30.0
"""``TOP`` is room for the labels of three marks."""
MAX_BARS = 40
_BASE = HEIGHT - BOTTOM
_INNER = WIDTH - LEFT - RIGHT
_MARK_ROOM = 1.05
"""How far beyond a line the axis goes on, as a ratio."""
_TICK_GAP = 62.0
"""Least distance between two labels of the time axis."""


@dataclass(frozen=True)
class Bar:
    """A rectangle, and what it stands for."""

    x: float
    y: float
    width: float
    height: float
    label: str
    count: int


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str

    @property
    def anchor(self) -> str:
        """Side of the label that stands at ``at``, so that it stays within the chart."""
        return "start" if self.at < (LEFT + WIDTH - RIGHT) / 2 else "end"


@dataclass(frozen=True)
class Chart:
    """A bar chart in user units of ``WIDTH`` by ``HEIGHT``.

    Attributes:
        marks: Vertical lines: quantiles or a deadline.
    """

    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Tick, ...] = ()
    width: float = WIDTH
    height: float = HEIGHT
    base: float = _BASE
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP


def latency_chart(
    buckets: Sequence[Bucket], marks: Sequence[tuple[str, float | None]] = ()
) -> Chart | None:
    """Return the histogram of latencies on a logarithmic axis, or None without any.

    Neighboring buckets are drawn as one bar, so that there are at most ``MAX_BARS``.

    Args:
        buckets: Of one logarithmic grid, ascending, in seconds; empty ones may be left out.
        marks: Name and place in seconds of vertical lines; the axis reaches to all of them.
    """
    if not buckets:
        return None
    groups = merge_buckets(buckets, MAX_BARS)
    lines = [(name, s) for name, s in marks if s is not None and s > 0]
    low_s = min(groups[0].low_s, *(s / _MARK_ROOM for _, s in lines), groups[0].low_s)
    high_s = max(groups[-1].high_s, *(s * _MARK_ROOM for _, s in lines), groups[-1].high_s)
    low, high = math.log(low_s), math.log(high_s)

    def place(seconds: float) -> float:
        part = (math.log(seconds) - low) / (high - low)
        return LEFT + min(max(part, 0.0), 1.0) * _INNER

    top, y_ticks = _count_axis(max(g.count for g in groups))
    bars = tuple(
        _bar(
            place(g.low_s),
            place(g.high_s),
            g.count,
            top,
            f"{duration(g.low_s)} to {duration(g.high_s)}",
        )
        for g in groups
    )
    named = tuple(Tick(place(s), f"{name} {duration(s)}") for name, s in lines)
    return Chart(bars, _time_ticks(low_s, high_s, place), y_ticks, named)


def share_chart(counts: Sequence[int]) -> Chart | None:
    """Return the chart of counts in equal bins of 0..1, or None without any."""
    if not any(counts):
        return None
    top, y_ticks = _count_axis(max(counts))
    step = _INNER / len(counts)
    bars = tuple(
        _bar(
            LEFT + i * step,
            LEFT + (i + 1) * step,
            n,
            top,
            f"{i / len(counts):.1f} to {(i + 1) / len(counts):.1f}",
        )
        for i, n in enumerate(counts)
    )
    ticks = tuple(Tick(LEFT + p * _INNER, f"{p:g}") for p in (0, 0.25, 0.5, 0.75, 1))
    return Chart(bars, ticks, y_ticks)


def merge_buckets(buckets: Sequence[Bucket], most: int) -> list[Bucket]:
    """Return the buckets as at most ``most`` equally wide ones (by ratio), empty ones included."""
    ratio = math.log(buckets[0].high_s / buckets[0].low_s)
    first = math.log(buckets[0].low_s)
    steps = [round((math.log(b.low_s) - first) / ratio) for b in buckets]
    each = math.ceil((steps[-1] + 1) / most)
    counts = [0] * (steps[-1] // each + 1)
    for step, bucket in zip(steps, buckets, strict=True):
        counts[step // each] += bucket.count
    return [
        Bucket(
            math.exp(first + i * each * ratio),
            math.exp(first + (i + 1) * each * ratio),
            number,
        )
        for i, number in enumerate(counts)
    ]


def _bar(left: float, right: float, number: int, top: int, label: str) -> Bar:
    height = (_BASE - TOP) * number / top
    gap = min(1.0, (right - left) / 4)
    return Bar(
        round(left + gap / 2, 2),
        round(_BASE - height, 2),
        round(right - left - gap, 2),
        round(height, 2),
        label,
        number,
    )


def _count_axis(largest: int) -> tuple[int, tuple[Tick, ...]]:
    """Return the top of the axis and its ticks: whole numbers in steps of 1, 2 or 5 times 10^n."""
    step = 1
    while largest / step > 4:
        digit = int(str(step)[0])
        step = step * 5 // 2 if digit == 2 else step * 2
    top = math.ceil(largest / step) * step
    ticks = [n * step for n in range(top // step + 1)]
    return top, tuple(Tick(_BASE - (_BASE - TOP) * n / top, _short(n)) for n in ticks)


def _short(number: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return str(number)


def _time_ticks(low_s: float, high_s: float, place: Callable[[float], float]) -> tuple[Tick, ...]:
    """Return ticks at 1, 2 and 5 times powers of ten, or at fewer, so that labels have room."""
    powers = range(math.floor(math.log10(low_s)), math.ceil(math.log10(high_s)) + 1)
    for digits, each in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3)):
        places = [digit * 10.0**power for power in powers if power % each == 0 for digit in digits]
        found = [Tick(place(s), _round(s)) for s in places if low_s <= s <= high_s]
        if all(b.at - a.at >= _TICK_GAP for a, b in itertools.pairwise(found)):
            break
    if len(found) < 2:
        return Tick(LEFT, duration(low_s)), Tick(WIDTH - RIGHT, duration(high_s))
    return tuple(found)


def _round(seconds: float) -> str:
    return duration(float(f"{seconds:.3g}")).replace(".0 ", " ")
