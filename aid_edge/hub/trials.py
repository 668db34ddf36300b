"""Trials at the hub: which releases devices are asked to measure, and what they found.

One row per trial in the table ``trial``; the result stands in it once the record came.
"""

from __future__ import annotations

import secrets
import sqlite3

import msgspec

from aid_edge.hub.schema import DAY_S
from device_agent.contract.desired import MAX_TRIALS, Trial
from device_agent.contract.messages import ReleaseRef, TrialResult

VALID_S = DAY_S
"""How long a device is asked for a trial; one that was off for longer is not."""

KEPT_S = 90 * DAY_S
MAX_LISTED = 500


class TrialRow(msgspec.Struct, frozen=True, kw_only=True):
    """One trial that a device was asked for.

    Attributes:
        withdrawn: Nobody waits for it any more.
        result: What the device found; None until it says it.
    """

    id: str
    device: str
    release: ReleaseRef
    counter: int
    runs: int
    warmup: int
    asked_unix_s: float
    actor: str
    withdrawn: bool = False
    result: TrialResult | None = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Trials of one device."""

    device: str
    trials: tuple[TrialRow, ...]


def new_id() -> str:
    """Return an id that no other trial has."""
    return f"t-{secrets.token_hex(8)}"


def add(connection: sqlite3.Connection, row: TrialRow) -> None:
    """Store a trial that is asked for."""
    connection.execute(
        "INSERT INTO trial (id, device, name, version, digest, counter, runs, warmup,"
        " asked_unix_s, actor) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.id, row.device, row.release.name, row.release.version, row.release.digest,
            row.counter, row.runs, row.warmup, row.asked_unix_s, row.actor,
        ),
    )  # fmt: skip


def pending(connection: sqlite3.Connection, device: str, now_unix_s: float) -> list[TrialRow]:
    """Return the trials that ``device`` has yet to do, oldest first (M-4.10-5)."""
    return _rows(
        connection,
        "WHERE device = ? AND result IS NULL AND withdrawn = 0 AND asked_unix_s > ?"
        " ORDER BY asked_unix_s, id LIMIT ?",
        device,
        now_unix_s - VALID_S,
        MAX_TRIALS,
    )


def withdraw(connection: sqlite3.Connection, device: str, ids: tuple[str, ...]) -> None:
    """Let a device not do these trials."""
    connection.executemany(
        "UPDATE trial SET withdrawn = 1 WHERE device = ? AND id = ? AND result IS NULL",
        [(device, name) for name in ids],
    )


def finish(connection: sqlite3.Connection, device: str, result: TrialResult) -> None:
    """Store what a trial found; one that nobody asked this device for is left out."""
    connection.execute(
        "UPDATE trial SET result = ? WHERE device = ? AND id = ? AND digest = ?",
        (msgspec.json.encode(result), device, result.trial, result.release.digest),
    )


LISTED = "SELECT * FROM trial WHERE device = :device ORDER BY asked_unix_s DESC, id LIMIT :limit"
"""The trials that a device was asked for, newest first."""


def prune(connection: sqlite3.Connection, now_unix_s: float) -> None:
    """Drop what is older than it need be."""
    connection.execute("DELETE FROM trial WHERE asked_unix_s < ?", (now_unix_s - KEPT_S,))


def wanted(row: TrialRow) -> Trial:
    """Return a trial as a desired state names it."""
    return Trial(
        id=row.id, release=row.release, counter=row.counter, runs=row.runs, warmup=row.warmup
    )


def _rows(connection: sqlite3.Connection, rest: str, *values: object) -> list[TrialRow]:
    found = connection.execute(f"SELECT * FROM trial {rest}", values)  # noqa: S608 - ours
    return [row_of(row) for row in found]


def row_of(row: sqlite3.Row) -> TrialRow:
    """Return a row of the table as what it says."""
    return TrialRow(
        id=row["id"],
        device=row["device"],
        release=ReleaseRef(row["name"], row["version"], row["digest"]),
        counter=row["counter"],
        runs=row["runs"],
        warmup=row["warmup"],
        asked_unix_s=row["asked_unix_s"],
        actor=row["actor"],
        withdrawn=bool(row["withdrawn"]),
        result=msgspec.json.decode(row["result"], type=TrialResult) if row["result"] else None,
    )
