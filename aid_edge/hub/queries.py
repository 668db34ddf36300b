"""What can be asked of the hub's database; API, command line and web view all ask here."""

from __future__ import annotations

import functools
import itertools
import math
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from aid_edge.errors import HubError, UsageError
from aid_edge.hub import trials
from aid_edge.hub.rows import (
    STATUSES,
    Bucket,
    ClassCount,
    DeviceDetail,
    DeviceFilter,
    DevicePage,
    DeviceSummary,
    EventRow,
    FeedbackPage,
    FeedbackRow,
    FleetCounts,
    PublishedRelease,
    ReleaseRow,
    SeriesPoint,
    SlotRow,
    UpdateRow,
)
from aid_edge.hub.schema import DAY_S, MINUTE_S, connect
from aid_edge.hub.trials import TrialRow
from aid_edge.hub.usage import add_bins
from device_agent.contract.sketch import Sketch, merge, upper_bound_s

MAX_PAGE = 200
DEFAULT_PAGE = 50
MAX_EVENTS = 100
SILENT_INTERVALS = 3
"""A device is offline after this many of its reporting intervals without a sign of life."""
LATE_SHARE = 0.01
"""A device is late when more than this share of its requests missed their deadline."""
ERROR_SHARE = 0.01
"""A device is degraded when more than this share of its requests failed."""
MAX_SERIES_POINTS = 288


class ReleaseSource(Protocol):
    """Where published releases are found; :mod:`aid_edge.hub.releases` has the catalogue's."""

    def published(self) -> Sequence[PublishedRelease]:
        """Return all published releases."""

    def labels(self, digest: str) -> Sequence[str]:
        """Return the class labels of the release with this digest; empty when it has none."""

    def deadline_s(self, digest: str) -> float | None:
        """Return the deadline of the release with this digest; None when it is not known."""


_STATUS = f"""CASE
  WHEN last_seen_unix_s IS NULL THEN 'never-seen'
  WHEN online = 0 OR last_seen_unix_s < :now - {SILENT_INTERVALS} * reporting_interval_s
    THEN 'offline'
  WHEN desired_revision > revision OR deployment_state IN
    ('fetching', 'verifying', 'proving', 'activating') THEN 'updating'
  WHEN accepted = 0 OR deployment_state = 'failed' THEN 'failed'
  WHEN conflict <> '' OR deployment_state = 'rolling-back' OR errors > {ERROR_SHARE} * requests
    THEN 'degraded'
  WHEN deadline_misses > {LATE_SHARE} * requests THEN 'late'
  ELSE 'ok' END"""
_SUMMARY = f"""id AS device, profile, {_STATUS} AS status, active_release AS release,
  desired_release AS desired, revision, desired_revision, accepted, deployment_state,
  retrying, reason, p50_s, p95_s, requests, errors, deadline_misses, rejected, wrong_reports,
  last_seen_unix_s, conflict"""
_EVENT = "id, device, at_unix_s, kind, state, release, detail"
_FEEDBACK = """id, device, at_unix_s, received_unix_s, inference_id, release, digest, verdict,
  predicted, confidence, latency_s, label, comment"""
_sketch = msgspec.msgpack.Decoder(Sketch)
_counts = msgspec.msgpack.Decoder(dict[str, int])
_bins = msgspec.msgpack.Decoder(tuple[int, ...])


class _Spool(msgspec.Struct, frozen=True):
    records: int = 0
    bytes: int = 0
    dropped: dict[str, int] = {}


class Queries:
    """Reads of the hub's database; may be used from any number of threads.

    Args:
        path: The database, which a :class:`aid_edge.hub.store.Store` made.
        releases: The catalogue.
        clock: Present time in seconds since 1970.
    """

    def __init__(
        self, path: Path, releases: ReleaseSource, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._releases = releases
        self._clock = clock
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[sqlite3.Connection] = []

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def devices(
        self,
        where: DeviceFilter = DeviceFilter(),  # noqa: B008 - frozen
        *,
        after: str = "",
        limit: int = DEFAULT_PAGE,
    ) -> DevicePage:
        """Return up to ``limit`` devices with ids after ``after``.

        Raises:
            UsageError: ``limit`` is not 1 to ``MAX_PAGE``.
        """
        condition, values = _condition(where)
        rows = self._all(
            f"SELECT {_SUMMARY} FROM device WHERE id > :after AND {condition}"  # noqa: S608
            " ORDER BY id LIMIT :limit",
            {**values, "after": after, "now": self._clock(), "limit": _checked(limit) + 1},
        )
        found = tuple(_summary(row) for row in rows[:limit])
        return DevicePage(devices=found, next=found[-1].device if len(rows) > limit else None)

    def device_ids(self, where: DeviceFilter = DeviceFilter()) -> tuple[str, ...]:  # noqa: B008
        """Return the ids of all devices that ``where`` chooses."""
        condition, values = _condition(where)
        rows = self._all(
            f"SELECT id FROM device WHERE {condition} ORDER BY id",  # noqa: S608
            {**values, "now": self._clock()},
        )
        return tuple(row["id"] for row in rows)

    def counts(self) -> FleetCounts:
        """Return how many devices are of which status."""
        rows = self._all(
            f"SELECT {_STATUS} AS status, count(*) AS n FROM device GROUP BY 1",  # noqa: S608
            {"now": self._clock()},
        )
        found = {row["status"]: row["n"] for row in rows}
        return FleetCounts(
            devices=sum(found.values()), statuses={s: found.get(s, 0) for s in STATUSES}
        )

    def summary(self, device: str) -> DeviceSummary | None:
        """Return the line of ``device``, or None when the fleet has no such device."""
        rows = self._all(
            f"SELECT {_SUMMARY} FROM device WHERE id = :device",  # noqa: S608
            {"device": device, "now": self._clock()},
        )
        return _summary(rows[0]) if rows else None

    def device(self, device: str) -> DeviceDetail | None:
        """Return everything about ``device``, or None when the fleet has no such device."""
        summary = self.summary(device)
        rows = self._all("SELECT * FROM device WHERE id = :device", {"device": device})
        if summary is None or not rows:
            return None
        row = rows[0]
        spool = msgspec.json.decode(row["spool"], type=_Spool)
        usage = self._usage(device, row["active_digest"])
        return DeviceDetail(
            summary=summary,
            seed=row["seed"],
            seed_applied=row["seed_applied"],
            registered_unix_s=row["registered_unix_s"],
            agent_version=row["agent_version"],
            reported_profile=row["reported_profile"],
            machine_id=row["machine_id"],
            boot_id=row["boot_id"],
            connection=row["connection"],
            reporting_interval_s=row["reporting_interval_s"],
            runtimes=msgspec.json.decode(row["runtimes"], type=dict[str, str]),
            protections=msgspec.json.decode(row["protections"], type=tuple[str, ...]),
            temperature_c=row["temperature_c"],
            memory_available_bytes=row["memory_available_bytes"],
            spool_records=spool.records,
            spool_bytes=spool.bytes,
            spool_dropped=spool.dropped,
            malformed_messages=row["malformed_messages"],
            slots=self._slots(device),
            histogram=usage.histogram,
            deadline_s=self._releases.deadline_s(row["active_digest"]),
            series=usage.series,
            classes=usage.classes,
            confidence=usage.confidence,
            worker_rss_bytes=usage.rss_bytes,
            worker_restarts=usage.restarts,
            events=self.events(device, limit=MAX_EVENTS),
            feedback=self.feedback(device=device).feedback,
            updates=self.updates(device),
        )

    def feedback(
        self,
        *,
        device: str = "",
        verdict: str = "",
        before: int | None = None,
        limit: int = DEFAULT_PAGE,
    ) -> FeedbackPage:
        """Return feedback, newest first, of all devices or one, of all verdicts or one.

        Raises:
            UsageError: ``limit`` is not 1 to ``MAX_PAGE``.
        """
        rows = self._all(
            f"SELECT {_FEEDBACK} FROM feedback WHERE id < :before"  # noqa: S608
            + (" AND device = :device" if device else "")
            + (" AND verdict = :verdict" if verdict else "")
            + " ORDER BY id DESC LIMIT :limit",
            {
                "before": _NEWEST if before is None else before,
                "device": device,
                "verdict": verdict,
                "limit": _checked(limit) + 1,
            },
        )
        found = tuple(FeedbackRow(**dict(row)) for row in rows[:limit])
        return FeedbackPage(feedback=found, next=found[-1].id if len(rows) > limit else None)

    def events(
        self, device: str, *, before: int | None = None, limit: int = DEFAULT_PAGE
    ) -> tuple[EventRow, ...]:
        """Return state transitions of ``device``, newest first.

        Raises:
            UsageError: ``limit`` is not 1 to ``MAX_PAGE``.
        """
        rows = self._all(
            f"SELECT {_EVENT} FROM event WHERE device = :device AND id < :before"  # noqa: S608
            " ORDER BY id DESC LIMIT :limit",
            {
                "device": device,
                "before": _NEWEST if before is None else before,
                "limit": _checked(limit),
            },
        )
        return tuple(EventRow(**dict(row)) for row in rows)

    def trials(self, device: str) -> tuple[TrialRow, ...]:
        """Return the trials that ``device`` was asked for, newest first."""
        rows = self._all(trials.LISTED, {"device": device, "limit": trials.MAX_LISTED})
        return tuple(trials.row_of(row) for row in rows)

    def updates(self, device: str) -> tuple[UpdateRow, ...]:
        """Return the newest desired states that were signed for ``device``, newest first."""
        rows = self._all(
            "SELECT revision, kind,"
            " CASE name WHEN '' THEN '' ELSE name || '@' || version END AS release,"
            " digest, created_unix_s, not_after_unix_s, actor, published FROM desired"
            " WHERE device = :device ORDER BY revision DESC LIMIT :limit",
            {"device": device, "limit": MAX_PAGE},
        )
        return tuple(
            UpdateRow(**{**dict(row), "published": bool(row["published"])}) for row in rows
        )

    def releases(self) -> tuple[ReleaseRow, ...]:
        """Return all published releases, and how many devices run or should run each."""
        active = self._count_by("active_digest AS key FROM device")
        desired = self._count_by(
            "d.digest AS key FROM device JOIN desired AS d"
            " ON d.device = device.id AND d.revision = device.desired_revision"
        )
        return tuple(
            ReleaseRow(
                **msgspec.structs.asdict(r),
                active_devices=active.get(r.digest, 0),
                desired_devices=desired.get(r.digest, 0),
            )
            for r in self._releases.published()
        )

    def _count_by(self, what: str) -> dict[str, int]:
        rows = self._all(f"SELECT count(*) AS n, {what} GROUP BY key", {})
        return {row["key"]: row["n"] for row in rows}

    def _slots(self, device: str) -> tuple[SlotRow, ...]:
        rows = self._all(
            "SELECT * FROM slot WHERE device = :device ORDER BY slot", {"device": device}
        )
        return tuple(
            SlotRow(
                slot=row["slot"],
                state=row["state"],
                release=f"{row['name']}@{row['version']}" if row["name"] else "",
                digest=row["digest"],
                reason=row["reason"],
                progress=row["progress"],
            )
            for row in rows
        )

    def _usage(self, device: str, active_digest: str) -> _Usage:
        rows = self._all(
            "SELECT * FROM usage_window WHERE device = :device AND span_s = :span"
            " AND start_unix_s > :since ORDER BY start_unix_s",
            {"device": device, "span": MINUTE_S, "since": self._clock() - DAY_S},
        )
        active = [row for row in rows if row["digest"] == active_digest]
        bins = [_bins.decode(row["confidence"]) for row in active]
        return _Usage(
            histogram=histogram_of(merge(_sketch.decode(row["latency"]) for row in rows)),
            series=_series(rows),
            classes=self._classes(active, active_digest),
            confidence=functools.reduce(add_bins, bins, ()),
            rss_bytes=max((row["rss_bytes"] for row in active), default=0),
            restarts=sum(row["restarts"] for row in active),
        )

    def _classes(self, rows: Sequence[sqlite3.Row], digest: str) -> tuple[ClassCount, ...]:
        counts: Counter[str] = Counter()
        for row in rows:
            counts.update(_counts.decode(row["classes"]))
        labels = self._releases.labels(digest) if counts else ()
        return tuple(
            ClassCount(index, _label(labels, index), count) for index, count in counts.most_common()
        )

    def _all(self, sql: str, values: Mapping[str, object]) -> list[sqlite3.Row]:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        try:
            if connection is None:
                connection = connect(self._path, read_only=True)
                self._local.connection = connection
                with self._lock:
                    self._connections.append(connection)
            return connection.execute(sql, values).fetchall()
        except sqlite3.Error as e:
            raise HubError(f"{self._path}: {e}") from e


class _Usage(msgspec.Struct, frozen=True, kw_only=True):
    histogram: tuple[Bucket, ...]
    series: tuple[SeriesPoint, ...]
    classes: tuple[ClassCount, ...]
    confidence: tuple[int, ...]
    rss_bytes: int
    restarts: int


_NEWEST = 2**63 - 1


def histogram_of(sketch: Sketch) -> tuple[Bucket, ...]:
    """Return the buckets of ``sketch`` that hold anything, fastest first, in seconds."""
    return tuple(
        Bucket(upper_bound_s(i - 1), upper_bound_s(i), sketch.counts[i])
        for i in sorted(sketch.counts)
    )


def _series(rows: Sequence[sqlite3.Row]) -> tuple[SeriesPoint, ...]:
    if not rows:
        return ()
    covered_s = rows[-1]["start_unix_s"] - rows[0]["start_unix_s"] + MINUTE_S
    width_s = MINUTE_S * math.ceil(covered_s / MAX_SERIES_POINTS / MINUTE_S)
    groups = itertools.groupby(rows, key=lambda row: row["start_unix_s"] // width_s * width_s)
    return tuple(_point(start, width_s, list(group)) for start, group in groups)


def _point(start_unix_s: int, duration_s: int, rows: Sequence[sqlite3.Row]) -> SeriesPoint:
    latency = merge(_sketch.decode(row["latency"]) for row in rows)
    errors = sum(row["error"] for row in rows)
    late = sum(row["deadline"] for row in rows)
    return SeriesPoint(
        start_unix_s=start_unix_s,
        duration_s=duration_s,
        requests=sum(row["ok"] + row["rejected"] for row in rows) + errors + late,
        errors=errors,
        deadline_misses=late,
        p50_s=latency.quantile(0.5),
        p95_s=latency.quantile(0.95),
    )


def _label(labels: Sequence[str], index: str) -> str:
    # Classes come from the device; "²" is a digit to str but not to int.
    known = index.isascii() and index.isdigit() and int(index) < len(labels)
    return labels[int(index)] if known else ""


def _condition(where: DeviceFilter) -> tuple[str, dict[str, object]]:
    parts, values = ["1"], dict[str, object]()
    if where.status:
        names = [f"status{i}" for i in range(len(where.status))]
        values.update(zip(names, where.status, strict=True))
        parts.append(f"{_STATUS} IN ({', '.join(f':{n}' for n in names)})")
    if where.release:
        parts.append("active_release = :release")
        values["release"] = where.release
    if where.text:
        parts.append("(instr(id, :text) OR instr(profile, :text))")
        values["text"] = where.text.lower()
    return " AND ".join(parts), values


def _summary(row: sqlite3.Row) -> DeviceSummary:
    flags = {name: bool(row[name]) for name in ("accepted", "retrying")}
    return DeviceSummary(**{**dict(row), **flags})


def _checked(limit: int) -> int:
    if not 1 <= limit <= MAX_PAGE:
        raise UsageError(f"limit {limit} is not 1 to {MAX_PAGE}")
    return limit
