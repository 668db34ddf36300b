"""Merging what devices did into windows of a minute and of an hour."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

import msgspec

from aid_edge.hub.schema import DAY_S, HOUR_S, MINUTE_S
from device_agent.contract.messages import ModelWindow
from device_agent.contract.sketch import Sketch, merge

SPANS_S = (MINUTE_S, HOUR_S)
KEPT_S = {MINUTE_S: 2 * DAY_S, HOUR_S: 90 * DAY_S}
"""How long windows of each span are kept."""
MAX_CLASSES = 5_000
"""Classes counted by name in one window; answers of further ones count as OTHER_CLASS."""
OTHER_CLASS = "other"
MAX_PHASES = 8
MAX_COUNT = 2**53
"""Where counts stop: a device may say any number, and sums must fit into the database."""
MAX_PAST_S = 8 * DAY_S
MAX_FUTURE_S = HOUR_S
"""A window that starts further off was stamped by a wrong clock, and counts as starting now."""
TOTAL = "total"
"""The phase whose latencies are what people ask for."""

_sketch = msgspec.msgpack.Decoder(Sketch)
_sketches = msgspec.msgpack.Decoder(dict[str, Sketch])
_counts = msgspec.msgpack.Decoder(dict[str, int])
_bins = msgspec.msgpack.Decoder(tuple[int, ...])
_encode = msgspec.msgpack.encode


def add_window(
    connection: sqlite3.Connection, device: str, window: ModelWindow, now_unix_s: float
) -> None:
    """Merge ``window`` into the device's windows of every span."""
    start = window.start_unix_s
    if not now_unix_s - MAX_PAST_S < start < now_unix_s + MAX_FUTURE_S:
        start = now_unix_s
    for span in SPANS_S:
        key = (device, span, int(start // span * span), window.release.digest)
        found = connection.execute(
            "SELECT * FROM usage_window WHERE device = ? AND span_s = ? AND start_unix_s = ?"
            " AND digest = ?",
            key,
        ).fetchone()
        release = f"{window.release.name}@{window.release.version}"
        connection.execute(
            "INSERT OR REPLACE INTO usage_window (device, span_s, start_unix_s, digest, release,"
            " ok, error, deadline, rejected, latency, phases, classes, confidence, rss_bytes,"
            " restarts) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*key, release, *_merged(found, window, has_phases=span == HOUR_S)),
        )


def refresh_totals(connection: sqlite3.Connection, device: str, now_unix_s: float) -> None:
    """Bring the device's totals of the last 24 hours up to date."""
    rows = connection.execute(
        "SELECT ok, error, deadline, rejected, latency FROM usage_window"
        " WHERE device = ? AND span_s = ? AND start_unix_s > ?",
        (device, HOUR_S, now_unix_s - DAY_S),
    ).fetchall()
    latency = merge(_sketch.decode(row["latency"]) for row in rows)
    errors, late, rejected = (
        min(sum(row[outcome] for row in rows), MAX_COUNT)
        for outcome in ("error", "deadline", "rejected")
    )
    connection.execute(
        "UPDATE device SET requests = ?, errors = ?, deadline_misses = ?, rejected = ?,"
        " p50_s = ?, p95_s = ?, wrong_reports = (SELECT count(*) FROM feedback"
        " WHERE device = device.id AND verdict = 'wrong' AND received_unix_s > ?) WHERE id = ?",
        (
            min(sum(row["ok"] for row in rows), MAX_COUNT) + errors + late + rejected,
            errors,
            late,
            rejected,
            latency.quantile(0.5),
            latency.quantile(0.95),
            now_unix_s - DAY_S,
            device,
        ),
    )


def prune(connection: sqlite3.Connection, now_unix_s: float) -> None:
    """Drop windows that are older than ``KEPT_S``."""
    for span, kept_s in KEPT_S.items():
        connection.execute(
            "DELETE FROM usage_window WHERE span_s = ? AND start_unix_s < ?",
            (span, now_unix_s - kept_s),
        )


def _merged(
    found: sqlite3.Row | None, window: ModelWindow, *, has_phases: bool
) -> tuple[object, ...]:
    outcomes = window.outcomes
    counts = [outcomes.ok, outcomes.error, outcomes.deadline, outcomes.rejected]
    latency = dict(window.latency)
    total = latency.pop(TOTAL, Sketch())
    if not has_phases:
        latency.clear()  # by the hour is enough to see which phase it is
    classes, confidence = _add_counts({}, window.classes), window.confidence
    rss_bytes, restarts = window.rss_bytes, window.restarts
    if found is not None:
        names = ("ok", "error", "deadline", "rejected")
        counts = [n + found[name] for n, name in zip(counts, names, strict=True)]
        total = merge((total, _sketch.decode(found["latency"])))
        phases = _sketches.decode(found["phases"])
        latency = {
            phase: merge((latency.get(phase, Sketch()), phases.get(phase, Sketch())))
            for phase in sorted(latency.keys() | phases.keys())[:MAX_PHASES]
        }
        classes = _add_counts(_counts.decode(found["classes"]), window.classes)
        confidence = add_bins(_bins.decode(found["confidence"]), confidence)
        rss_bytes = max(rss_bytes, found["rss_bytes"])
        restarts += found["restarts"]
    return (
        *(min(n, MAX_COUNT) for n in counts),
        _encode(_bounded(total)),
        _encode({phase: _bounded(sketch) for phase, sketch in latency.items()}),
        _encode(classes),
        _encode(confidence),
        rss_bytes,
        min(restarts, MAX_COUNT),
    )


def _bounded(sketch: Sketch) -> Sketch:
    if max(sketch.counts.values(), default=0) <= MAX_COUNT:
        return sketch
    counts = {bucket: min(count, MAX_COUNT) for bucket, count in sketch.counts.items()}
    return Sketch(counts, min(sketch.total_s, float(MAX_COUNT)))


def _add_counts(into: dict[str, int], counts: Mapping[str, int]) -> dict[str, int]:
    for name, count in counts.items():
        known = name in into or len(into) < MAX_CLASSES
        key = name if known else OTHER_CLASS
        into[key] = min(into.get(key, 0) + count, MAX_COUNT)
    return into


def add_bins(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sums of bins; a shorter histogram has zeros at its end."""
    width = max(len(a), len(b))
    padded = ((*bins, *(0,) * (width - len(bins))) for bins in (a, b))
    return tuple(min(sum(column), MAX_COUNT) for column in zip(*padded, strict=True))
