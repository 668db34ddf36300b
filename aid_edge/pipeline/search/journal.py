"""What a search has decided so far, on disk: whether it was cut short, and what it had done.

The journal decides nothing. What was done lies in the step cache, by content; a search that is
started again finds it there, and the journal tells that it was begun before.
"""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import msgspec

from aid_edge.catalogue.files import write_atomic

FOLDER = "journal"
MAX_LINES = 1000


class _Entry(msgspec.Struct, frozen=True):
    """The file's content; ``owner`` names the process that searches, while it does."""

    finished: bool
    resumed: bool
    owner: str
    lines: tuple[str, ...]


class Journal:
    """The journal of one search, which is known by what it was asked for."""

    def __init__(self, root: Path, asked: str) -> None:
        """Take up the journal of the search that was ``asked`` for, or begin one.

        Args:
            root: Folder of the step cache.
            asked: Everything that tells this search from another one.
        """
        name = hashlib.sha256(asked.encode()).hexdigest()
        self.path = root / FOLDER / f"{name}.json"
        before = self._read()
        cut_short = before is not None and not before.finished and not _is_alive(before.owner)
        # A repeated search that is all in the cache tells the same as the one that did the work.
        self.is_resumed = before is not None and (cut_short or before.resumed)
        self._lines: tuple[str, ...] = ()
        self._write(finished=False)

    def note(self, line: str) -> None:
        """Take down what was done."""
        self._lines = (*self._lines, line)[-MAX_LINES:]
        self._write(finished=False)

    def finish(self) -> None:
        """Take down that the search came to its end."""
        self._write(finished=True)

    @property
    def lines(self) -> tuple[str, ...]:
        """What was done, in order."""
        return self._lines

    def _read(self) -> _Entry | None:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_Entry)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None  # none yet, or damaged: it only tells, so it is begun anew

    def _write(self, *, finished: bool) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        owner = "" if finished else f"{socket.gethostname()} {os.getpid()}"
        entry = _Entry(finished, self.is_resumed, owner, self._lines)
        write_atomic(self.path, msgspec.json.encode(entry))


def _is_alive(owner: str) -> bool:
    host, _, pid = owner.rpartition(" ")
    if host != socket.gethostname() or not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
