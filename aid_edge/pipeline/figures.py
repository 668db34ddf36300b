"""The one figure of the report: quality against latency, with size as area. Pure geometry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from aid_edge.pipeline.findings import OUTRANKED, Candidate, ProfileFinding
from aid_edge.pipeline.text import milliseconds, percent, size

WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 74, 24, 18, 56
MAX_RADIUS, MIN_RADIUS = 22.0, 5.0
ACCURACY_ENOUGH = 100
"""Labelled samples from which accuracy is drawn rather than agreement with the source."""

_LABEL_WIDTH, _LABEL_HEIGHT = 18.0, 15.0
_X_STEPS = (1.0, 2.0, 5.0)
_FINE_X_STEPS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
_Y_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25)
_MAX_Y_TICKS = 6
_MIN_X_TICKS = 3

_Circle = tuple[float, float, float]


@dataclass(frozen=True)
class Point:
    """One candidate as drawn; coordinates are in SVG user units."""

    number: int
    x: float
    y: float
    radius: float
    low: float
    high: float
    label_x: float
    label_y: float
    kind: str
    tooltip: str


@dataclass(frozen=True)
class Tick:
    """One mark of an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Figure:
    """Everything the template draws.

    Attributes:
        limit_x: Left edge of the region over the latency limit, or None when the limit is not
            in view or latency is not known.
    """

    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_title: str
    y_title: str
    limit_x: float | None
    limit_text: str
    summary: str


@dataclass(frozen=True)
class _Datum:
    number: int
    candidate: Candidate
    latency_s: float
    quality: float
    low: float
    high: float


def pareto(found: ProfileFinding, limit_s: float | None) -> Figure | None:
    """Return the figure of one profile, or None when nothing was measured.

    Args:
        found: The profile; candidates are numbered from 1 in its order.
        limit_s: Bound of the p95 latency in seconds, where latency is known.
    """
    by_accuracy = any(
        c.accuracy is not None and c.accuracy.n >= ACCURACY_ENOUGH for c in found.candidates
    )
    data = [d for i, c in enumerate(found.candidates) if (d := _datum(i + 1, c, by_accuracy))]
    if not data:
        return None
    x_low, x_high = _x_range(data)
    y_low, y_high, step = _y_range(data)

    def to_x(seconds: float) -> float:
        share = math.log(seconds / x_low) / math.log(x_high / x_low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def to_y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    largest = max(d.candidate.value("artifact_bytes") or 1.0 for d in data)
    circles = [
        (
            to_x(d.latency_s),
            to_y(d.quality),
            max(
                MIN_RADIUS,
                MAX_RADIUS * math.sqrt((d.candidate.value("artifact_bytes") or 1.0) / largest),
            ),
        )
        for d in data
    ]
    placed: list[Point] = []
    for d, (x, y, radius) in zip(data, circles, strict=True):
        label = _free_place((x, y, radius), circles, placed)
        placed.append(
            Point(
                number=d.number, x=x, y=y, radius=radius, low=to_y(d.low), high=to_y(d.high),
                label_x=label[0], label_y=label[1], kind=_kind(d.candidate, found.chosen),
                tooltip=_tooltip(d),
            )
        )  # fmt: skip
    limit_x = None
    if limit_s is not None and x_low < limit_s < x_high:
        limit_x = to_x(limit_s)
    y_title = "top-1 accuracy" if by_accuracy else "agreement with the source"
    if not by_accuracy and data[0].candidate.fidelity is not None:
        y_title = y_title if data[0].candidate.fidelity.agreement is not None else "cosine"
    kind = {
        "host": "measured on the host", "calibrated": "estimate, calibrated",
        "uncalibrated": "of the host: uncalibrated for the device",
    }[found.latency]  # fmt: skip
    return Figure(
        points=tuple(placed),
        x_ticks=tuple(Tick(to_x(v), milliseconds(v)) for v in _x_values(x_low, x_high)),
        y_ticks=tuple(Tick(to_y(v), _y_text(v, step)) for v in _y_values(y_low, y_high, step)),
        x_title=f"p50 latency, {kind} (log scale)",
        y_title=y_title,
        limit_x=limit_x,
        limit_text="" if limit_s is None else f"p95 limit {milliseconds(limit_s)}",
        summary=f"{len(data)} candidates: {y_title} against p50 latency {kind}; "
        "area is file size. The tables below hold the same figures.",
    )


def _datum(number: int, candidate: Candidate, by_accuracy: bool) -> _Datum | None:
    latency = candidate.value("latency_p50")
    fidelity, accuracy = candidate.fidelity, candidate.accuracy
    if latency is None or fidelity is None or latency <= 0:
        return None
    if by_accuracy and accuracy is not None:
        quality = (accuracy.candidate, accuracy.low, accuracy.high)
    elif fidelity.agreement is not None:
        low, high = fidelity.agreement_low, fidelity.agreement_high
        quality = (
            fidelity.agreement,
            fidelity.agreement if low is None else low,
            fidelity.agreement if high is None else high,
        )
    else:
        low, high = fidelity.cosine_low, fidelity.cosine_high
        quality = (
            fidelity.cosine,
            fidelity.cosine if low is None else low,
            fidelity.cosine if high is None else high,
        )
    return _Datum(number, candidate, latency, *quality)


def _x_range(data: Sequence[_Datum]) -> tuple[float, float]:
    values = [d.latency_s for d in data]
    # Room for the circles on both sides, and at least a factor of two in view.
    low, high = min(values) / 1.25, max(values) * 1.25
    if high / low < 2:
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(2), middle * math.sqrt(2)
    return low, high


def _x_values(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [step * 10.0**decade for decade in decades for step in _X_STEPS]
    inside = [v for v in values if low <= v <= high]
    if len(inside) > _MIN_X_TICKS:
        return inside
    fine = [step * 10.0**decade for decade in decades for step in _FINE_X_STEPS]
    return [v for v in fine if low <= v <= high] or [low, high]


def _y_range(data: Sequence[_Datum]) -> tuple[float, float, float]:
    low, high = min(d.low for d in data), max(d.high for d in data)
    spread = max(high - low, 0.005)
    low, high = low - 0.08 * spread, high + 0.08 * spread
    step = next((s for s in _Y_STEPS if (high - low) / s <= _MAX_Y_TICKS), _Y_STEPS[-1])
    return low, high, step


def _y_values(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step), math.floor(high / step)
    return [i * step for i in range(first, last + 1) if i * step <= 1]


def _y_text(value: float, step: float) -> str:
    return f"{value * 100:.1f} %" if step < 0.01 else f"{value * 100:.0f} %"


def _kind(candidate: Candidate, chosen: str | None) -> str:
    if candidate.id == chosen:
        return "chosen"
    if candidate.outcome is not None and candidate.outcome.code != OUTRANKED:
        return "refused"
    return "other"


def _free_place(
    own: _Circle, circles: Sequence[_Circle], placed: Sequence[Point]
) -> tuple[float, float]:
    """Return where a label meets no circle and no other label, and does not leave the figure."""
    x, y, radius = own
    gap = radius + 11
    around = [
        (gap, 4), (-gap, 4), (gap, -14), (gap, 22), (-gap, -14), (-gap, 22), (0, gap + 8),
        (gap + 22, 4), (-gap - 22, 4), (gap, 42), (-gap, 42), (gap + 22, 26), (-gap - 22, 26),
    ]  # fmt: skip
    for dx, dy in around:
        at = (x + dx, y + dy)
        is_inside = LEFT < at[0] < WIDTH - RIGHT and TOP < at[1] < HEIGHT - BOTTOM + 12
        is_free = all(
            abs(at[0] - p.label_x) > _LABEL_WIDTH or abs(at[1] - p.label_y) > _LABEL_HEIGHT
            for p in placed
        )
        is_clear = all(math.hypot(at[0] - cx, at[1] - 4 - cy) > r + 6 for cx, cy, r in circles)
        if is_inside and is_free and is_clear:
            return at
    return x + gap, y + 4


def _tooltip(d: _Datum) -> str:
    p95, size_bytes = d.candidate.value("latency_p95"), d.candidate.value("artifact_bytes")
    outcome = "" if d.candidate.outcome is None else f"; {d.candidate.outcome.code}"
    return (
        f"{d.number}: {d.candidate.id}: {percent(d.quality)} "
        f"[{percent(d.low)}, {percent(d.high)}], "
        f"p50 {milliseconds(d.latency_s)}, p95 {milliseconds(p95 or 0)}, "
        f"{size(size_bytes or 0)}{outcome}"
    )
