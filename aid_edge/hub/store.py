"""Writing to the hub's database: one writer, in transactions."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from aid_edge.errors import HubError, UsageError
from aid_edge.home import Home
from aid_edge.hub import trials, usage
from aid_edge.hub.presence import Presence, after_birth, after_death, is_conflict_over
from aid_edge.hub.schema import DAY_S, connect, database_path
from aid_edge.hub.sequence import Stream
from aid_edge.hub.trials import TrialRow
from device_agent.contract.messages import (
    Birth,
    Death,
    Event,
    Feedback,
    ReleaseRef,
    Reported,
    Telemetry,
    TrialResult,
)
from device_agent.contract.names import check_identifier

EVENTS_KEPT_S = 90 * DAY_S
STREAMS_KEPT_S = 30 * DAY_S
"""How long the streams of boots that send nothing more are remembered."""
RESERVED = frozenset({"hub", "cast"})
"""Names that a device cannot have: the hub's own on the broker, and a shared topic level."""

_PRESENCE = ", ".join(Presence.__struct_fields__)
_stream = msgspec.msgpack.Decoder(Stream)


class UnstorableError(HubError):
    """The database is well, but it cannot hold one of the values."""

    code = "unstorable"


class DesiredRow(msgspec.Struct, frozen=True, kw_only=True):
    """One desired state as it was signed for a device.

    Attributes:
        kind: ``deploy``, ``rollback``, ``renewal`` or ``trial``.
        name: Empty, with version and digest, where the device is told to run nothing.
        restores: The revision that a rollback or renewal issues again.
    """

    device: str
    revision: int
    kind: str
    name: str
    version: str
    digest: str
    counter: int
    restores: int | None
    not_after_unix_s: float
    created_unix_s: float
    actor: str
    envelope: bytes


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the director needs to know of a device; revision is the highest that is known."""

    device: str
    profile: str
    revision: int


class Transaction:
    """Writes that are committed together. Got from :meth:`Store.transaction`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def register(self, device: str, profile: str, seed: str, now_unix_s: float) -> None:
        """Put ``device`` into the fleet; one that is there gets the new profile and seed."""
        self._connection.execute(
            "INSERT INTO device (id, profile, seed, registered_unix_s) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET profile = excluded.profile, seed = excluded.seed,"
            " registered_unix_s = excluded.registered_unix_s,"
            # It may go onto another machine now; that is no conflict.
            " machine_id = '', previous_machine_id = '', machine_changed_unix_s = NULL,"
            " conflict = ''",
            (device, profile, seed, now_unix_s),
        )

    def ensure(self, device: str) -> None:
        """Make a line for a device that proved its name to the broker but is not known here."""
        self._connection.execute(
            "INSERT INTO device (id, profile) VALUES (?, '') ON CONFLICT (id) DO NOTHING", (device,)
        )

    def birth(self, device: str, birth: Birth, now_unix_s: float) -> None:
        """Store that ``device`` connected."""
        before = self._presence(device)
        after = after_birth(before, birth, now_unix_s)
        self._connection.execute(
            f"UPDATE device SET ({_PRESENCE}) = ({_places(Presence)}),"  # noqa: S608
            " profile = CASE profile WHEN '' THEN ? ELSE profile END, reported_profile = ?,"
            " reporting_interval_s = ?, agent_version = ?, runtimes = ?, protections = ?,"
            " seed_applied = ? WHERE id = ?",
            (
                *msgspec.structs.astuple(after),
                birth.profile,
                birth.profile,
                birth.reporting_interval_s,
                birth.agent_version,
                msgspec.json.encode(birth.runtimes).decode(),
                msgspec.json.encode(birth.protections).decode(),
                birth.seed_applied,
                device,
            ),
        )

    def death(self, device: str, death: Death) -> None:
        """Store that a connection of ``device`` ended, unless that is stale."""
        after = after_death(self._presence(device), death)
        self._connection.execute(
            "UPDATE device SET online = ? WHERE id = ?", (after.online, device)
        )

    def reported(self, device: str, reported: Reported) -> None:
        """Store what ``device`` says it runs."""
        slots = {report.slot: report for report in reported.slots}
        active, candidate = slots.get("active"), slots.get("candidate")
        release = active.release if active else None
        is_changing = candidate is not None and candidate.state != "idle"
        leading = candidate if is_changing else active
        self._connection.execute(
            "UPDATE device SET revision = ?, accepted = ?, reason = ?, active_release = ?,"
            " active_digest = ?, deployment_state = ?, retrying = ? WHERE id = ?",
            (
                reported.revision,
                reported.accepted,
                reported.reason or (leading.reason if leading else ""),
                _name(release),
                release.digest if release else "",
                leading.state if leading else "",
                leading.retrying if leading else False,
                device,
            ),
        )
        self._connection.execute("DELETE FROM slot WHERE device = ?", (device,))
        self._connection.executemany(
            "INSERT INTO slot (device, slot, state, name, version, digest, reason, progress)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    device,
                    report.slot,
                    report.state,
                    *((r.name, r.version, r.digest) if (r := report.release) else ("", "", "")),
                    report.reason,
                    report.progress,
                )
                for report in slots.values()
            ],
        )

    def event(self, device: str, event: Event, now_unix_s: float) -> None:
        """Store a state transition."""
        self._connection.execute(
            "INSERT INTO event (device, at_unix_s, received_unix_s, kind, state, release, digest,"
            " detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                device,
                event.at_unix_s,
                now_unix_s,
                event.kind,
                event.state,
                _name(event.release),
                event.release.digest if event.release else "",
                event.detail,
            ),
        )

    def feedback(self, device: str, feedback: Feedback, now_unix_s: float) -> None:
        """Store a person's verdict."""
        self._connection.execute(
            "INSERT INTO feedback (device, at_unix_s, received_unix_s, inference_id, release,"
            " digest, verdict, predicted, confidence, latency_s, label, comment)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                device,
                feedback.at_unix_s,
                now_unix_s,
                feedback.inference_id,
                _name(feedback.release),
                feedback.release.digest,
                feedback.verdict,
                feedback.predicted,
                feedback.confidence,
                feedback.latency_s,
                feedback.label,
                feedback.comment,
            ),
        )
        usage.refresh_totals(self._connection, device, now_unix_s)

    def telemetry(self, device: str, telemetry: Telemetry, now_unix_s: float) -> None:
        """Merge a batch of windows and store the readings that came with it."""
        for window in telemetry.windows:
            usage.add_window(self._connection, device, window, now_unix_s)
        self._connection.execute(
            "UPDATE device SET temperature_c = ?, memory_available_bytes = ?, spool = ?"
            " WHERE id = ?",
            (
                telemetry.temperature_c,
                telemetry.memory_available_bytes,
                msgspec.json.encode(telemetry.spool).decode(),
                device,
            ),
        )
        usage.refresh_totals(self._connection, device, now_unix_s)

    def add_trial(self, row: TrialRow) -> None:
        """Store a trial that is asked for."""
        trials.add(self._connection, row)

    def pending_trials(self, device: str, now_unix_s: float) -> list[TrialRow]:
        """Return the trials that ``device`` has yet to do, oldest first."""
        return trials.pending(self._connection, device, now_unix_s)

    def withdraw_trials(self, device: str, ids: tuple[str, ...]) -> None:
        """Let a device not do these trials."""
        trials.withdraw(self._connection, device, ids)

    def trial_result(self, device: str, result: TrialResult) -> None:
        """Store what a trial found."""
        trials.finish(self._connection, device, result)

    def stream(self, device: str, boot_id: str) -> Stream:
        """Return which records of this boot are stored."""
        row = self._connection.execute(
            "SELECT state FROM stream WHERE device = ? AND boot_id = ?", (device, boot_id)
        ).fetchone()
        return _stream.decode(row["state"]) if row else Stream()

    def set_stream(self, device: str, boot_id: str, stream: Stream, now_unix_s: float) -> None:
        """Store which records of this boot are stored; in the transaction that stores them."""
        self._connection.execute(
            "INSERT OR REPLACE INTO stream (device, boot_id, state, used_unix_s)"
            " VALUES (?, ?, ?, ?)",
            (device, boot_id, msgspec.msgpack.encode(stream), now_unix_s),
        )

    def seen(self, last_seen_unix_s: Mapping[str, float]) -> None:
        """Store when devices were last heard of."""
        self._connection.executemany(
            "UPDATE device SET last_seen_unix_s = ? WHERE id = ?",
            [(at, device) for device, at in last_seen_unix_s.items()],
        )

    def malformed(self, counts: Mapping[str, int]) -> None:
        """Count messages that were not of the contract, for devices that are known."""
        self._connection.executemany(
            "UPDATE device SET malformed_messages = malformed_messages + ? WHERE id = ?",
            [(count, device) for device, count in counts.items()],
        )

    def facts(self, device: str) -> DeviceFacts | None:
        """Return what the director needs to know of ``device``; None when it is not known."""
        row = self._connection.execute(
            "SELECT profile, max(revision, desired_revision) AS revision FROM device WHERE id = ?",
            (device,),
        ).fetchone()
        if row is None or row["revision"] is None:
            return None
        return DeviceFacts(device=device, profile=row["profile"], revision=row["revision"])

    def add_desired(self, row: DesiredRow) -> None:
        """Store a newly signed desired state as the one in force."""
        names = DesiredRow.__struct_fields__
        self._connection.execute(
            f"INSERT INTO desired ({', '.join(names)}) VALUES ({_places(DesiredRow)})",  # noqa: S608
            msgspec.structs.astuple(row),
        )
        self._connection.execute(
            "UPDATE device SET desired_revision = ?, desired_release = ? WHERE id = ?",
            (row.revision, f"{row.name}@{row.version}" if row.name else "", row.device),
        )

    def desired(self, device: str) -> list[DesiredRow]:
        """Return all desired states that were signed for ``device``, newest first."""
        return self._desired("WHERE device = ? ORDER BY revision DESC", device)

    def desired_in_force(self, *, unpublished_only: bool) -> list[DesiredRow]:
        """Return every device's newest desired state."""
        newest = "AS d WHERE revision = (SELECT max(revision) FROM desired WHERE device = d.device)"
        return self._desired(newest + (" AND published = 0" if unpublished_only else ""))

    def set_published(self, device: str, revision: int) -> None:
        """Store that the broker has this desired state."""
        self._connection.execute(
            "UPDATE desired SET published = 1 WHERE device = ? AND revision = ?", (device, revision)
        )

    def audit(self, actor: str, action: str, target: str, outcome: str, detail: str) -> None:
        """Store who did what, for people who ask later."""
        self._connection.execute(
            "INSERT INTO audit (at_unix_s, actor, action, target, outcome, detail)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (time.time(), actor, action, target, outcome, detail),
        )

    def prune(self, now_unix_s: float) -> None:
        """Drop what is older than it need be, and conflicts that are over."""
        usage.prune(self._connection, now_unix_s)
        trials.prune(self._connection, now_unix_s)
        self._connection.execute(
            "DELETE FROM event WHERE received_unix_s < ?", (now_unix_s - EVENTS_KEPT_S,)
        )
        self._connection.execute(
            "DELETE FROM stream WHERE used_unix_s < ?", (now_unix_s - STREAMS_KEPT_S,)
        )
        for (device,) in self._connection.execute(
            "SELECT id FROM device WHERE conflict <> ''"
        ).fetchall():
            if is_conflict_over(self._presence(device), now_unix_s):
                self._connection.execute("UPDATE device SET conflict = '' WHERE id = ?", (device,))

    def _presence(self, device: str) -> Presence:
        row = self._connection.execute(
            f"SELECT {_PRESENCE} FROM device WHERE id = ?",  # noqa: S608
            (device,),
        ).fetchone()
        if row is None:
            return Presence()
        return Presence(**{**dict(row), "online": bool(row["online"])})

    def _desired(self, rest: str, *values: object) -> list[DesiredRow]:
        names = ", ".join(DesiredRow.__struct_fields__)
        rows = self._connection.execute(f"SELECT {names} FROM desired {rest}", values)  # noqa: S608
        return [DesiredRow(**dict(row)) for row in rows]


class Store:
    """The one writer of a process. Other processes may write too; each waits for the other."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open the database at ``path``, making it if need be.

        Raises:
            HubError: It cannot be opened.
        """
        self.path = path
        self.clock = clock
        self._connection = connect(path)
        self._lock = threading.RLock()

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Return what to write with; commits at the end, or not at all when the body raises.

        Raises:
            UnstorableError: A value does not fit into the database.
            HubError: The database refused, such as for a full disk.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield Transaction(self._connection)
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.OperationalError as e:
                raise HubError(f"{self.path}: {e}") from e
            except (sqlite3.Error, OverflowError, msgspec.MsgspecError) as e:
                raise UnstorableError(f"{self.path}: {e}") from e


def register_device(home: Home, device: str, profile: str, seed: str) -> None:
    """Put ``device`` into the fleet of ``home``, whether its hub runs or not.

    Args:
        home: The operator's home.
        device: Identifier; a device of this name that is there gets the new profile and seed.
        profile: Identifier of its hardware profile.
        seed: Id of the bundle that is made for it.

    Raises:
        MalformedMessageError: ``device`` or ``profile`` is not a valid identifier.
        UsageError: ``device`` is a reserved name.
        HubError: The database cannot be written.
    """
    check_device(device)
    check_identifier("profile", profile)
    store = Store(database_path(home))
    try:
        with store.transaction() as transaction:
            transaction.register(device, profile, seed, store.clock())
            transaction.audit("aid-edge flash", "register", device, "ok", f"profile {profile}")
    finally:
        store.close()


def check_device(device: str) -> str:
    """Return ``device`` if a device can have that name.

    Raises:
        MalformedMessageError: It is not a valid identifier.
        UsageError: It is reserved.
    """
    if check_identifier("device", device) in RESERVED:
        raise UsageError(f"a device cannot be called {device!r}", hint="Choose another name.")
    return device


def _name(release: ReleaseRef | None) -> str:
    return f"{release.name}@{release.version}" if release else ""


def _places(kind: type[msgspec.Struct]) -> str:
    return ", ".join("?" for _ in kind.__struct_fields__)
