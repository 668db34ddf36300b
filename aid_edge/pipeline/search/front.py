"""Which candidates no other one beats in every respect, and why nothing cheaper is chosen. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from aid_edge.pipeline.findings import Candidate
from aid_edge.pipeline.text import milliseconds, ratio, size

_ASPECTS = {"size": "artifact_bytes", "latency": "latency_p50", "memory": "peak_rss"}


def pareto(candidates: Sequence[Candidate], *, latency_known: bool) -> tuple[str, ...]:
    """Return the ids of candidates that no other one beats in every respect, cheapest first.

    Respects are size, latency (where it is known), memory and loss of quality. Only candidates
    that were judged on all data and measured are compared.
    """
    complete = [c for c in candidates if c.value("latency_p50") is not None]
    points = {c.id: _point(c, latency_known=latency_known) for c in complete}
    front = [
        c
        for c in complete
        if not any(_beats(points[o.id], points[c.id]) for o in complete if o is not c)
    ]
    return tuple(c.id for c in sorted(front, key=lambda c: points[c.id]))


def why_not_cheaper(
    candidates: Sequence[Candidate], chosen: str | None, rank_by: Sequence[str]
) -> str:
    """Return what keeps the next cheaper candidate from being chosen, with figures.

    Cheaper is by what the profile ranks by first, of what was measured; size where it does not
    know.
    """
    best = next((c for c in candidates if c.id == chosen), None)
    if best is None:
        return ""
    known = [k for k in (*rank_by, "size") if k in _ASPECTS and best.value(_ASPECTS[k]) is not None]
    aspect = known[0] if known else "size"
    what = _ASPECTS[aspect]
    mine = best.value(what)
    if mine is None:
        return ""
    cheaper = [
        (value, c)
        for c in candidates
        if c is not best and (value := c.value(what)) is not None and value < mine
    ]
    if not cheaper:
        compared = sum(c.value(what) is not None for c in candidates)
        return f"Nothing cheaper was found: {best.id} is best by {aspect} of {compared} measured."
    value, next_one = max(cheaper, key=lambda pair: pair[0])
    show = milliseconds if aspect == "latency" else size
    gain = f"{show(value)} against {show(mine)} ({ratio(value, mine)})"
    reason = (
        "" if next_one.outcome is None else f" {next_one.outcome.code}: {next_one.outcome.text}"
    )
    return f"{next_one.id} would be cheaper by {aspect}, {gain}, but:{reason}"


def loss_of(candidate: Candidate) -> float:
    """Return the loss of quality against the source: by metric, accuracy or closeness."""
    if candidate.metrics:
        return candidate.metrics[0].drop
    if candidate.accuracy is not None:
        return candidate.accuracy.drop
    if candidate.fidelity is None:
        return 0.0
    agreement = candidate.fidelity.agreement
    return 1 - (candidate.fidelity.cosine if agreement is None else agreement)


def _point(candidate: Candidate, *, latency_known: bool) -> tuple[float, ...]:
    what = ["artifact_bytes", *(["latency_p50"] if latency_known else []), "peak_rss"]
    values = [candidate.value(name) for name in what]
    return (*(float("inf") if v is None else v for v in values), loss_of(candidate))


def _beats(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)
