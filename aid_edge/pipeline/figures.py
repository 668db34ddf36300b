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
    is_float: bool
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
        area: What the area of a circle is.
        front: Corners of the line through the candidates that no other beats; empty without one.
        limit_x: Left edge of the region over the latency limit, or None when the limit is not
            in view or latency is not known.
    """

    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_title: str
    y_title: str
    area: str
    front: str
    limit_x: float | None
    limit_text: str
    summary: str


@dataclass(frozen=True)
class _Datum:
    number: int
    candidate: Candidate
    x: float
    weight: float
    quality: float
    low: float
    high: float


def pareto(
    found: ProfileFinding, numbered: Sequence[tuple[int, Candidate]], limit_s: float | None
) -> Figure | None:
    """Return the figure of one profile, or None when nothing was measured.

    Across is latency where it stands for the device, else the size of the file.

    Args:
        found: The profile.
        numbered: The candidates to draw, with their numbers.
        limit_s: Bound of the p95 latency in seconds.
    """
    axes = _axes(found, [c for _, c in numbered])
    data = [d for n, c in numbered if (d := _datum(n, c, axes))]
    if not data:
        return None
    x_low, x_high = _x_range(data)
    y_low, y_high, step = _y_range(data, is_share=axes.is_share)

    def to_x(value: float) -> float:
        share = math.log(value / x_low) / math.log(x_high / x_low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def to_y(value: float) -> float:
        share = (value - y_low) / (y_high - y_low)
        share = 1 - share if axes.is_error else share
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    largest = max(d.weight for d in data)
    circles = [
        (to_x(d.x), to_y(d.quality), max(MIN_RADIUS, MAX_RADIUS * math.sqrt(d.weight / largest)))
        for d in data
    ]
    placed: list[Point] = []
    for d, (x, y, radius) in zip(data, circles, strict=True):
        label = _free_place((x, y, radius), circles, placed)
        placed.append(
            Point(
                number=d.number, x=x, y=y, radius=radius,
                low=max(to_y(d.low), to_y(d.high)), high=min(to_y(d.low), to_y(d.high)),
                label_x=label[0], label_y=label[1], kind=_kind(d.candidate, found.chosen),
                is_float=not d.candidate.compressed, tooltip=_tooltip(d, axes),
            )
        )  # fmt: skip
    front = sorted(
        (p.x, p.y) for p, d in zip(placed, data, strict=True) if d.candidate.id in found.pareto
    )
    limit_x = None
    if axes.by_latency and limit_s is not None and x_low < limit_s < x_high:
        limit_x = to_x(limit_s)
    return Figure(
        points=tuple(placed),
        x_ticks=tuple(Tick(to_x(v), axes.show_x(v)) for v in _x_values(x_low, x_high)),
        y_ticks=tuple(
            Tick(to_y(v), _y_text(v, step, is_share=axes.is_share))
            for v in _y_values(y_low, y_high, step, is_share=axes.is_share)
        ),
        x_title=f"{axes.x_title} (log scale)",
        y_title=axes.y_title,
        area=axes.area,
        front=" ".join(f"{x:.1f},{y:.1f}" for x, y in front) if len(front) > 1 else "",
        limit_x=limit_x,
        limit_text="" if limit_s is None else f"p95 limit {milliseconds(limit_s)}",
        summary=f"{len(data)} candidates: {axes.y_title} against {axes.x_title}; "
        f"area is {axes.area}. The tables below hold the same figures.",
    )


@dataclass(frozen=True)
class _Axes:
    """What is drawn across, up, and as area."""

    by_latency: bool
    x_title: str
    y_title: str
    area: str
    metric: bool
    by_accuracy: bool
    is_share: bool
    is_error: bool

    def show_x(self, value: float) -> str:
        return milliseconds(value) if self.by_latency else size(value)


def _axes(found: ProfileFinding, candidates: Sequence[Candidate]) -> _Axes:
    by_latency = found.latency != "uncalibrated"
    metrics = [c.metrics[0] for c in candidates if c.metrics]
    by_accuracy = any(
        c.accuracy is not None and c.accuracy.n >= ACCURACY_ENOUGH for c in candidates
    )
    agreement = any(c.fidelity is not None and c.fidelity.agreement is not None for c in candidates)
    y_title = "top-1 accuracy"
    use_metric = bool(metrics) and not by_accuracy
    if use_metric:
        better = "higher" if metrics[0].higher_is_better else "lower"
        y_title = f"{metrics[0].name} ({better} is better)"
    elif not by_accuracy:
        y_title = "agreement with the source" if agreement else "cosine"
    kind = "measured on the host" if found.latency == "host" else "estimate, calibrated"
    return _Axes(
        by_latency=by_latency,
        x_title=f"p50 latency, {kind}" if by_latency else "size of the file",
        y_title=y_title,
        area="file size" if by_latency else "peak memory",
        metric=use_metric,
        by_accuracy=by_accuracy,
        is_share=not use_metric or metrics[0].unit == "share",
        is_error=use_metric and not metrics[0].higher_is_better,
    )


def _datum(number: int, candidate: Candidate, axes: _Axes) -> _Datum | None:
    latency, size_bytes = candidate.value("latency_p50"), candidate.value("artifact_bytes")
    x = latency if axes.by_latency else size_bytes
    memory = candidate.value("arena_bytes") or candidate.value("peak_rss")
    weight = (size_bytes if axes.by_latency else memory) or 1.0
    quality = _quality(candidate, axes)
    if x is None or x <= 0 or quality is None:
        return None
    return _Datum(number, candidate, x, weight, *quality)


def _quality(candidate: Candidate, axes: _Axes) -> tuple[float, float, float] | None:
    """Return the value that is drawn, with its interval; None where there is none of its kind."""
    fidelity, accuracy = candidate.fidelity, candidate.accuracy
    if axes.metric:
        if not candidate.metrics:
            return None
        m = candidate.metrics[0]
        low, high = sorted(
            m.source - d if m.higher_is_better else m.source + d for d in (m.drop_low, m.drop_high)
        )
        return m.candidate, min(low, m.candidate), max(high, m.candidate)
    if axes.by_accuracy:
        return None if accuracy is None else (accuracy.candidate, accuracy.low, accuracy.high)
    if fidelity is None:
        return None
    if fidelity.agreement is not None:
        value, bounds = fidelity.agreement, (fidelity.agreement_low, fidelity.agreement_high)
    else:
        value, bounds = fidelity.cosine, (fidelity.cosine_low, fidelity.cosine_high)
    return (
        value,
        value if bounds[0] is None else bounds[0],
        value if bounds[1] is None else bounds[1],
    )


def _x_range(data: Sequence[_Datum]) -> tuple[float, float]:
    values = [d.x for d in data]
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


def _y_range(data: Sequence[_Datum], *, is_share: bool) -> tuple[float, float, float]:
    low, high = min(d.low for d in data), max(d.high for d in data)
    spread = max(high - low, 0.005 if is_share else abs(high) * 0.01 or 0.005)
    low, high = low - 0.08 * spread, high + 0.08 * spread
    steps: tuple[float, ...] = _Y_STEPS
    if not is_share:
        decade = 10.0 ** math.floor(math.log10(high - low))
        steps = tuple(decade * s for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0))
    step = next((s for s in steps if (high - low) / s <= _MAX_Y_TICKS), steps[-1])
    return low, high, step


def _y_values(low: float, high: float, step: float, *, is_share: bool) -> list[float]:
    first, last = math.ceil(low / step), math.floor(high / step)
    return [i * step for i in range(first, last + 1) if not is_share or i * step <= 1]


def _y_text(value: float, step: float, *, is_share: bool) -> str:
    if not is_share:
        return f"{value:.4g}"
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


def _tooltip(d: _Datum, axes: _Axes) -> str:
    show = percent if axes.is_share else (lambda v: f"{v:.4g}")
    size_bytes, p95 = d.candidate.value("artifact_bytes"), d.candidate.value("latency_p95")
    time = f", p95 {milliseconds(p95)}" if axes.by_latency and p95 is not None else ""
    outcome = "" if d.candidate.outcome is None else f"; {d.candidate.outcome.code}"
    return (
        f"{d.number}: {d.candidate.id[:120]}: {show(d.quality)} [{show(d.low)}, {show(d.high)}], "
        f"{axes.show_x(d.x)}{time}, {size(size_bytes or 0)}{outcome}"
    )
