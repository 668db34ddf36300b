"""The reading side of a catalogue: releases, blobs, metadata files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from aid_edge.catalogue import metadata as tuf
from aid_edge.catalogue.layout import ImageLayout
from aid_edge.errors import HomeError
from aid_edge.home import Home
from device_agent.contract.errors import DigestMismatchError
from device_agent.contract.manifest import (
    ImageManifest,
    Manifest,
    decode_image_manifest,
    decode_manifest,
)
from device_agent.contract.messages import ReleaseRef
from device_agent.contract.names import digest_of
from device_agent.contract.trust import TIMESTAMP_FILE

_METADATA_NAME = re.compile(r"^(?:[1-9][0-9]{0,9}\.(?:root|targets|snapshot)|timestamp)\.json$")


@dataclass(frozen=True)
class Release:
    """A published release, as signed metadata names it.

    Attributes:
        digest: Of the OCI image manifest: the release's own.
    """

    digest: str
    image: ImageManifest
    manifest: Manifest

    @property
    def name(self) -> str:
        """Name of the release."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """Version for people."""
        return self.manifest.version

    @property
    def profile(self) -> str:
        """Id of the hardware profile that it was made for."""
        return self.manifest.profile.id

    @property
    def counter(self) -> int:
        """Number of the release among those of its name and profile."""
        return self.manifest.counter

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(b.size for b in self.manifest.blobs)

    @property
    def ref(self) -> ReleaseRef:
        """The release as messages name it."""
        return ReleaseRef(self.name, self.version, self.digest)


class Catalogue:
    """What has been published into a home. Safe to use from several threads and processes.

    A release is read and verified once; after that only the timestamp file is looked at.
    """

    def __init__(self, home: Home) -> None:
        self._folder = home.metadata
        self._layout = ImageLayout(home.catalogue)
        self._read: tuple[bytes, tuple[Release, ...]] = (b"", ())

    def releases(self) -> tuple[Release, ...]:
        """Return all releases by name, profile and counter.

        Raises:
            HomeError: The catalogue cannot be read.
            TrustError: Its metadata or a manifest was altered.
        """
        timestamp = self.metadata(TIMESTAMP_FILE)
        if timestamp is None:
            raise HomeError(f"{self._folder / TIMESTAMP_FILE} is missing")
        seen, releases = self._read
        if seen != timestamp:
            chain = tuf.read_chain(self._folder)
            known = {r.digest: r for r in releases}
            releases = tuple(
                known.get(e.digest) or self._load(e) for e in tuf.entries(chain.targets.signed)
            )
            self._read = (timestamp, releases)
        return releases

    def find(self, name: str, version: str | None, profile: str) -> Release | None:
        """Return the release, or None when there is none; ``version`` None means the newest.

        Raises:
            HomeError: The catalogue cannot be read.
            TrustError: Its metadata or a manifest was altered.
        """
        found = [
            r
            for r in self.releases()
            if r.name == name and r.profile == profile and version in (None, r.version)
        ]
        return max(found, key=lambda r: r.counter, default=None)

    def blob(self, digest: str) -> Path | None:
        """Return the file that holds a blob, or None when the catalogue has no such blob.

        Raises:
            MalformedMessageError: ``digest`` is not a sha256 digest.
        """
        path = self._layout.blob_path(digest)
        return path if path.is_file() else None

    def metadata(self, name: str) -> bytes | None:
        """Return a TUF metadata file, or None when there is none of this name.

        Raises:
            HomeError: It cannot be read.
        """
        if not _METADATA_NAME.fullmatch(name):
            return None
        path = self._folder / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            raise HomeError(f"{path}: cannot be read: {e.strerror}") from e

    def _load(self, entry: tuf.Entry) -> Release:
        image = decode_image_manifest(self._verified(entry.digest))
        manifest = decode_manifest(self._verified(image.config.digest))
        return Release(entry.digest, image, manifest)

    def _verified(self, digest: str) -> bytes:
        path = self._layout.blob_path(digest)
        try:
            data = path.read_bytes()
        except OSError as e:
            raise HomeError(f"{path}: cannot be read: {e.strerror}") from e
        if digest_of(data) != digest:
            raise DigestMismatchError(str(path), digest, digest_of(data))
        return data
