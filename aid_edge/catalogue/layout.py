"""Releases as an OCI image layout on disk (OCI image specification 1.1, image-layout.md).

Any OCI tool can copy a release out of it. The same draft and counter give the same bytes, so a
release can be made again and compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from aid_edge.catalogue.draft import ReleaseDraft, to_manifest
from aid_edge.catalogue.files import Disk, hash_file
from aid_edge.errors import PublishError
from device_agent.contract.errors import DigestMismatchError
from device_agent.contract.manifest import (
    ARTIFACT_TYPE,
    MAX_IMAGE_MANIFEST_BYTES,
    MAX_MANIFEST_BYTES,
    MEDIA_TYPE_CONFIG,
    MEDIA_TYPE_IMAGE_MANIFEST,
    MEDIA_TYPES,
    Blob,
    Descriptor,
    ImageManifest,
    Manifest,
    encode_manifest,
)
from device_agent.contract.names import check_digest, digest_of

MEDIA_TYPE_INDEX = "application/vnd.oci.image.index.v1+json"
LAYOUT_VERSION = "1.0.0"
ANNOTATION_TITLE = "org.opencontainers.image.title"
ANNOTATION_VERSION = "org.opencontainers.image.version"
ANNOTATION_REF_NAME = "org.opencontainers.image.ref.name"
ANNOTATION_ROLE = "dev.aid-edge.role"


class IndexEntry(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename={"media_type": "mediaType", "artifact_type": "artifactType"},
):
    """A descriptor in ``index.json``."""

    media_type: str = MEDIA_TYPE_IMAGE_MANIFEST
    artifact_type: str = ARTIFACT_TYPE
    digest: str
    size: int
    annotations: dict[str, str]


class _Index(
    msgspec.Struct,
    frozen=True,
    rename={"schema_version": "schemaVersion", "media_type": "mediaType"},
):
    schema_version: int
    media_type: str
    manifests: tuple[IndexEntry, ...]


@dataclass(frozen=True)
class PackedRelease:
    """A release as it is published.

    Attributes:
        image: Bytes of the OCI image manifest: what is signed, and what the digest is of.
        config: Bytes of our manifest, the image's config blob.
        files: Digest to the file that holds the blob, for the layers.
    """

    manifest: Manifest
    image: bytes
    config: bytes
    files: Mapping[str, Path]

    @property
    def digest(self) -> str:
        """The release's digest."""
        return digest_of(self.image)

    @property
    def size(self) -> int:
        """Bytes of all its blobs, as ``catalogue.store.Release`` counts them."""
        return sum(b.size for b in self.manifest.blobs)


def pack(draft: ReleaseDraft, folder: Path, counter: int, blobs: tuple[Blob, ...]) -> PackedRelease:
    """Return ``draft`` as release number ``counter``; nothing is written.

    Args:
        draft: What conversion left in ``folder``.
        folder: Holds the draft's files.
        counter: Release counter of this name and profile.
        blobs: What :func:`aid_edge.catalogue.draft.check_files` returned.

    Raises:
        PublishError: Its manifest is larger than a device accepts.
    """
    manifest = to_manifest(draft, counter, blobs)
    config = encode_manifest(manifest)
    if len(config) > MAX_MANIFEST_BYTES:
        raise PublishError(
            f"the manifest has {len(config)} bytes; at most {MAX_MANIFEST_BYTES} are allowed"
        )
    layers = tuple(
        Descriptor(
            MEDIA_TYPES[blob.role],
            blob.digest,
            blob.size,
            {ANNOTATION_ROLE: blob.role, ANNOTATION_TITLE: file.name},
        )
        for blob, file in zip(blobs, draft.files, strict=True)
    )
    image = ImageManifest(
        schema_version=2,
        media_type=MEDIA_TYPE_IMAGE_MANIFEST,
        artifact_type=ARTIFACT_TYPE,
        config=Descriptor(MEDIA_TYPE_CONFIG, digest_of(config), len(config)),
        layers=layers,
        annotations={ANNOTATION_TITLE: draft.name, ANNOTATION_VERSION: draft.version},
    )
    data = msgspec.json.encode(image, order="sorted")
    if len(data) > MAX_IMAGE_MANIFEST_BYTES:
        raise PublishError(
            f"OCI manifest has {len(data)} bytes; at most {MAX_IMAGE_MANIFEST_BYTES} are allowed"
        )
    files = {b.digest: folder / f.name for b, f in zip(blobs, draft.files, strict=True)}
    return PackedRelease(manifest, data, config, files)


class ImageLayout:
    """An OCI image layout folder. Every write leaves it valid."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self.path = path
        self._disk = disk or Disk()

    def create(self) -> None:
        """Make an empty layout in the folder, which must be there.

        Raises:
            OSError: It cannot be written.
        """
        (self.path / "blobs" / "sha256").mkdir(parents=True)
        self._disk.write(
            self.path / "oci-layout", msgspec.json.encode({"imageLayoutVersion": LAYOUT_VERSION})
        )
        self.write_index(())

    def blob_path(self, digest: str) -> Path:
        """Return where the blob of ``digest`` lies, whether it is there or not.

        Raises:
            MalformedMessageError: ``digest`` is not a sha256 digest.
        """
        return self.path / "blobs" / "sha256" / check_digest(digest).removeprefix("sha256:")

    def put_bytes(self, data: bytes) -> str:
        """Store ``data`` as a blob and return its digest.

        Raises:
            OSError: It cannot be written.
        """
        digest = digest_of(data)
        path = self.blob_path(digest)
        if not self._has(path, digest):
            self._disk.write(path, data)
        return digest

    def put_file(self, source: Path, digest: str) -> None:
        """Store the file ``source`` as the blob ``digest``.

        Raises:
            DigestMismatchError: It changed since its digest was taken; no blob is left.
            OSError: It cannot be read or written.
        """
        path = self.blob_path(digest)
        if self._has(path, digest):
            return
        self._disk.copy(source, path)
        found, _, _ = hash_file(path)
        if found != digest:
            path.unlink()
            raise DigestMismatchError(str(source), digest, found)

    def index(self) -> tuple[IndexEntry, ...]:
        """Return the entries of ``index.json``.

        Raises:
            PublishError: It is missing or broken.
        """
        path = self.path / "index.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Index).manifests
        except (OSError, msgspec.DecodeError) as e:
            raise PublishError(f"{path}: {e}") from e

    def write_index(self, entries: Iterable[IndexEntry]) -> None:
        """Replace ``index.json``.

        Raises:
            OSError: It cannot be written; the old one stands.
        """
        index = _Index(2, MEDIA_TYPE_INDEX, tuple(entries))
        self._disk.write(self.path / "index.json", msgspec.json.encode(index, order="sorted"))

    def _has(self, path: Path, digest: str) -> bool:
        # A blob that rotted on disk is written again rather than published.
        return path.is_file() and hash_file(path)[0] == digest


def index_entry(manifest: Manifest, digest: str, size: int) -> IndexEntry:
    """Return the ``index.json`` entry of a release, by reference ``name/profile:version``."""
    reference = f"{manifest.name}/{manifest.profile.id}:{manifest.version}"
    return IndexEntry(digest=digest, size=size, annotations={ANNOTATION_REF_NAME: reference})
