"""The hub's SQLite tables.

What a list needs stands in ``device`` itself, so that listing never reads a log. Telemetry is
merged into windows of a minute and of an hour as it arrives (``usage_window``); ``stream`` makes
that idempotent on (device, boot id, sequence) without keeping a row for every record.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from aid_edge.errors import HubError
from aid_edge.home import Home

VERSION = 3
BUSY_TIMEOUT_MS = 10_000
"""How long a writer waits for another process, such as ``aid-edge flash``, to commit."""

MINUTE_S = 60
HOUR_S = 3600
DAY_S = 24 * HOUR_S

_TRIAL = """CREATE TABLE trial (
  id           TEXT PRIMARY KEY,
  device       TEXT NOT NULL,
  name         TEXT NOT NULL,
  version      TEXT NOT NULL,
  digest       TEXT NOT NULL,
  counter      INTEGER NOT NULL,
  runs         INTEGER NOT NULL,
  warmup       INTEGER NOT NULL,
  asked_unix_s REAL NOT NULL,
  actor        TEXT NOT NULL,
  withdrawn    INTEGER NOT NULL DEFAULT 0,
  result       BLOB
) WITHOUT ROWID;
"""

TABLES = (
    _TRIAL
    + """
CREATE TABLE device (
  id                     TEXT PRIMARY KEY,
  profile                TEXT NOT NULL,
  seed                   TEXT NOT NULL DEFAULT '',
  registered_unix_s      REAL,
  -- presence, from births and deaths
  online                 INTEGER NOT NULL DEFAULT 0,
  boot_id                TEXT NOT NULL DEFAULT '',
  connection             INTEGER NOT NULL DEFAULT 0,
  machine_id             TEXT NOT NULL DEFAULT '',
  previous_machine_id    TEXT NOT NULL DEFAULT '',
  machine_changed_unix_s REAL,
  conflict               TEXT NOT NULL DEFAULT '',
  last_seen_unix_s       REAL,
  reporting_interval_s   REAL NOT NULL DEFAULT 10,
  agent_version          TEXT NOT NULL DEFAULT '',
  reported_profile       TEXT NOT NULL DEFAULT '',
  runtimes               TEXT NOT NULL DEFAULT '{}',
  protections            TEXT NOT NULL DEFAULT '[]',
  seed_applied           TEXT NOT NULL DEFAULT '',
  -- what it says it runs
  revision               INTEGER NOT NULL DEFAULT 0,
  accepted               INTEGER NOT NULL DEFAULT 1,
  reason                 TEXT NOT NULL DEFAULT '',
  active_release         TEXT NOT NULL DEFAULT '',
  active_digest          TEXT NOT NULL DEFAULT '',
  deployment_state       TEXT NOT NULL DEFAULT '',
  retrying               INTEGER NOT NULL DEFAULT 0,
  -- what it should run
  desired_revision       INTEGER NOT NULL DEFAULT 0,
  desired_release        TEXT NOT NULL DEFAULT '',
  -- the last 24 hours before last_seen
  requests               INTEGER NOT NULL DEFAULT 0,
  errors                 INTEGER NOT NULL DEFAULT 0,
  deadline_misses        INTEGER NOT NULL DEFAULT 0,
  rejected               INTEGER NOT NULL DEFAULT 0,
  p50_s                  REAL,
  p95_s                  REAL,
  wrong_reports          INTEGER NOT NULL DEFAULT 0,
  -- readings
  temperature_c          REAL,
  memory_available_bytes INTEGER,
  spool                  TEXT NOT NULL DEFAULT '{}',
  malformed_messages     INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

CREATE INDEX device_release ON device (active_release, id);

CREATE TABLE slot (
  device    TEXT NOT NULL,
  slot      TEXT NOT NULL,
  state     TEXT NOT NULL,
  name      TEXT NOT NULL DEFAULT '',
  version   TEXT NOT NULL DEFAULT '',
  digest    TEXT NOT NULL DEFAULT '',
  reason    TEXT NOT NULL DEFAULT '',
  progress  REAL,
  PRIMARY KEY (device, slot)
) WITHOUT ROWID;

-- Every desired state that was ever signed for a device; the newest revision is in force.
-- restores: the revision that a rollback or renewal issues again.
CREATE TABLE desired (
  device           TEXT NOT NULL,
  revision         INTEGER NOT NULL,
  kind             TEXT NOT NULL,
  name             TEXT NOT NULL,
  version          TEXT NOT NULL,
  digest           TEXT NOT NULL,
  counter          INTEGER NOT NULL,
  restores         INTEGER,
  not_after_unix_s REAL NOT NULL,
  created_unix_s   REAL NOT NULL,
  actor            TEXT NOT NULL DEFAULT '',
  envelope         BLOB NOT NULL,
  published        INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (device, revision)
) WITHOUT ROWID;

CREATE INDEX desired_unpublished ON desired (device) WHERE published = 0;

-- One row per device, release and span: merged from all windows that start within it.
CREATE TABLE usage_window (
  device       TEXT NOT NULL,
  span_s       INTEGER NOT NULL,
  start_unix_s INTEGER NOT NULL,
  digest       TEXT NOT NULL,
  release      TEXT NOT NULL,
  ok           INTEGER NOT NULL,
  error        INTEGER NOT NULL,
  deadline     INTEGER NOT NULL,
  rejected     INTEGER NOT NULL,
  latency      BLOB NOT NULL,
  phases       BLOB NOT NULL,
  classes      BLOB NOT NULL,
  confidence   BLOB NOT NULL,
  rss_bytes    INTEGER NOT NULL,
  restarts     INTEGER NOT NULL,
  PRIMARY KEY (device, span_s, start_unix_s, digest)
) WITHOUT ROWID;

CREATE INDEX usage_window_age ON usage_window (span_s, start_unix_s);

CREATE TABLE event (
  id               INTEGER PRIMARY KEY,
  device           TEXT NOT NULL,
  at_unix_s        REAL NOT NULL,
  received_unix_s  REAL NOT NULL,
  kind             TEXT NOT NULL,
  state            TEXT NOT NULL,
  release          TEXT NOT NULL,
  digest           TEXT NOT NULL,
  detail           TEXT NOT NULL
);

CREATE INDEX event_device ON event (device, id);

CREATE TABLE feedback (
  id               INTEGER PRIMARY KEY,
  device           TEXT NOT NULL,
  at_unix_s        REAL NOT NULL,
  received_unix_s  REAL NOT NULL,
  inference_id     TEXT NOT NULL,
  release          TEXT NOT NULL,
  digest           TEXT NOT NULL,
  verdict          TEXT NOT NULL,
  predicted        TEXT NOT NULL,
  confidence       REAL,
  latency_s        REAL,
  label            TEXT NOT NULL,
  comment          TEXT NOT NULL
);

CREATE INDEX feedback_device ON feedback (device, id);
CREATE INDEX feedback_verdict ON feedback (verdict, id);

-- What of a boot's numbered records is stored; see hub/sequence.py.
CREATE TABLE stream (
  device        TEXT NOT NULL,
  boot_id       TEXT NOT NULL,
  state         BLOB NOT NULL,
  used_unix_s   REAL NOT NULL,
  PRIMARY KEY (device, boot_id)
) WITHOUT ROWID;

CREATE TABLE audit (
  id         INTEGER PRIMARY KEY,
  at_unix_s  REAL NOT NULL,
  actor      TEXT NOT NULL,
  action     TEXT NOT NULL,
  target     TEXT NOT NULL,
  outcome    TEXT NOT NULL,
  detail     TEXT NOT NULL
);
"""
)

MIGRATIONS = {
    1: "ALTER TABLE device ADD COLUMN retrying INTEGER NOT NULL DEFAULT 0",
    2: _TRIAL,
}
"""Schema version to the statement that makes the next one of it."""


def database_path(home: Home) -> Path:
    """Return where the hub's database of ``home`` lies."""
    return home.hub / "hub.sqlite"


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Return a connection to the database at ``path``; a writer makes the tables if need be.

    The connection may be used from any thread, by one at a time.

    Raises:
        HubError: The database cannot be opened, or another version of the program made it.
    """
    mode = "ro" if read_only else "rwc"
    try:
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
            # What people said of predictions is nobody else's business.
            path.touch(mode=0o600)
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode={mode}",
            uri=True,
            check_same_thread=False,
            isolation_level=None,
        )
        connection.row_factory = sqlite3.Row
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            # Durable against a power cut: an acknowledged record is pruned from the device.
            connection.execute("PRAGMA synchronous = FULL")
            _migrate(connection, path)
    except (sqlite3.Error, OSError) as e:
        raise HubError(f"{path}: cannot be opened: {e}") from e
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found == 0:
            for statement in TABLES.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
            found = VERSION
        while found in MIGRATIONS:
            connection.execute(MIGRATIONS[found])
            found += 1
            connection.execute(f"PRAGMA user_version = {found}")
        if found != VERSION:
            raise HubError(  # noqa: TRY301 - rolled back below
                f"{path}: has schema version {found}; this program knows version {VERSION}",
                hint="Use the version of AID Edge that made it, or move the file away.",
            )
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
