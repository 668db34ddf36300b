"""A catalogue's TUF metadata: read as a verified chain, made and signed (TUF specification 1.0)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.exceptions import Error as SecureSystemsError
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Signer,
    Snapshot,
    T,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from aid_edge.catalogue.keys import KeyRole
from aid_edge.errors import HomeError
from device_agent.contract.errors import SignatureError, TrustError
from device_agent.contract.trust import (
    COUNTER_FIELD,
    SIGNED_AT_FIELD,
    TIMESTAMP_FILE,
    parse_target_path,
)

ROOT_LIFETIME = dt.timedelta(days=10 * 365)
TARGETS_LIFETIME = dt.timedelta(days=365)
SNAPSHOT_LIFETIME = dt.timedelta(days=7)
TIMESTAMP_LIFETIME = dt.timedelta(days=1)
"""How long devices that are cut off from the hub may still start an installation."""

MAX_ROOTS = 256
_TARGETS_META = "targets.json"


@dataclass(frozen=True)
class Chain:
    """The current metadata; each part verified by the one before it, expiry left out of account."""

    root: Metadata[Root]
    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]


@dataclass(frozen=True)
class Entry:
    """What signed targets metadata says about one release.

    Attributes:
        digest: Of the OCI image manifest.
        size: Bytes of the image manifest.
    """

    name: str
    profile: str
    version: str
    digest: str
    size: int
    counter: int


def read_chain(folder: Path) -> Chain:
    """Return the metadata in ``folder``, verified from its first root on.

    Raises:
        HomeError: A file is missing, or is not TUF metadata.
        SignatureError: A signature is wrong.
        TrustError: The files do not belong together.
    """
    root = _newest_root(folder)
    timestamp = _read(folder / TIMESTAMP_FILE, Timestamp)
    _verify(root, timestamp, folder / TIMESTAMP_FILE)
    meta = timestamp.signed.snapshot_meta
    snapshot_path = folder / f"{meta.version}.snapshot.json"
    snapshot = _read(snapshot_path, Snapshot)
    _verify(root, snapshot, snapshot_path)
    targets_meta = snapshot.signed.meta[_TARGETS_META]
    targets_path = folder / f"{targets_meta.version}.targets.json"
    targets = _read(targets_path, Targets)
    _verify(root, targets, targets_path)
    for path, expected in ((snapshot_path, meta), (targets_path, targets_meta)):
        try:
            expected.verify_length_and_hashes(path.read_bytes())
        except RepositoryError as e:
            raise TrustError(f"{path} is not what the signed metadata above it names: {e}") from e
    return Chain(root, timestamp, snapshot, targets)


def entries(targets: Targets) -> list[Entry]:
    """Return the releases in targets metadata, by name, profile and counter."""
    found = []
    for path, target in targets.targets.items():
        parts = parse_target_path(path)
        if parts is not None:
            name, profile, version = parts
            digest = f"sha256:{target.hashes['sha256']}"
            counter = int(target.custom[COUNTER_FIELD])
            found.append(Entry(name, profile, version, digest, target.length, counter))
    return sorted(found, key=lambda e: (e.name, e.profile, e.counter))


def new_target(path: str, image: bytes, counter: int) -> TargetFile:
    """Return the target entry for the OCI image manifest ``image``."""
    target = TargetFile.from_data(path, image, ["sha256"])
    target.unrecognized_fields["custom"] = {COUNTER_FIELD: counter}
    return target


def new_root(signers: Mapping[KeyRole, Signer], now: dt.datetime) -> Metadata[Root]:
    """Return signed root metadata, version 1, that gives each role the key of ``signers``."""
    root = Root(expires=now + ROOT_LIFETIME, consistent_snapshot=True)
    for role, key in (
        (Root.type, KeyRole.ROOT),
        (Targets.type, KeyRole.PUBLISHER),
        (Snapshot.type, KeyRole.SNAPSHOT),
        (Timestamp.type, KeyRole.TIMESTAMP),
    ):
        root.add_key(signers[key].public_key, role)
    root.unrecognized_fields[SIGNED_AT_FIELD] = int(now.timestamp())
    return _sign(root, signers[KeyRole.ROOT])


def new_targets(old: Targets | None, now: dt.datetime) -> Targets:
    """Return unsigned targets metadata to follow ``old``: its targets, one version on."""
    targets = Targets(version=1 if old is None else old.version + 1, expires=now + TARGETS_LIFETIME)
    targets.targets = {} if old is None else dict(old.targets)
    return targets


def sign_targets(targets: Targets, signer: Signer) -> Metadata[Targets]:
    """Return ``targets`` signed."""
    return _sign(targets, signer)


def sign_snapshot(
    old: Snapshot | None, targets: Metadata[Targets], signer: Signer, now: dt.datetime
) -> Metadata[Snapshot]:
    """Return signed snapshot metadata that names ``targets``, one version after ``old``."""
    version = 1 if old is None else old.version + 1
    meta = {_TARGETS_META: _meta_file(targets)}
    return _sign(Snapshot(version=version, expires=now + SNAPSHOT_LIFETIME, meta=meta), signer)


def sign_timestamp(
    old: Timestamp | None, snapshot: Metadata[Snapshot], signer: Signer, now: dt.datetime
) -> Metadata[Timestamp]:
    """Return signed timestamp metadata that names ``snapshot``, one version after ``old``."""
    timestamp = Timestamp(
        version=1 if old is None else old.version + 1,
        expires=now + TIMESTAMP_LIFETIME,
        snapshot_meta=_meta_file(snapshot),
    )
    timestamp.unrecognized_fields[SIGNED_AT_FIELD] = int(now.timestamp())
    return _sign(timestamp, signer)


def file_name(metadata: Metadata[T]) -> str:
    """Return the name that the file of ``metadata`` has in a repository."""
    signed = metadata.signed
    if signed.type == Timestamp.type:
        return TIMESTAMP_FILE
    return f"{signed.version}.{signed.type}.json"


def to_bytes(metadata: Metadata[T]) -> bytes:
    """Return the bytes of ``metadata`` as they are stored, hashed and sent."""
    return metadata.to_bytes(JSONSerializer(compact=True))


def _sign(signed: T, signer: Signer) -> Metadata[T]:
    metadata = Metadata(signed)
    metadata.sign(signer)
    return metadata


def _meta_file(metadata: Metadata[T]) -> MetaFile:
    return MetaFile.from_data(metadata.signed.version, to_bytes(metadata), ["sha256"])


def _newest_root(folder: Path) -> Metadata[Root]:
    path = folder / "1.root.json"
    root = _read(path, Root)
    _verify(root, root, path)
    for version in range(2, MAX_ROOTS + 1):
        path = folder / f"{version}.root.json"
        if not path.exists():
            break
        newer = _read(path, Root)
        _verify(root, newer, path)
        _verify(newer, newer, path)
        root = newer
    return root


def _read(path: Path, kind: type[T]) -> Metadata[T]:
    try:
        metadata: Metadata[T] = Metadata.from_bytes(path.read_bytes())
    except OSError as e:
        raise HomeError(f"{path}: cannot be read: {e.strerror}") from e
    except RepositoryError as e:
        raise HomeError(f"{path} is not TUF metadata: {e}") from e
    if not isinstance(metadata.signed, kind):
        raise TrustError(f"{path} is {metadata.signed.type} metadata; expected {kind.type}")
    return metadata


def _verify(root: Metadata[Root], metadata: Metadata[T], path: Path) -> None:
    try:
        root.signed.verify_delegate(
            metadata.signed.type, metadata.signed_bytes, metadata.signatures
        )
    except (UnsignedMetadataError, SecureSystemsError, ValueError) as e:
        raise SignatureError(f"{path}: {e}") from e
