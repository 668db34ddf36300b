"""The catalogue as the hub asks for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from aid_edge.catalogue.store import Catalogue, Release
from aid_edge.hub.rows import PublishedRelease
from device_agent.contract.errors import AidError

_log = logging.getLogger(__name__)

MAX_KNOWN = 64
"""Releases whose labels are kept in memory."""


class CatalogueReleases:
    """A :class:`aid_edge.hub.queries.ReleaseSource` on a catalogue; safe in several threads."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._known: dict[str, tuple[tuple[str, ...], float | None]] = {}

    def published(self) -> Sequence[PublishedRelease]:
        """Return all published releases.

        Raises:
            HomeError: The catalogue cannot be read.
            TrustError: It was altered.
        """
        return [
            PublishedRelease(
                name=release.name,
                version=release.version,
                profile=release.profile,
                digest=release.digest,
                counter=release.counter,
                runtime=release.manifest.runtime.name,
                size_bytes=release.size,
            )
            for release in self._catalogue.releases()
        ]

    def labels(self, digest: str) -> Sequence[str]:
        """Return the class labels of the release with this digest; empty when it has none."""
        return self._read(digest)[0]

    def deadline_s(self, digest: str) -> float | None:
        """Return the deadline of the release with this digest; None when it is not known."""
        return self._read(digest)[1]

    def _read(self, digest: str) -> tuple[tuple[str, ...], float | None]:
        """Return labels and deadline, from memory where they are known: a digest is one content."""
        found = self._known.get(digest)
        if found is None:
            try:
                releases = self._catalogue.releases()
            except AidError as e:
                # What devices run must be seen even so; fleet page and health say what is wrong.
                _log.warning("a release cannot be looked up: %s", e)
                releases = ()
            release = next((r for r in releases if r.digest == digest), None)
            if release is None:
                return (), None
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            found = self._labels(release), release.manifest.limits.deadline_s
            self._known[digest] = found
        return found

    def _labels(self, release: Release) -> tuple[str, ...]:
        blob = release.manifest.blob("labels")
        path = self._catalogue.blob(blob.digest) if blob else None
        return tuple(path.read_text(errors="replace").splitlines()) if path else ()
