"""What the agent must not forget about its deployment, on disk before it is acted upon."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from device_agent.contract.manifest import Natural
from device_agent.contract.messages import ReleaseRef
from device_agent.deployment.disk import write_whole
from device_agent.deployment.release import Wanted
from device_agent.deployment.table import State
from device_agent.errors import StoreError

SCHEMA = 1
_log = logging.getLogger(__name__)


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """Where the deployment stands.

    Attributes:
        revision: Highest desired revision that was accepted.
        envelope: Digest of the signed bytes that it came in.
        refusal: Why a desired state was refused since; empty when none was.
        refused_revision: Its revision, where that is known; else 0.
        target: The release that is wanted; None when nothing is.
        not_after_unix_s: Until when the target may be installed.
        settled: Digest of the release that was active last, and did not fail since.
        reason: Why the target does not serve, for people.
        is_passing: The failure may pass, and is tried again.
        deaths: How often the agent was killed while the target was proved or activated.
        has_candidate: The desired state names a candidate slot, which this agent does not have.
    """

    schema: int = SCHEMA
    state: State = State.IDLE
    revision: Natural = 0
    envelope: str = ""
    refusal: str = ""
    refused_revision: Natural = 0
    target: Wanted | None = None
    not_after_unix_s: float = 0.0
    settled: str | None = None
    reason: str = ""
    is_passing: bool = False
    deaths: int = 0
    has_candidate: bool = False


class JournalFile:
    """The journal's file: replaced whole, with fsync."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Journal:
        """Return the journal; a new one when there is none.

        One that the disk has damaged is begun anew: the slots say what to serve, and the hub says
        again what is wanted.

        Raises:
            StoreError: It is there, but cannot be read.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return Journal()
        except OSError as e:
            raise StoreError(f"{self._path}: {e.strerror}") from e
        try:
            journal = msgspec.json.decode(data, type=Journal)
            if journal.schema != SCHEMA:
                raise msgspec.ValidationError(f"schema {journal.schema}")
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            _log.error("%s is damaged, and begun anew: %s", self._path, e)
            return Journal()
        return journal

    def save(self, journal: Journal) -> None:
        """Put ``journal`` on the disk.

        Raises:
            StoreError: The disk failed or is full; the file is as it was.
        """
        write_whole(self._path, msgspec.json.format(msgspec.json.encode(journal)))


def said(release: ReleaseRef) -> str:
    """Return a release's name for people."""
    return f"{release.name}@{release.version}"
