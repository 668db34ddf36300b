"""What the page of one profile shows, and how much of it: bounded whatever was found. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aid_edge.pipeline.advice import harm, headline, next_steps
from aid_edge.pipeline.charts import (
    Multiple,
    conditions_chart,
    curve,
)
from aid_edge.pipeline.figures import Figure, pareto
from aid_edge.pipeline.findings import (
    Candidate,
    ConditionFinding,
    CurvePoint,
    ProfileFinding,
    Report,
)
from device_agent.contract.manifest import Measurement

MEMORY = ("arena_bytes", "peak_rss")
"""The arena where there is one: all that a model takes on a microcontroller."""

_KNOWN = frozenset(
    {
        "artifact_bytes", "download_bytes", "latency_p50", "latency_p95", "latency_p99", *MEMORY,
        "load_time", "top1", "top1_drop", "agreement", "cosine", "sqnr",
    }
)  # fmt: skip
_DEVICE = ("latency_p50", "latency_p95", "latency_p99", *MEMORY)


@dataclass(frozen=True)
class Detail:
    """How much is shown; what is left out is counted on the page and whole in the JSON twin.

    Attributes:
        profiles: Shown with their tables; all are in the overview.
        candidates: Per profile.
        focus: Candidates looked into: layers, classes, conditions, flips.
        rows: Of each table about one candidate.
        flips: With thumbnails.
        explanations: With pictures.
        text: Characters of any text that came from outside.
    """

    profiles: int
    candidates: int
    focus: int
    rows: int
    flips: int
    explanations: int
    text: int


LEVELS = (
    Detail(40, 40, 3, 12, 8, 4, 400),
    Detail(40, 24, 2, 12, 6, 3, 300),
    Detail(30, 12, 1, 8, 4, 2, 240),
    Detail(20, 8, 1, 5, 2, 1, 200),
    Detail(12, 6, 1, 4, 0, 0, 160),
    Detail(4, 4, 1, 3, 0, 0, 120),
    Detail(2, 3, 1, 2, 0, 0, 60),
)
"""Tried in turn until the page is small enough."""


@dataclass(frozen=True)
class Shown:
    """One candidate under its number in the profile."""

    number: int
    candidate: Candidate
    is_chosen: bool
    is_pareto: bool
    is_baseline: bool


@dataclass(frozen=True)
class Focus:
    """One candidate that is looked into, with its charts.

    Attributes:
        conditions: Severity by severity; the clean inputs come first in each.
        points: Of the learning curve, thinned out to the table's rows.
    """

    shown: Shown
    conditions: tuple[Multiple, ...]
    curves: tuple[Multiple, ...]
    points: tuple[CurvePoint, ...]
    condition_rows: tuple[ConditionFinding, ...]


@dataclass(frozen=True)
class View:
    """One profile as it is shown.

    Attributes:
        left_out: Outcome code to number of candidates that are not shown.
        on_device: Whether any candidate was measured on a real device.
        further: Figures that have no column, by candidate.
        latency: How the host's latency is to be read: its column heading.
    """

    profile: ProfileFinding
    headline: str
    harm: str
    next_steps: tuple[str, ...]
    shown: tuple[Shown, ...]
    left_out: dict[str, int]
    chosen: Candidate | None
    figure: Figure | None
    focus: tuple[Focus, ...]
    on_device: bool
    further: tuple[tuple[str, Measurement], ...]
    latency: str
    baselines: dict[str, Candidate]


def view(report: Report, found: ProfileFinding, detail: Detail) -> View:
    """Return what is shown of one profile."""
    baselines = {c.runtime: c for c in found.candidates if not c.compressed and c.digest}
    shown = _shown(found, baselines, detail.candidates)
    picked = tuple(s.candidate for s in shown)
    limit = next((g.limit for c in picked for g in c.gates if g.gate == "latency-p95"), None)
    chosen = found.candidate(found.chosen)
    return View(
        profile=found,
        headline=headline(found, baselines),
        harm=harm(found, baselines),
        next_steps=next_steps(report, found),
        shown=shown,
        left_out=_left_out(found, picked),
        chosen=chosen,
        figure=pareto(found, shown_numbers(shown), limit),
        focus=tuple(_focus(s, detail) for s in _in_focus(shown)[: detail.focus]),
        on_device=any(at(c, what, "device") for c in picked for what in _DEVICE),
        further=tuple((c.id, m) for c in picked for m in c.measurements if m.what not in _KNOWN)[
            : 4 * detail.rows
        ],
        latency={
            "host": "measured here",
            "calibrated": "estimate",
            "uncalibrated": "estimate, uncalibrated",
        }[found.latency],
        baselines=baselines,
    )


def at(
    candidate: Candidate, what: str | Sequence[str], where: Literal["host", "device"]
) -> Measurement | None:
    """Return a figure made on a device, or one made (or estimated) on the host; never mixed.

    Args:
        candidate: Of which.
        what: Its name, or names of which the first that there is counts.
        where: ``host`` includes estimates.
    """
    names = [what] if isinstance(what, str) else list(what)
    for name in names:
        for m in candidate.measurements:
            if m.what == name and (m.where == "device") is (where == "device"):
                return m
    return None


def shown_numbers(shown: Sequence[Shown]) -> list[tuple[int, Candidate]]:
    """Return candidates with their numbers, as figures take them."""
    return [(s.number, s.candidate) for s in shown]


def _shown(found: ProfileFinding, baselines: dict[str, Candidate], limit: int) -> tuple[Shown, ...]:
    """Return at most ``limit`` candidates: chosen, baselines and the front before the others."""
    front = set(found.pareto)
    floats = {c.id for c in baselines.values()}

    def weight(pair: tuple[int, Candidate]) -> int:
        c = pair[1]
        if c.id == found.chosen:
            return 0
        if c.id in floats:
            return 1
        if c.id in front:
            return 2
        return 3 if c.digest and not any(g.status == "fail" for g in c.gates) else 4

    numbered = list(enumerate(found.candidates, 1))
    kept = sorted(sorted(numbered, key=weight)[:limit])
    return tuple(Shown(n, c, c.id == found.chosen, c.id in front, c.id in floats) for n, c in kept)


def _left_out(found: ProfileFinding, picked: Sequence[Candidate]) -> dict[str, int]:
    ids = {c.id for c in picked}
    codes = [
        "-" if c.outcome is None else c.outcome.code for c in found.candidates if c.id not in ids
    ]
    return dict(sorted(Counter(codes).items(), key=lambda item: (-item[1], item[0])))


def _in_focus(shown: Sequence[Shown]) -> list[Shown]:
    """Return the candidates about which there is more to say, the chosen first."""

    def depth(s: Shown) -> int:
        c = s.candidate
        return sum(
            bool(part)
            for part in (
                c.layers, c.training, c.conditions, c.classes, c.confusion, c.flips,
                c.explanations, c.steps,
            )
        )  # fmt: skip

    with_more = [s for s in shown if depth(s)]
    with_more.sort(key=lambda s: (not s.is_chosen, not s.candidate.compressed, -depth(s), s.number))
    return with_more


def _focus(shown: Shown, detail: Detail) -> Focus:
    candidate = shown.candidate
    training = candidate.training
    curves: tuple[Multiple, ...] = ()
    points: tuple[CurvePoint, ...] = ()
    if training is not None and training.points:
        points = _thinned(training.points, training.best_epoch, detail.rows)
        curves = (
            curve(training, "quality", training.quality),
            curve(training, "loss", "loss"),
        )
    return Focus(
        shown,
        conditions_chart(candidate.conditions),
        curves,
        points,
        candidate.conditions[: 4 * detail.rows],
    )


def _thinned(points: Sequence[CurvePoint], best: int, rows: int) -> tuple[CurvePoint, ...]:
    """Return at most ``rows`` points: the first, the last and the best among them."""
    if len(points) <= rows:
        return tuple(points)
    step = (len(points) - 1) / (rows - 1)
    indices = {round(i * step) for i in range(rows)}
    indices |= {i for i, p in enumerate(points) if p.epoch == best}
    return tuple(points[i] for i in sorted(indices))
