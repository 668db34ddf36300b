"""The bounded durable queue of records, pruned only by the hub's acks (contract §4.9).

Events, telemetry and feedback share one sequence per boot. They lie in SQLite until the hub says
that they are stored; when there is no room, the least valuable go first and are counted.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from device_agent.contract.messages import Event, Feedback, SpoolState, Telemetry, TrialResult
from device_agent.errors import SpoolError

Record = Event | Telemetry | Feedback | TrialResult
"""What is spooled."""

RECORD_OVERHEAD_BYTES = 64
"""What a record takes besides its payload, in round numbers."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS boots (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    boot_id TEXT NOT NULL UNIQUE
);
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    boot INTEGER NOT NULL REFERENCES boots(number),
    seq INTEGER NOT NULL,
    kind TEXT NOT NULL,
    payload BLOB NOT NULL,
    UNIQUE (boot, seq)
);
CREATE INDEX IF NOT EXISTS by_kind ON records (kind, id);
CREATE TABLE IF NOT EXISTS dropped (kind TEXT PRIMARY KEY, count INTEGER NOT NULL);
"""
_IN_MEMORY = Path(":memory:")
_YIELDS_FIRST = ("telemetry", "event", "feedback")
_KINDS: dict[type[Record], str] = {
    Telemetry: "telemetry",
    Event: "event",
    TrialResult: "event",
    Feedback: "feedback",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spooled:
    """A record in the spool.

    Attributes:
        id: Its place in the queue; grows with every record.
        payload: As it was encoded when it was made; its floor may be older than ``floor``.
        floor: Lowest sequence number of its boot that is still held.
    """

    id: int
    boot_id: str
    seq: int
    kind: str
    payload: bytes
    floor: int


class Spool:
    """The queue on disk. All methods may be called from any thread.

    A database that cannot be read, after the disk lost something, is put aside and begun anew: an
    agent without its old records is better than none.

    Args:
        path: The database file; None keeps the records in memory only.
        boot_id: Of this start of the agent.
        max_bytes: Bound on all payloads together, with ``RECORD_OVERHEAD_BYTES`` for each.
        encode: Encodes a record.
    """

    def __init__(
        self, path: Path | None, boot_id: str, *, max_bytes: int, encode: Callable[[Record], bytes]
    ) -> None:
        """Open the spool, and count what it holds.

        Raises:
            SpoolError: There can be none at this path.
        """
        self._path = path or _IN_MEMORY
        self._boot_id, self._max_bytes, self._encode = boot_id, max_bytes, encode
        self._lock = threading.Lock()
        self._seq = 0
        self._held_from = 1
        self._unsaved_drops: Counter[str] = Counter()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._open()
            except sqlite3.DatabaseError as e:
                if isinstance(e, sqlite3.OperationalError) and "malformed" not in str(e):
                    raise
                self._put_aside(e)
                self._open()
        except (OSError, sqlite3.Error) as e:
            raise SpoolError(f"spool {self._path}: {e}") from e

    def _open(self) -> None:
        db = sqlite3.connect(
            self._path, check_same_thread=False, isolation_level=None, cached_statements=32
        )
        try:
            db.execute("PRAGMA journal_mode = WAL")
            # A record is on the disk when add() returns.
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA journal_size_limit = 1048576")
            db.executescript(_SCHEMA)
            db.execute("INSERT OR IGNORE INTO boots (boot_id) VALUES (?)", (self._boot_id,))
            db.execute(
                "DELETE FROM boots WHERE boot_id <> ? AND number NOT IN (SELECT boot FROM records)",
                (self._boot_id,),
            )
            (self._boot,) = db.execute(
                "SELECT number FROM boots WHERE boot_id = ?", (self._boot_id,)
            ).fetchone()
            self._records, self._bytes = db.execute(
                "SELECT count(*), coalesce(sum(length(payload) + ?), 0) FROM records",
                (RECORD_OVERHEAD_BYTES,),
            ).fetchone()
            (self._seq,) = db.execute(
                "SELECT coalesce(max(seq), 0) FROM records WHERE boot = ?", (self._boot,)
            ).fetchone()
            self._dropped: Counter[str] = Counter(
                dict(db.execute("SELECT kind, count FROM dropped").fetchall())
            )
        except BaseException:
            db.close()
            raise
        self._db = db

    def _put_aside(self, error: sqlite3.DatabaseError) -> None:
        _log.error("spool %s cannot be read, and is begun anew: %s", self._path, error)
        for suffix in ("", "-wal", "-shm"):
            part = Path(f"{self._path}{suffix}")
            if part.exists():
                part.replace(f"{self._path}.unreadable{suffix}")

    def add(self, make: Callable[[int, int], Record]) -> int | None:
        """Put a record into the queue and return its sequence number; None when it was dropped.

        Dropping is counted. Room is made by dropping what is least valuable, oldest first;
        a record never drops more valuable ones.

        Args:
            make: Makes the record from its sequence number and floor.

        Raises:
            ContractError: The record cannot be encoded.
        """
        with self._lock:
            seq = self._seq + 1
            with suppress(sqlite3.Error):
                self._held_from = self._floor(self._boot)
            record = make(seq, self._held_from)
            kind = _KINDS[type(record)]
            payload = self._encode(record)
            try:
                if not self._make_room(len(payload) + RECORD_OVERHEAD_BYTES, kind):
                    self._drop(kind)
                    return None
                self._insert(seq, kind, payload)
                self._save_drops()
            except sqlite3.Error as e:
                # The disk is full or failing: the agent goes on, and says what was lost.
                _log.error("spool %s: a record of kind %s is lost: %s", self._path, kind, e)
                self._drop(kind)
                return None
            return seq

    def _insert(self, seq: int, kind: str, payload: bytes) -> None:
        self._db.execute(
            "INSERT INTO records (boot, seq, kind, payload) VALUES (?, ?, ?, ?)",
            (self._boot, seq, kind, payload),
        )
        self._seq = seq
        self._records += 1
        self._bytes += len(payload) + RECORD_OVERHEAD_BYTES

    def _make_room(self, need_bytes: int, kind: str) -> bool:
        if need_bytes > self._max_bytes:
            return False
        yielding = _YIELDS_FIRST[: _YIELDS_FIRST.index(kind) + 1]
        while self._bytes + need_bytes > self._max_bytes:
            oldest = None
            for candidate in yielding:
                oldest = self._db.execute(
                    "SELECT id, kind, length(payload) FROM records WHERE kind = ? "
                    "ORDER BY id LIMIT 1",
                    (candidate,),
                ).fetchone()
                if oldest is not None:
                    break
            if oldest is None:
                return False
            self._db.execute("DELETE FROM records WHERE id = ?", (oldest[0],))
            self._records -= 1
            self._bytes -= oldest[2] + RECORD_OVERHEAD_BYTES
            self._drop(oldest[1])
        return True

    def _drop(self, kind: str) -> None:
        self._dropped[kind] += 1
        self._unsaved_drops[kind] += 1
        self._save_drops()

    def _save_drops(self) -> None:
        with suppress(sqlite3.Error):
            for name, count in self._unsaved_drops.items():
                self._db.execute(
                    "INSERT INTO dropped (kind, count) VALUES (?, ?) "
                    "ON CONFLICT (kind) DO UPDATE SET count = count + excluded.count",
                    (name, count),
                )
            self._unsaved_drops.clear()

    def _floor(self, boot: int) -> int:
        """Return the lowest sequence number that is held or, of this boot, will be next."""
        (lowest,) = self._db.execute(
            "SELECT min(seq) FROM records WHERE boot = ?", (boot,)
        ).fetchone()
        return int(lowest) if lowest is not None else self._seq + 1

    def pending(self, after_id: int, limit: int) -> list[Spooled]:
        """Return the oldest records after the place ``after_id``, at most ``limit`` of them.

        Raises:
            SpoolError: The spool cannot be read.
        """
        with self._lock:
            try:
                rows = self._db.execute(
                    "SELECT records.id, boot_id, seq, kind, payload, boot FROM records "
                    "JOIN boots ON number = boot WHERE records.id > ? ORDER BY records.id LIMIT ?",
                    (after_id, limit),
                ).fetchall()
                floors = {boot: self._floor(boot) for boot in {row[5] for row in rows}}
            except sqlite3.Error as e:
                raise SpoolError(f"spool {self._path}: {e}") from e
        return [
            Spooled(place, boot_id, seq, kind, payload, floors[boot])
            for place, boot_id, seq, kind, payload, boot in rows
        ]

    def acknowledge(self, boot_id: str, seq: int) -> int:
        """Forget the records of ``boot_id`` up to and with ``seq``; return how many they were.

        Raises:
            SpoolError: The spool cannot be written.
        """
        with self._lock:
            try:
                (count, size) = self._db.execute(
                    "SELECT count(*), coalesce(sum(length(payload) + ?), 0) FROM records WHERE "
                    "boot = (SELECT number FROM boots WHERE boot_id = ?) AND seq <= ?",
                    (RECORD_OVERHEAD_BYTES, boot_id, seq),
                ).fetchone()
                if not count:
                    return 0
                self._db.execute(
                    "DELETE FROM records WHERE "
                    "boot = (SELECT number FROM boots WHERE boot_id = ?) AND seq <= ?",
                    (boot_id, seq),
                )
            except sqlite3.Error as e:
                raise SpoolError(f"spool {self._path}: {e}") from e
            self._records -= count
            self._bytes -= size
            return int(count)

    def state(self) -> SpoolState:
        """Return what the spool holds and has dropped."""
        with self._lock:
            return SpoolState(records=self._records, bytes=self._bytes, dropped=dict(self._dropped))

    def close(self) -> None:
        """Close the database; records stay."""
        with self._lock, closing(self._db), suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
