"""Which candidate is chosen for a profile, and why the others are not. Pure.

Do no harm: a compressed candidate that is not smaller, faster or leaner than a float one that
passes is never chosen, and the verdict says "float is better here".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aid_edge.pipeline.findings import (
    CHOSEN,
    FLOAT_IS_BETTER,
    NOT_DECIDED,
    NOT_EXECUTED,
    OUTRANKED,
    QUALITY_GATES,
    REFUSAL_OF_GATE,
    Candidate,
    Refusal,
)
from aid_edge.pipeline.search.front import loss_of
from aid_edge.pipeline.text import milliseconds, percent, points, ratio, size

SIZE_TOLERANCE = 0.02
MEMORY_TOLERANCE = 0.05
LATENCY_TOLERANCE = 0.03
"""Relative differences under these are ties; latency also ties while intervals overlap."""


MAX_NAMED = 3
"""A sentence names so many candidates that were not chosen; the report has all."""


@dataclass(frozen=True)
class Choice:
    """Ids with their outcomes, and the verdict in one sentence."""

    chosen: str | None
    outcomes: dict[str, Refusal]
    verdict: str


def choose(
    candidates: Sequence[Candidate], rank_by: Sequence[str], *, latency_known: bool
) -> Choice:
    """Choose among candidates whose gates are judged.

    Args:
        candidates: In the profile's order of preference; those with an ``outcome`` already
            (their conversion failed) keep it.
        rank_by: What to rank by, most important first.
        latency_known: Whether latency figures stand for the device; else they rank nothing.
    """
    outcomes = {c.id: c.outcome for c in candidates if c.outcome is not None}
    for candidate in candidates:
        if candidate.id not in outcomes and (refusal := missed(candidate)) is not None:
            outcomes[candidate.id] = refusal
    unseen = [c for c in candidates if not c.executed and c.id not in outcomes]
    if unseen and not any(c.executed and c.digest for c in candidates):
        return _choose_unseen(unseen, outcomes)
    outcomes |= {c.id: _UNSEEN for c in unseen}
    eligible = [c for c in candidates if c.id not in outcomes]
    floats = [c for c in eligible if not c.compressed]
    for candidate in eligible:
        if candidate.compressed and (harm := _harm(candidate, floats, latency_known)) is not None:
            outcomes[candidate.id] = harm
    eligible = [c for c in eligible if c.id not in outcomes]
    if not eligible:
        return Choice(None, outcomes, _nothing(candidates, outcomes))
    keys = [k for k in rank_by if k != "latency" or latency_known]
    best = _rank(eligible, keys)
    for candidate in eligible:
        if candidate is not best:
            outcomes[candidate.id] = _outranked(candidate, best, keys)
    sentence = _verdict(best, candidates, outcomes, latency_known=latency_known)
    outcomes[best.id] = Refusal(code=CHOSEN, text=sentence)
    return Choice(best.id, outcomes, sentence)


_UNSEEN = Refusal(
    code=NOT_EXECUTED,
    text="converted, not executed: its runtime does not run on this host; quality is unknown",
)
_SAFE = ("float16", "float32")


def _choose_unseen(unseen: Sequence[Candidate], outcomes: dict[str, Refusal]) -> Choice:
    """Choose where nothing of the profile can be run here: what changes the numbers least.

    With quality unknown nothing lossy is chosen; half precision is what such runtimes compute in.
    """
    outcomes = outcomes | {c.id: _UNSEEN for c in unseen}
    safe = [c for key in _SAFE for c in unseen if c.recipe_key == key]
    if not safe:
        return Choice(None, outcomes, _nothing(unseen, outcomes))
    best = safe[0]
    sentence = (
        f"{best.id}: {_own_figures(best, latency_known=False)}; converted, not executed: no "
        "runtime of this profile runs on this host, so quality and memory are not measured. "
        "Try it on a device before you rely on it"
    )
    outcomes[best.id] = Refusal(code=CHOSEN, text=sentence)
    return Choice(best.id, outcomes, sentence)


def missed(candidate: Candidate) -> Refusal | None:
    """Return why the gates refuse ``candidate``, or None when they let it pass.

    An accuracy gate that is undecided or not measured leaves the decision to fidelity.
    """
    failed = [g for g in candidate.gates if g.status == "fail"]
    if failed:
        text = "; ".join(f"{g.gate}: {g.text}" for g in failed)
        return Refusal(code=REFUSAL_OF_GATE[failed[0].gate], text=text)
    if not candidate.executed:
        return None
    decided = any(g.status == "pass" and g.gate in QUALITY_GATES for g in candidate.gates)
    if not decided:
        return Refusal(code=NOT_DECIDED, text="neither accuracy nor fidelity could be judged")
    return None


def is_faster(candidate: Candidate, other: Candidate) -> bool:
    """Return whether the median latency is lower beyond noise: intervals apart, and over 3 %."""
    a, b = candidate.figure("latency_p50"), other.figure("latency_p50")
    if a is None or b is None:
        return False
    apart = (a.high if a.high is not None else a.value) < (b.low if b.low is not None else b.value)
    return apart and a.value < b.value * (1 - LATENCY_TOLERANCE)


def _is_less(candidate: Candidate, other: Candidate, what: str, tolerance: float) -> bool:
    a, b = candidate.value(what), other.value(what)
    return a is not None and b is not None and a < b * (1 - tolerance)


def _is_more_accurate(candidate: Candidate, other: Candidate) -> bool:
    a, b = candidate.accuracy, other.accuracy
    return a is not None and b is not None and a.drop_high < b.drop and a.drop_high < 0


def _harm(candidate: Candidate, floats: Sequence[Candidate], latency_known: bool) -> Refusal | None:
    for other in floats:
        gains = (
            _is_less(candidate, other, "artifact_bytes", SIZE_TOLERANCE),
            _is_less(candidate, other, "peak_rss", MEMORY_TOLERANCE),
            latency_known and is_faster(candidate, other),
            _is_more_accurate(candidate, other),
        )
        if not any(gains):
            text = f"float is better here: {_compare(candidate, other, latency_known)}"
            return Refusal(code=FLOAT_IS_BETTER, text=text)
    return None


def _rank(eligible: Sequence[Candidate], keys: Sequence[str]) -> Candidate:
    tied = list(eligible)
    for key in keys:
        best = min(tied, key=lambda c: _sort_value(c, key))
        tied = [c for c in tied if c is best or not _is_ahead(best, c, key)]
    # What is left differs in nothing that was asked for: the profile's own order decides.
    return tied[0]


def _sort_value(candidate: Candidate, key: str) -> float:
    if key == "accuracy":
        return loss_of(candidate)
    what = {"latency": "latency_p50", "size": "artifact_bytes", "memory": "peak_rss"}[key]
    value = candidate.value(what)
    return float("inf") if value is None else value


def _is_ahead(best: Candidate, other: Candidate, key: str) -> bool:
    if key == "latency":
        return is_faster(best, other)
    if key == "size":
        return _is_less(best, other, "artifact_bytes", SIZE_TOLERANCE)
    if key == "memory":
        return _is_less(best, other, "peak_rss", MEMORY_TOLERANCE)
    a, b = best.accuracy, other.accuracy
    return a is not None and b is not None and a.drop_high < b.drop


def _outranked(candidate: Candidate, best: Candidate, keys: Sequence[str]) -> Refusal:
    by = next((k for k in keys if _is_ahead(best, candidate, k)), "the profile's order of runtimes")
    figures = _compare(candidate, best, latency_known=True)
    return Refusal(code=OUTRANKED, text=f"{best.id} is ahead by {by}: {figures}")


def _compare(candidate: Candidate, other: Candidate, latency_known: bool) -> str:
    parts = []
    a, b = candidate.value("artifact_bytes"), other.value("artifact_bytes")
    if a is not None and b is not None:
        parts.append(f"size {size(a)} against {size(b)} ({ratio(a, b)})")
    a, b = candidate.value("latency_p50"), other.value("latency_p50")
    if a is not None and b is not None:
        doubt = "" if latency_known else ", uncalibrated"
        parts.append(f"p50 {milliseconds(a)} against {milliseconds(b)} ({ratio(a, b)}{doubt})")
    a, b = candidate.value("peak_rss"), other.value("peak_rss")
    if a is not None and b is not None:
        parts.append(f"peak memory {size(a)} against {size(b)} ({ratio(a, b)})")
    return ", ".join(parts)


def _quality(candidate: Candidate) -> str:
    parts = []
    if (accuracy := candidate.accuracy) is not None:
        gate = next((g for g in candidate.gates if g.gate == "accuracy"), None)
        doubt = ", undecided" if gate is not None and gate.status == "undecided" else ""
        parts.append(
            f"top-1 {percent(accuracy.candidate)} (drop {points(accuracy.drop)} points "
            f"[{points(accuracy.drop_low)}, {points(accuracy.drop_high)}], n = {accuracy.n}{doubt})"
        )
    parts += [
        f"{m.name} {m.candidate:.4g} (source {m.source:.4g}, worse by {m.drop:.4g} "
        f"[{m.drop_low:.4g}, {m.drop_high:.4g}], n = {m.n})"
        for m in candidate.metrics
    ]
    if (fidelity := candidate.fidelity) is not None and fidelity.agreement is not None:
        parts.append(f"agrees with the source on {percent(fidelity.agreement)} of {fidelity.n}")
    elif fidelity is not None:
        parts.append(f"cosine to the source {fidelity.cosine:.4f} over {fidelity.n}")
    return "; ".join(parts)


def _verdict(
    best: Candidate,
    candidates: Sequence[Candidate],
    outcomes: dict[str, Refusal],
    *,
    latency_known: bool,
) -> str:
    sentence = f"{best.id}: {_own_figures(best, latency_known)}; {_quality(best)}"
    compressed = [c for c in candidates if c.compressed]
    if not best.compressed and compressed:
        shown = _nearest(compressed, outcomes)
        more = f"; and {len(compressed) - len(shown)} more" if len(shown) < len(compressed) else ""
        against = "; ".join(
            f"{c.id} ({outcomes[c.id].code})"
            + (
                f": {_compare(c, best, latency_known)}"
                if outcomes[c.id].code in {OUTRANKED, FLOAT_IS_BETTER}
                else ""
            )
            for c in shown
        )
        return f"float is better here: {sentence}. Not chosen: {against}{more}"
    baseline = [c for c in candidates if not c.compressed and c.runtime == best.runtime]
    if best.compressed and baseline and baseline[0].digest:
        return f"{sentence}. Against float: {_compare(best, baseline[0], latency_known)}"
    return sentence


def _nearest(candidates: Sequence[Candidate], outcomes: dict[str, Refusal]) -> list[Candidate]:
    """Return the few candidates that came nearest to being chosen, as a sentence can name them."""

    def distance(candidate: Candidate) -> tuple[bool, float]:
        ranked = outcomes[candidate.id].code in {OUTRANKED, FLOAT_IS_BETTER}
        return not ranked, candidate.value("latency_p50") or float("inf")

    nearest = sorted(candidates, key=distance)[:MAX_NAMED]
    return [c for c in candidates if c in nearest]


def _own_figures(best: Candidate, latency_known: bool) -> str:
    parts = []
    if (value := best.value("artifact_bytes")) is not None:
        parts.append(size(value))
    if (value := best.value("latency_p95")) is not None and latency_known:
        parts.append(f"p95 {milliseconds(value)}")
    elif not latency_known:
        parts.append("latency on the device unknown (uncalibrated)")
    return ", ".join(parts)


def _nothing(candidates: Sequence[Candidate], outcomes: dict[str, Refusal]) -> str:
    if not candidates:
        return "gate missed: there is no candidate for this profile"
    why = "; ".join(f"{c.id} ({outcomes[c.id].code})" for c in candidates[: 4 * MAX_NAMED])
    return f"gate missed: no candidate passes: {why}"
