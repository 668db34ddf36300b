"""Publishing: releases into the OCI layout and under signed TUF metadata, all of them or none.

Order of writes: blobs, targets, snapshot, timestamp, index. Readers start at the timestamp, so its
atomic replacement is the moment at which a publication happens; what a killed publication left
before it is never read, and the next one writes over it.
"""

from __future__ import annotations

import datetime as dt
import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.exceptions import Error as SecureSystemsError
from tuf.api.metadata import Metadata, Signer, Targets

from aid_edge.catalogue import metadata as tuf
from aid_edge.catalogue.check import check_draft
from aid_edge.catalogue.draft import ReleaseDraft, read_draft
from aid_edge.catalogue.files import Disk
from aid_edge.catalogue.keys import KeyRole, load_signer
from aid_edge.catalogue.layout import ImageLayout, PackedRelease, index_entry, pack
from aid_edge.errors import HomeError, PublishError
from aid_edge.home import Home
from device_agent.contract.errors import SignatureError
from device_agent.contract.manifest import Blob, decode_image_manifest, decode_manifest
from device_agent.contract.trust import target_path


@dataclass(frozen=True)
class Signers:
    """What signs a publication."""

    publisher: Signer
    snapshot: Signer
    timestamp: Signer


@dataclass(frozen=True)
class Published:
    """A release that is in the catalogue.

    Attributes:
        size: Bytes of all its blobs.
        fresh: False when the very same release was there already.
    """

    name: str
    version: str
    profile: str
    digest: str
    size: int
    counter: int
    fresh: bool


def load_signers(keys: Path, passphrase: bytes | None) -> Signers:
    """Return what signs a publication, from the folder of keys.

    Raises:
        HomeError: A key is missing or open to other users.
        PassphraseError: The publisher's key needs a passphrase, or another one.
    """
    return Signers(
        load_signer(keys, KeyRole.PUBLISHER, passphrase),
        load_signer(keys, KeyRole.SNAPSHOT),
        load_signer(keys, KeyRole.TIMESTAMP),
    )


class Repository:
    """The writing side of a catalogue."""

    def __init__(self, home: Home, disk: Disk | None = None) -> None:
        self._home = home
        self._disk = disk or Disk()
        self._layout = ImageLayout(home.catalogue, self._disk)

    def publish(
        self, folders: Sequence[Path], signers: Signers, *, now: dt.datetime
    ) -> list[Published]:
        """Publish the drafts in ``folders``, all of them or none, and return them in order.

        The very same release again is no error and changes nothing.

        Raises:
            UsageError: A folder holds no draft.
            PublishError: A draft is not publishable, or another release has its name and version.
            DigestMismatchError: A file is not the one that was measured.
            HomeError: The catalogue cannot be read or written.
            TrustError: The catalogue's metadata was altered.
        """
        checked = [(f, draft, check_draft(f, draft)) for f in folders for draft in [read_draft(f)]]
        with self._locked():
            chain = tuf.read_chain(self._home.metadata)
            _check_own(chain.targets, signers.publisher)
            targets = tuf.new_targets(chain.targets.signed, now)
            results = [self._add(targets, *item) for item in checked]
            aging = chain.targets.signed.expires - now < tuf.TARGETS_LIFETIME / 2
            with _as_publish_error("Nothing was published"):
                if aging or any(published.fresh for published, _ in results):
                    for published, packed in results:
                        if published.fresh:
                            self._store(packed)
                    self._sign(chain, tuf.sign_targets(targets, signers.publisher), signers, now)
            # The timestamp is written: what fails from here on fails after the publication.
            with _as_publish_error("The releases are published, only the OCI index is old"):
                self._write_index(targets)
        return [published for published, _ in results]

    def refresh_timestamp(self, *, now: dt.datetime) -> bool:
        """Sign timestamp, and snapshot, anew when half of their life is over.

        Needs only the online keys. Call it every hour or so.

        Returns:
            Whether anything was signed.

        Raises:
            HomeError: The catalogue or a key cannot be read, or not written.
            TrustError: The catalogue's metadata was altered.
        """
        with self._locked():
            chain = tuf.read_chain(self._home.metadata)
            snapshot = chain.snapshot
            renew = snapshot.signed.expires - now < tuf.SNAPSHOT_LIFETIME / 2
            if not renew and chain.timestamp.signed.expires - now > tuf.TIMESTAMP_LIFETIME / 2:
                return False
            try:
                if renew:
                    signer = load_signer(self._home.keys, KeyRole.SNAPSHOT)
                    snapshot = tuf.sign_snapshot(snapshot.signed, chain.targets, signer, now)
                    self._write(tuf.file_name(snapshot), tuf.to_bytes(snapshot))
                signer = load_signer(self._home.keys, KeyRole.TIMESTAMP)
                timestamp = tuf.sign_timestamp(chain.timestamp.signed, snapshot, signer, now)
                self._write(tuf.file_name(timestamp), tuf.to_bytes(timestamp))
            except OSError as e:
                raise HomeError(f"{self._home.metadata}: cannot be written: {e.strerror}") from e
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self._home.catalogue / ".lock"
        try:
            file = path.open("ab")
        except OSError as e:
            raise HomeError(f"{path}: cannot be written: {e.strerror}") from e
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _add(
        self, targets: Targets, folder: Path, draft: ReleaseDraft, blobs: tuple[Blob, ...]
    ) -> tuple[Published, PackedRelease]:
        """Enter a draft into ``targets``, unless the same release is there."""
        path = target_path(draft.name, draft.profile.id, draft.version)
        known = {(e.version): e for e in tuf.entries(targets) if _same_line(e, draft)}
        old = known.get(draft.version)
        if old is not None:
            packed = pack(draft, folder, old.counter, blobs)
            if packed.digest != old.digest:
                raise PublishError(
                    f"{draft.name}@{draft.version} for {draft.profile.id} is published already, "
                    f"with other bytes ({old.digest})",
                    hint="A release never changes: convert with another --version.",
                )
            return _published(packed, fresh=False), packed
        counter = 1 + max((e.counter for e in known.values()), default=0)
        packed = pack(draft, folder, counter, blobs)
        targets.targets[path] = tuf.new_target(path, packed.image, counter)
        return _published(packed, fresh=True), packed

    def _store(self, packed: PackedRelease) -> None:
        for digest, source in packed.files.items():
            self._layout.put_file(source, digest)
        self._layout.put_bytes(packed.config)
        self._layout.put_bytes(packed.image)

    def _sign(
        self, chain: tuf.Chain, targets: Metadata[Targets], signers: Signers, now: dt.datetime
    ) -> None:
        snapshot = tuf.sign_snapshot(chain.snapshot.signed, targets, signers.snapshot, now)
        timestamp = tuf.sign_timestamp(chain.timestamp.signed, snapshot, signers.timestamp, now)
        self._write(tuf.file_name(targets), tuf.to_bytes(targets))
        self._write(tuf.file_name(snapshot), tuf.to_bytes(snapshot))
        self._write(tuf.file_name(timestamp), tuf.to_bytes(timestamp))

    def _write_index(self, targets: Targets) -> None:
        entries = []
        for entry in tuf.entries(targets):
            image = decode_image_manifest(self._layout.blob_path(entry.digest).read_bytes())
            config = self._layout.blob_path(image.config.digest).read_bytes()
            entries.append(index_entry(decode_manifest(config), entry.digest, entry.size))
        if tuple(entries) != self._layout.index():
            self._layout.write_index(entries)

    def _write(self, name: str, data: bytes) -> None:
        self._disk.write(self._home.metadata / name, data)


def _same_line(entry: tuf.Entry, draft: ReleaseDraft) -> bool:
    return (entry.name, entry.profile) == (draft.name, draft.profile.id)


def _published(packed: PackedRelease, *, fresh: bool) -> Published:
    of = packed.manifest
    return Published(
        of.name, of.version, of.profile.id, packed.digest, packed.size, of.counter, fresh
    )


def _check_own(targets: Metadata[Targets], publisher: Signer) -> None:
    """Refuse to sign on top of targets that this publisher did not sign.

    Root metadata lies beside the targets, so whoever can replace one can replace both; the
    publisher's own key cannot be replaced that way.
    """
    signature = targets.signatures.get(publisher.public_key.keyid)
    if signature is None:
        raise SignatureError("the catalogue's targets metadata is not signed by this publisher")
    try:
        publisher.public_key.verify_signature(signature, targets.signed_bytes)
    except SecureSystemsError as e:
        raise SignatureError(f"the catalogue's targets metadata was altered: {e}") from e


@contextmanager
def _as_publish_error(state: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise PublishError(
            f"{e.filename or 'catalogue'}: cannot be written: {e.strerror}",
            hint=f"{state}; publish again when there is room and permission.",
        ) from e
