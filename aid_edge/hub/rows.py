"""What the hub's queries return, as the API and the web view show it: frozen, JSON-encodable."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["ok", "degraded", "late", "offline", "updating", "failed", "never-seen"]
STATUSES: tuple[Status, ...] = (
    "ok", "degraded", "late", "offline", "updating", "failed", "never-seen",
)  # fmt: skip


class DeviceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the fleet.

    Counts and latencies are of the 24 hours before the device was last seen.

    Attributes:
        release: ``name@version`` in the active slot; empty when it runs nothing.
        desired: ``name@version`` that it should run; empty when nothing was ever deployed.
        accepted: False when the device refused ``revision``.
        reason: Why the newest deployment failed or was refused, in words.
        retrying: The deployment failed for a passing reason, and the device tries again by itself.
        p50_s: Median total latency of an inference, in seconds; None before the first.
        wrong_reports: Predictions that people called wrong.
        last_seen_unix_s: Last message that was not a broker's stored copy.
        conflict: What is wrong with the device's identity (two machines share it); mostly empty.
    """

    device: str
    profile: str
    status: Status
    release: str
    desired: str
    revision: int
    desired_revision: int
    accepted: bool
    deployment_state: str
    reason: str
    p50_s: float | None
    p95_s: float | None
    requests: int
    errors: int
    deadline_misses: int
    rejected: int
    wrong_reports: int
    last_seen_unix_s: float | None
    conflict: str
    retrying: bool = False


class DevicePage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of the fleet in the order of device ids; ``next`` is the next page's ``after``."""

    devices: tuple[DeviceSummary, ...]
    next: str | None


class SlotRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the device reports of one slot; ``progress`` is 0..1 while it fetches."""

    slot: str
    state: str
    release: str
    digest: str
    reason: str
    progress: float | None


class Bucket(msgspec.Struct, frozen=True):
    """``count`` latencies in ``(low_s, high_s]`` seconds."""

    low_s: float
    high_s: float
    count: int


class SeriesPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of one window; latencies in seconds, None when there were none."""

    start_unix_s: int
    duration_s: int
    requests: int
    errors: int
    deadline_misses: int
    p50_s: float | None
    p95_s: float | None


class ClassCount(msgspec.Struct, frozen=True):
    """How often a class was the top-1 answer; ``label`` is empty when the release names none."""

    index: str
    label: str
    count: int


class EventRow(msgspec.Struct, frozen=True, kw_only=True):
    """A state transition on a device. ``id`` grows with time of arrival."""

    id: int
    device: str
    at_unix_s: float
    kind: str
    state: str
    release: str
    detail: str


class FeedbackRow(msgspec.Struct, frozen=True, kw_only=True):
    """A person's verdict on one prediction. ``id`` grows with time of arrival."""

    id: int
    device: str
    at_unix_s: float
    received_unix_s: float
    inference_id: str
    release: str
    digest: str
    verdict: str
    predicted: str
    confidence: float | None
    latency_s: float | None
    label: str
    comment: str


class FeedbackPage(msgspec.Struct, frozen=True, kw_only=True):
    """Feedback, newest first; ``next`` is the next page's ``before``."""

    feedback: tuple[FeedbackRow, ...]
    next: int | None


class UpdateRow(msgspec.Struct, frozen=True, kw_only=True):
    """A desired state that the director signed for a device.

    Attributes:
        kind: ``deploy``, ``rollback`` or ``renewal``.
    """

    revision: int
    kind: str
    release: str
    digest: str
    created_unix_s: float
    not_after_unix_s: float
    actor: str
    published: bool


class DeviceDetail(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one device.

    Attributes:
        runtimes: Runtime name to installed version.
        protections: Which of the agent's protections are in force there.
        histogram: Total latency over the last 24 hours, merged.
        deadline_s: Within which the active release should answer, in seconds, unless a request
            says otherwise; None without a release that the catalogue has.
        series: p50 and p95 by window over the last 24 hours, oldest first.
        classes: Top-1 answers of the active release over the last 24 hours, most frequent first.
        confidence: Counts of top-1 probability in ten equal bins of 0..1; empty without any.
        spool_dropped: Class of record to how many the device had to drop.
        updates: Newest first.
    """

    summary: DeviceSummary
    seed: str
    seed_applied: str
    registered_unix_s: float | None
    agent_version: str
    reported_profile: str
    machine_id: str
    boot_id: str
    connection: int
    reporting_interval_s: float
    runtimes: dict[str, str]
    protections: tuple[str, ...]
    temperature_c: float | None
    memory_available_bytes: int | None
    spool_records: int
    spool_bytes: int
    spool_dropped: dict[str, int]
    malformed_messages: int
    slots: tuple[SlotRow, ...]
    histogram: tuple[Bucket, ...]
    series: tuple[SeriesPoint, ...]
    classes: tuple[ClassCount, ...]
    confidence: tuple[int, ...]
    worker_rss_bytes: int
    worker_restarts: int
    events: tuple[EventRow, ...]
    feedback: tuple[FeedbackRow, ...]
    updates: tuple[UpdateRow, ...]
    deadline_s: float | None = None


class ReleaseRow(msgspec.Struct, frozen=True, kw_only=True):
    """A published release, for one profile, and how much of the fleet runs it."""

    name: str
    version: str
    profile: str
    digest: str
    counter: int
    runtime: str
    size_bytes: int
    active_devices: int
    desired_devices: int


class FleetCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many devices there are, and how many of each status (all statuses are named)."""

    devices: int
    statuses: dict[str, int]


class DeviceFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which devices to list.

    Attributes:
        status: Only these statuses; empty for all.
        release: Only devices with this ``name@version`` active.
        text: Only devices whose id or profile contains this.
    """

    status: tuple[Status, ...] = ()
    release: str = ""
    text: str = ""


class PublishedRelease(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub knows of a release in the catalogue."""

    name: str
    version: str
    profile: str
    digest: str
    counter: int
    runtime: str
    size_bytes: int
