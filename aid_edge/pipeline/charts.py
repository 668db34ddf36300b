"""Small line charts: quality by severity of a condition, and learning curves. Pure geometry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aid_edge.pipeline.findings import ConditionFinding, TrainingFinding
from aid_edge.pipeline.text import percent

WIDTH, HEIGHT = 200, 120
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 10, 22
MAX_MULTIPLES = 12
MAX_POINTS = 60


@dataclass(frozen=True)
class Line:
    """One line; ``points`` is what a polyline takes, ``kind`` its class."""

    kind: str
    points: str
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Multiple:
    """One small chart.

    Attributes:
        y_ticks: Height and text of the marks of the vertical axis.
        x_ticks: Likewise of the horizontal one.
        mark: Where a vertical line stands, such as the kept epoch; None for none.
        summary: What a reader hears who does not see it.
    """

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    mark: float | None
    summary: str


def conditions_chart(found: Sequence[ConditionFinding]) -> tuple[Multiple, ...]:
    """Return one chart per condition: source and candidate by severity, all on one scale."""
    clean = [c for c in found if c.severity == 0]
    names = list(dict.fromkeys(c.condition for c in found if c.severity > 0))[:MAX_MULTIPLES]
    values = [v for c in found for v in (c.source, c.candidate)]
    if not names or not values:
        return ()
    low, high = _range(values)
    charts = []
    for name in names:
        cells = sorted(
            [*clean, *(c for c in found if c.condition == name and c.severity > 0)],
            key=lambda c: c.severity,
        )
        to_x = _scale(0.0, 5.0, LEFT, WIDTH - RIGHT)
        to_y = _scale(low, high, HEIGHT - BOTTOM, TOP)
        worst = cells[-1]
        charts.append(
            Multiple(
                title=name,
                lines=tuple(
                    _line(kind, [(to_x(c.severity), to_y(getattr(c, kind))) for c in cells])
                    for kind in ("source", "candidate")
                ),
                x_ticks=tuple((to_x(c.severity), str(c.severity)) for c in cells),
                y_ticks=tuple((to_y(v), _whole(v)) for v in (low, high)),
                mark=None,
                summary=f"{name}: at severity {worst.severity} {worst.metric} of "
                f"{percent(worst.source)} in the source, {percent(worst.candidate)} in the "
                "candidate; the table holds the figures",
            )
        )
    return tuple(charts)


def curve(training: TrainingFinding, what: str, title: str) -> Multiple:
    """Return the chart of ``quality`` or ``loss`` by epoch, with the kept epoch marked."""
    points = training.points
    if len(points) > MAX_POINTS:
        points = tuple(points[i * len(points) // MAX_POINTS] for i in range(MAX_POINTS))
    values = [float(getattr(p, what)) for p in points]
    low, high = _range(values, share=what == "quality")
    first, last = points[0].epoch, max(points[-1].epoch, points[0].epoch + 1)
    to_x = _scale(first, last, LEFT, WIDTH - RIGHT)
    to_y = _scale(low, high, HEIGHT - BOTTOM, TOP)
    show: Callable[[float], str] = _whole if what == "quality" else "{:.2g}".format
    marked = first <= training.best_epoch <= last
    places = [(to_x(p.epoch), to_y(v)) for p, v in zip(points, values, strict=True)]
    return Multiple(
        title=f"{title} by epoch",
        lines=(_line("candidate", places),),
        x_ticks=((to_x(first), str(first)), (to_x(last), str(points[-1].epoch))),
        y_ticks=tuple((to_y(v), show(v)) for v in (low, high)),
        mark=to_x(training.best_epoch) if marked else None,
        summary=f"{title} from {show(values[0])} at epoch {first} to {show(values[-1])} at epoch "
        f"{points[-1].epoch}; epoch {training.best_epoch} was kept; the table holds the figures",
    )  # fmt: skip


def _whole(share: float) -> str:
    return percent(share).replace(".0 ", " ")


def _line(kind: str, places: Sequence[tuple[float, float]]) -> Line:
    dots = tuple((round(x, 1), round(y, 1)) for x, y in places)
    return Line(kind, " ".join(f"{x:g},{y:g}" for x, y in dots), dots)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _range(values: Sequence[float], *, share: bool = True) -> tuple[float, float]:
    """Return limits that hold all values; of shares in whole tenths."""
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if not share:
        return (low, high) if high > low else (low, low + 1.0)
    low, high = math.floor(low * 10) / 10, math.ceil(high * 10) / 10
    return (low, high) if high > low else (low - 0.1, high)
