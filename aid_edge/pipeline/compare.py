"""What differs between two conversions: source, data, tools, candidates, verdicts. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from aid_edge.errors import UsageError
from aid_edge.pipeline.findings import Candidate, ProfileFinding, Report
from aid_edge.pipeline.text import milliseconds, number, percent, ratio, size

SCHEMA = "aid-edge/report-comparison/v1"

_COSTS = (
    ("file", "artifact_bytes"), ("download", "download_bytes"), ("p50", "latency_p50"),
    ("p95", "latency_p95"), ("arena", "arena_bytes"), ("peak memory", "peak_rss"),
)  # fmt: skip


class Difference(msgspec.Struct, frozen=True):
    """One thing that differs; empty where a side does not have it."""

    what: str
    a: str
    b: str


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a candidate in both reports.

    Attributes:
        change: Of ``b`` against ``a``; empty where the two may not be compared.
        where: Where each was made: ``host``, ``device`` or ``estimate``.
    """

    what: str
    a: float | None
    b: float | None
    shown_a: str
    shown_b: str
    change: str
    where: str


class CandidateDifference(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate: in which reports it is, how it ended, and its figures."""

    id: str
    outcome_a: str
    outcome_b: str
    figures: tuple[Figure, ...]

    @property
    def is_in_both(self) -> bool:
        """Whether both reports have it."""
        return bool(self.outcome_a and self.outcome_b)


class ProfileDifference(msgspec.Struct, frozen=True, kw_only=True):
    """One profile; chosen and verdict are empty where a report does not have it."""

    id: str
    title: str
    chosen_a: str
    chosen_b: str
    verdict_a: str
    verdict_b: str
    candidates: tuple[CandidateDifference, ...]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What differs between report A and report B.

    Attributes:
        caveats: Why some figures may not be compared.
        facts: Sources, data, machine, tools and settings that differ.
    """

    title_a: str
    title_b: str
    caveats: tuple[str, ...]
    facts: tuple[Difference, ...]
    profiles: tuple[ProfileDifference, ...]


def compare(a: Report, b: Report, *, force: bool = False) -> Comparison:
    """Return what differs.

    Another version of the model, other data, tools or machine are what one compares for, and are
    said; times of different machines and shares of different data get no ratio.

    Args:
        a: The report to start from.
        b: The one that is held against it.
        force: Compare also models of different names or tasks.

    Raises:
        UsageError: They are of different models, and ``force`` is not set.
    """
    if not force and (a.source.name, a.source.task) != (b.source.name, b.source.task):
        raise UsageError(
            f"the reports are of different models: {a.source.name} ({a.source.task}) and "
            f"{b.source.name} ({b.source.task})",
            hint="Compare them all the same with --force.",
        )
    same_host = a.provenance.host == b.provenance.host
    same_data = _judged_on(a) == _judged_on(b)
    caveats = []
    if not same_host:
        caveats.append("Measured on different machines: times and memory get no ratio.")
    if not same_data:
        caveats.append("Judged on different data: accuracy and fidelity get no difference.")
    if a.source.digest != b.source.digest:
        caveats.append("The source models differ: quality is against each one's own source.")
    ids = list(dict.fromkeys(p.id for r in (a, b) for p in r.profiles))
    return Comparison(
        title_a=f"{a.source.title} {a.source.version}",
        title_b=f"{b.source.title} {b.source.version}",
        caveats=tuple(caveats),
        facts=tuple(_facts(a, b)),
        profiles=tuple(
            _profile(_find(a, name), _find(b, name), times=same_host, quality=same_data)
            for name in ids
        ),
    )


def _judged_on(report: Report) -> list[tuple[str, str]]:
    return sorted((d.role, d.digest) for d in report.data if d.role != "calibration")


def _find(report: Report, name: str) -> ProfileFinding | None:
    return next((p for p in report.profiles if p.id == name), None)


def _facts(a: Report, b: Report) -> Iterator[Difference]:
    pairs = [
        ("model", a.source.title, b.source.title),
        ("version", a.source.version, b.source.version),
        ("source", a.source.spec, b.source.spec),
        ("source digest", a.source.digest, b.source.digest),
        ("framework", a.source.framework, b.source.framework),
        ("parameters", f"{a.source.parameters:,}", f"{b.source.parameters:,}"),
        ("machine", a.provenance.host, b.provenance.host),
        ("seed", str(a.provenance.seed), str(b.provenance.seed)),
        ("command", a.provenance.command, b.provenance.command),
    ]
    roles = dict.fromkeys(d.role for r in (a, b) for d in r.data)
    for role in roles:
        one, other = (
            next((f"{d.spec}, n = {d.n}, {d.digest}" for d in r.data if d.role == role), "")
            for r in (a, b)
        )
        pairs.append((f"{role} data", one, other))
    before, after = a.provenance.tools, b.provenance.tools
    pairs += [
        (name, before.get(name, ""), after.get(name, "")) for name in sorted({*before, *after})
    ]
    return (Difference(*pair) for pair in pairs if pair[1] != pair[2])


def _profile(
    a: ProfileFinding | None, b: ProfileFinding | None, *, times: bool, quality: bool
) -> ProfileDifference:
    some = a if a is not None else b
    if some is None:
        raise UsageError("a profile of neither report cannot be compared")
    sides = [{} if p is None else {c.id: c for c in p.candidates} for p in (a, b)]
    return ProfileDifference(
        id=some.id,
        title=some.title,
        chosen_a="" if a is None else a.chosen or "none",
        chosen_b="" if b is None else b.chosen or "none",
        verdict_a="" if a is None else a.verdict,
        verdict_b="" if b is None else b.verdict,
        candidates=tuple(
            _candidate(name, sides[0].get(name), sides[1].get(name), times=times, quality=quality)
            for name in dict.fromkeys([*sides[0], *sides[1]])
        ),
    )


def _candidate(
    name: str, a: Candidate | None, b: Candidate | None, *, times: bool, quality: bool
) -> CandidateDifference:
    return CandidateDifference(
        id=name,
        outcome_a=_outcome(a),
        outcome_b=_outcome(b),
        figures=(*_costs(a, b, times=times), *_qualities(a, b, comparable=quality)),
    )


def _outcome(candidate: Candidate | None) -> str:
    if candidate is None:
        return ""
    return candidate.outcome.code if candidate.outcome is not None else "not judged"


def _costs(a: Candidate | None, b: Candidate | None, *, times: bool) -> Iterator[Figure]:
    for title, what in _COSTS:
        for is_device in (False, True):
            one, other = (
                None if c is None else next(
                    (m for m in c.measurements
                     if m.what == what and (m.where == "device") is is_device), None,
                )
                for c in (a, b)
            )  # fmt: skip
            if one is None and other is None:
                continue
            show = milliseconds if what.startswith("latency") else size
            kinds = dict.fromkeys(m.where for m in (one, other) if m is not None)
            is_file = what in {"artifact_bytes", "download_bytes"}
            change = ""
            if one is not None and other is not None and (is_file or (times and len(kinds) == 1)):
                change = ratio(other.value, one.value)
            yield Figure(
                what=f"{title} on the device" if is_device else title,
                a=None if one is None else one.value,
                b=None if other is None else other.value,
                shown_a="-" if one is None else show(one.value),
                shown_b="-" if other is None else show(other.value),
                change=change,
                where=", ".join(kinds),
            )


def _qualities(a: Candidate | None, b: Candidate | None, *, comparable: bool) -> Iterator[Figure]:
    def of(candidate: Candidate | None) -> dict[str, float]:
        if candidate is None:
            return {}
        found = {}
        if candidate.accuracy is not None:
            found["top-1"] = candidate.accuracy.candidate
            found["top-1 drop"] = candidate.accuracy.drop
        found |= {m.name: m.candidate for m in candidate.metrics}
        if candidate.fidelity is not None:
            if candidate.fidelity.agreement is not None:
                found["agreement"] = candidate.fidelity.agreement
            found["cosine"] = candidate.fidelity.cosine
        return found

    before, after = of(a), of(b)
    for name in dict.fromkeys([*before, *after]):
        show = percent if name in {"top-1", "top-1 drop", "agreement"} else number
        one, other = before.get(name), after.get(name)
        change = ""
        if comparable and one is not None and other is not None:
            difference = other - one
            change = f"{difference * 100:+.2f} points" if show is percent else f"{difference:+.4g}"
        yield Figure(
            what=name, a=one, b=other, shown_a="-" if one is None else show(one),
            shown_b="-" if other is None else show(other), change=change, where="host",
        )  # fmt: skip
