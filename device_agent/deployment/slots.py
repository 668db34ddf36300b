"""Where releases lie: incoming, whole ones, and the symlinks that say which is active."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from pathlib import Path

from device_agent.contract.names import check_digest
from device_agent.deployment.disk import move_folder, point, remove_folder
from device_agent.errors import StoreError

_PREFIX = "sha256:"
_HEX_DIGITS = 64
_log = logging.getLogger(__name__)


class Slots:
    """The folders ``releases/``, ``incoming/`` and ``slots/`` of an agent's home.

    A folder in ``releases/`` is whole: it came there by one rename, after verification. The
    active release changes by one rename of a symlink.
    """

    def __init__(self, home: Path) -> None:
        self._releases = home / "releases"
        self._incoming = home / "incoming"
        self._active = home / "slots" / "active"
        self._previous = home / "slots" / "previous"

    def folder(self, digest: str) -> Path:
        """Return where the release with this digest lies, or would."""
        return self._releases / _hex(digest)

    def incoming(self, digest: str) -> Path:
        """Return where its parts arrive."""
        return self._incoming / _hex(digest)

    def has(self, digest: str) -> bool:
        """Whether the release is there, whole."""
        return self.folder(digest).is_dir()

    @property
    def active(self) -> str | None:
        """Digest of the release that serves, or is to after a start."""
        return _target(self._active)

    @property
    def previous(self) -> str | None:
        """Digest of the one that served before."""
        return _target(self._previous)

    def installed(self) -> list[str]:
        """Return the digests of all whole releases, newest first.

        Raises:
            StoreError: The folder cannot be read.
        """
        try:
            found = [
                (entry.stat().st_mtime_ns, f"{_PREFIX}{entry.name}")
                for entry in self._releases.iterdir()
                if entry.is_dir() and _is_hex(entry.name)
            ]
        except FileNotFoundError:
            return []
        except OSError as e:
            raise StoreError(f"{self._releases}: {e.strerror}") from e
        return [digest for _, digest in sorted(found, reverse=True)]

    def install(self, digest: str) -> None:
        """Make the release in ``incoming/``, which was verified, a whole one.

        Raises:
            StoreError: The disk failed; nothing half is in ``releases/``.
        """
        if not self.has(digest):
            move_folder(self.incoming(digest), self.folder(digest))

    def activate(self, digest: str | None) -> None:
        """Point ``active`` at a whole release or at nothing; what was active becomes previous.

        Raises:
            StoreError: The disk failed; ``active`` is as it was.
        """
        now = self.active
        if digest is not None and not self.has(digest):
            raise StoreError(f"release {digest} is not installed")
        if now is not None and now != digest:
            # First: cut between the two, both name the old one, and it serves.
            point(self._previous, _link(now))
        point(self._active, None if digest is None else _link(digest))

    def restore(self, digest: str | None) -> None:
        """Point ``active`` at ``digest``, and forget which was previous.

        Raises:
            StoreError: The disk failed; ``active`` is as it was.
        """
        point(self._active, None if digest is None else _link(digest))
        point(self._previous, None)

    def discard(self, digest: str) -> None:
        """Remove a release that must not be used, from the slots too, and what came in for it.

        Raises:
            StoreError: It cannot be removed.
        """
        for link, named in ((self._active, self.active), (self._previous, self.previous)):
            if named == digest:
                point(link, None)
        remove_folder(self.folder(digest))
        remove_folder(self.incoming(digest))

    def tidy(self, keep: int, spare: Collection[str]) -> None:
        """Remove the oldest releases beyond ``keep``, and what came in for others than ``spare``.

        Releases in slots and in ``spare`` stay. What cannot be removed is logged and stays.
        """
        named = {self.active, self.previous, *spare}
        try:
            releases = self.installed()
            kept = [d for d in releases if d in named]
            loose = [d for d in releases if d not in named]
            doomed = [self.folder(d) for d in loose[max(0, keep - len(kept)) :]]
            doomed += [p for p in _children(self._incoming) if f"{_PREFIX}{p.name}" not in named]
            doomed += [p for p in _children(self._releases) if not _is_hex(p.name)]
        except StoreError as e:
            _log.warning("old releases stay: %s", e)
            return
        for path in doomed:
            try:
                if path.name.startswith("."):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    remove_folder(path)
            except StoreError as e:
                _log.warning("%s", e)


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as e:
        raise StoreError(f"{folder}: {e.strerror}") from e


def _hex(digest: str) -> str:
    return check_digest(digest).removeprefix(_PREFIX)


def _is_hex(name: str) -> bool:
    return len(name) == _HEX_DIGITS and set(name) <= set("0123456789abcdef")


def _link(digest: str) -> str:
    return f"../releases/{_hex(digest)}"


def _target(link: Path) -> str | None:
    """Return the digest that a slot's symlink names; None when there is none, or nonsense."""
    try:
        name = link.readlink().name
    except OSError:
        return None
    return f"{_PREFIX}{name}" if _is_hex(name) else None
