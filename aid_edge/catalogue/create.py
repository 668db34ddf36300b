"""Making a home: keys, empty catalogue, certificates. All of it or nothing."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from aid_edge.catalogue import metadata as tuf
from aid_edge.catalogue.files import sync_folder, write_atomic
from aid_edge.catalogue.keys import KeyRole, create_keys, write_private
from aid_edge.catalogue.layout import ImageLayout
from aid_edge.errors import HomeError, UsageError
from aid_edge.home import SCHEMA, Home
from aid_edge.identity import CA_KEY, Authority, hub_files, new_api_token
from device_agent.contract.errors import MalformedMessageError
from device_agent.contract.names import check_identifier

_ELSEWHERE = "Name another folder, or see to room and permission; nothing was left behind."


def create_home(
    path: Path,
    fleet: str,
    *,
    hosts: Sequence[str] = (),
    passphrase: bytes | None = None,
    now: dt.datetime,
) -> Home:
    """Make a home at ``path`` and return it.

    Args:
        path: Must not exist, or be an empty folder.
        fleet: Name of the fleet.
        hosts: Names and addresses of the hub, for its certificate, besides this machine's own.
        passphrase: Protects the keys of root and publisher; None leaves them to the file's mode.
        now: Time that metadata and certificates are signed at.

    Raises:
        UsageError: ``fleet`` is not a valid identifier, or one of ``hosts`` not a name or address.
        HomeError: There is something at ``path``, or it cannot be written. Nothing is left behind.
    """
    try:
        check_identifier("fleet", fleet)
    except MalformedMessageError as e:
        raise UsageError(str(e), hint=e.hint) from e
    _check_free(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    except OSError as e:
        raise HomeError(f"{path.parent}: cannot be written: {e.strerror}", hint=_ELSEWHERE) from e
    try:
        _fill(Home(building, fleet), hosts, passphrase, now)
        building.chmod(0o755)
        os.rename(building, path)  # noqa: PTH104 - over an empty folder, which Path documents less well
        sync_folder(path.parent)
    except OSError as e:
        raise HomeError(f"{path}: cannot be made: {e.strerror}", hint=_ELSEWHERE) from e
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return Home(path, fleet)


def _check_free(path: Path) -> None:
    if (path / "aid-edge.toml").exists():
        raise HomeError(
            f"{path} is an AID Edge home already",
            hint="Its keys are what devices trust; name another folder.",
        )
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise HomeError(f"{path} is not a folder", hint="Name another folder.")
    if path.is_dir() and any(path.iterdir()):
        raise HomeError(f"{path} is not empty", hint="Name a new or empty folder.")


def _fill(home: Home, hosts: Sequence[str], passphrase: bytes | None, now: dt.datetime) -> None:
    signers = create_keys(home.keys, passphrase)
    authority = Authority.create(home.fleet, now=now)
    write_private(home.keys / CA_KEY, authority.key_pem)
    home.hub.mkdir()
    files = hub_files(home.hub)
    key, certificate = authority.issue_hub(hosts, now=now)
    write_atomic(files.ca, authority.certificate_pem)
    write_atomic(files.certificate, certificate)
    write_private(files.key, key)
    write_private(files.token, f"{new_api_token()}\n".encode())
    home.catalogue.mkdir()
    ImageLayout(home.catalogue).create()
    home.metadata.mkdir()
    targets = tuf.sign_targets(tuf.new_targets(None, now), signers[KeyRole.PUBLISHER])
    snapshot = tuf.sign_snapshot(None, targets, signers[KeyRole.SNAPSHOT], now)
    timestamp = tuf.sign_timestamp(None, snapshot, signers[KeyRole.TIMESTAMP], now)
    root = tuf.new_root(signers, now)
    for name, data in (
        (tuf.file_name(root), tuf.to_bytes(root)),
        (tuf.file_name(targets), tuf.to_bytes(targets)),
        (tuf.file_name(snapshot), tuf.to_bytes(snapshot)),
        (tuf.file_name(timestamp), tuf.to_bytes(timestamp)),
    ):
        write_atomic(home.metadata / name, data)
    write_atomic(home.config_file, f'schema = {SCHEMA}\nfleet = "{home.fleet}"\n'.encode())
