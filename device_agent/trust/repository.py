"""Bringing this device's TUF metadata up to date, by python-tuf. Runs in the trust step."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.ngclient import Updater, UpdaterConfig

from device_agent.contract.errors import (
    AidError,
    DigestMismatchError,
    ExpiredError,
    RollbackError,
    SignatureError,
    TrustError,
    UnverifiableError,
)
from device_agent.contract.messages import MAX_METADATA_BYTES
from device_agent.contract.names import digest_of
from device_agent.contract.trust import SIGNED_AT_FIELD, TIMESTAMP_FILE
from device_agent.errors import StoreError
from device_agent.trust.fetcher import BASE_URL, SupervisorFetcher

_SNAPSHOT_FILE = "snapshot.json"
_TARGETS_FILE = "targets.json"
_LATEST_UNIX_S = dt.datetime(9999, 1, 1, tzinfo=dt.UTC).timestamp()


class SignedTarget(msgspec.Struct, frozen=True):
    """One target of verified targets metadata.

    Attributes:
        size: In bytes.
        custom: What the publisher says about it besides.
    """

    digest: str
    size: int
    custom: dict[str, Any]


SignedTargets = Mapping[str, SignedTarget]


def refresh(
    folder: Path, root: bytes, ask: Callable[[str, int], bytes | None], *, now_unix_s: float
) -> SignedTargets:
    """Bring the metadata in ``folder`` up to date and return its targets.

    Expiry is judged at the later of ``now_unix_s`` and the clock floor, so a device that starts in
    1970 cannot be held on old metadata that it has gone beyond.

    Args:
        folder: What was verified before; made when it is not there.
        root: Root metadata that the device was flashed with.
        ask: Returns a metadata file by name and largest size, or None when there is none.
        now_unix_s: The wall clock.

    Raises:
        TrustError: The metadata on offer must not be used.
        StoreError: ``folder`` cannot be read or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob("tmp*"):  # of a step that was killed between write and rename
            left_over.unlink()
        floor = clock_floor_unix_s(folder, root)
        try:
            _refresh_once(folder, root, ask, max(floor, now_unix_s))
        except ExpiredError:
            # A stolen timestamp key can sign a time far ahead. When root has given the role another
            # key, that time no longer counts, as versions of a revoked key don't (TUF 5.3.11).
            lower = clock_floor_unix_s(folder, root)
            if lower >= floor:
                raise
            _refresh_once(folder, root, ask, max(lower, now_unix_s))
        _sync(folder)
        targets = Metadata[Targets].from_bytes((folder / _TARGETS_FILE).read_bytes()).signed
    except OSError as e:
        raise StoreError(f"{e.filename or folder}: {e.strerror}") from e
    return {path: _target(info) for path, info in targets.targets.items()}


def clock_floor_unix_s(folder: Path, root: bytes) -> float:
    """Return the newest time that verified metadata was signed at: it cannot be earlier now.

    Raises:
        UnverifiableError: ``root`` is not root metadata.
    """
    try:
        newest = Metadata[Root].from_bytes(root)
        floor = _signed_at(newest)
    except (exceptions.RepositoryError, ValueError) as e:
        raise UnverifiableError(
            f"the TUF root metadata cannot be read: {e}", hint="Flash the device again."
        ) from e
    with contextlib.suppress(OSError, exceptions.RepositoryError):
        stored = Metadata[Root].from_bytes((folder / "root.json").read_bytes())
        if stored.signed.version > newest.signed.version:
            newest = stored
            floor = max(floor, _signed_at(stored))
    with contextlib.suppress(OSError, exceptions.RepositoryError, ValueError):
        timestamp = Metadata[Timestamp].from_bytes((folder / TIMESTAMP_FILE).read_bytes())
        newest.signed.verify_delegate(Timestamp.type, timestamp.signed_bytes, timestamp.signatures)
        floor = max(floor, _signed_at(timestamp))
    return floor


def _refresh_once(
    folder: Path, root: bytes, ask: Callable[[str, int], bytes | None], at_unix_s: float
) -> None:
    before = _versions_in(folder)
    fetcher = SupervisorFetcher(ask)
    config = UpdaterConfig(targets_max_length=MAX_METADATA_BYTES)
    try:
        updater = Updater(str(folder), BASE_URL, fetcher=fetcher, config=config, bootstrap=root)
        # python-tuf has no public way to say what time it is.
        updater._trusted_set.reference_time = dt.datetime.fromtimestamp(  # noqa: SLF001
            min(at_unix_s, _LATEST_UNIX_S), dt.UTC
        )
        updater.refresh()
    except (exceptions.RepositoryError, exceptions.DownloadError) as e:
        raise _translated(e, folder, fetcher.received, before) from e


def _translated(
    error: Exception, folder: Path, received: dict[str, bytes], before: Mapping[str, int]
) -> AidError:
    """Return the error of ours that says what python-tuf found."""
    last = next(reversed(received), "metadata")
    if isinstance(error, exceptions.BadVersionNumberError):
        return _version_error(error, last, received, before)
    if isinstance(error, exceptions.LengthOrHashMismatchError):
        return DigestMismatchError(last, _named_digest(folder, last), digest_of(received[last]))
    if isinstance(error, exceptions.ExpiredMetadataError):
        return ExpiredError(
            str(error), hint="The hub signs it anew; is the hub running, and the clock right?"
        )
    if isinstance(error, exceptions.UnsignedMetadataError):
        return SignatureError(f"{last}: {error}")
    if isinstance(error, exceptions.DownloadError):
        return UnverifiableError(str(error), hint="The hub must be running and hold the metadata.")
    return UnverifiableError(f"{last}: {error}")


def _version_error(
    error: Exception, last: str, received: Mapping[str, bytes], before: Mapping[str, int]
) -> TrustError:
    for name, data in received.items():
        for what, offered in _versions(data).items():
            if offered < before.get(what, 0):
                return RollbackError(f"{what} in {name}", offered, before[what])
    return TrustError(f"{last}: {error}")


def _versions_in(folder: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in (TIMESTAMP_FILE, _SNAPSHOT_FILE, _TARGETS_FILE):
        with contextlib.suppress(OSError):
            for what, version in _versions((folder / name).read_bytes()).items():
                found[what] = max(version, found.get(what, 0))
    return found


def _versions(data: bytes) -> dict[str, int]:
    """Return the versions that a metadata file has and names; for explaining refusals only."""
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(data)
    except exceptions.RepositoryError:
        return {}
    signed = metadata.signed
    found = {f"{signed.type}.json": signed.version}
    if isinstance(signed, Timestamp):
        found[_SNAPSHOT_FILE] = signed.snapshot_meta.version
    elif isinstance(signed, Snapshot):
        found |= {name: meta.version for name, meta in signed.meta.items()}
    return found


def _named_digest(folder: Path, name: str) -> str:
    """Return the digest that the metadata above names for the file ``name``."""
    with contextlib.suppress(OSError, exceptions.RepositoryError, KeyError, TypeError):
        if name.endswith(_SNAPSHOT_FILE):
            timestamp = Metadata[Timestamp].from_bytes((folder / TIMESTAMP_FILE).read_bytes())
            meta = timestamp.signed.snapshot_meta
        else:
            snapshot = Metadata[Snapshot].from_bytes((folder / _SNAPSHOT_FILE).read_bytes())
            meta = snapshot.signed.meta[_TARGETS_FILE]
        return f"sha256:{(meta.hashes or {})['sha256']}"
    return "what signed metadata names"


def _target(info: Any) -> SignedTarget:
    custom = info.custom if isinstance(info.custom, dict) else {}
    return SignedTarget(f"sha256:{info.hashes.get('sha256', '')}", info.length, custom)


def _signed_at(metadata: Metadata[Any]) -> float:
    at = metadata.signed.unrecognized_fields.get(SIGNED_AT_FIELD, 0)
    return float(at) if isinstance(at, int) else 0.0


def _sync(folder: Path) -> None:
    # python-tuf does not; without it a power cut could take the versions back that protect
    # against rollback.
    for path in (folder, *(folder / n for n in (TIMESTAMP_FILE, _SNAPSHOT_FILE, _TARGETS_FILE))):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
