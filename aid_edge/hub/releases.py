"""The catalogue as the hub asks for it."""

from __future__ import annotations

from collections.abc import Sequence

from aid_edge.catalogue.store import Catalogue, Release
from aid_edge.hub.rows import PublishedRelease

MAX_CACHED_LABELS = 64


class CatalogueReleases:
    """A :class:`aid_edge.hub.queries.ReleaseSource` on a catalogue; safe in several threads."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._labels: dict[str, tuple[str, ...]] = {}

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
        found = self._labels.get(digest)
        if found is None:
            if len(self._labels) >= MAX_CACHED_LABELS:
                self._labels.clear()
            found = self._labels[digest] = self._read_labels(digest)
        return found

    def _read_labels(self, digest: str) -> tuple[str, ...]:
        release: Release | None = next(
            (r for r in self._catalogue.releases() if r.digest == digest), None
        )
        blob = release.manifest.blob("labels") if release else None
        path = self._catalogue.blob(blob.digest) if blob else None
        if path is None:
            return ()
        return tuple(path.read_text(errors="replace").splitlines())
