"""The signing keys of a home: Ed25519, one PEM file each, mode 0600 in a folder of mode 0700.

``root`` and ``publisher`` decide what may be installed at all; they can be under a passphrase and
are read only by ``init`` and ``publish``. The hub holds ``snapshot``, ``timestamp`` and
``director`` online: whoever steals those can install nothing that the publisher did not sign.
"""

from __future__ import annotations

import os
import stat
from enum import StrEnum
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner

from aid_edge.errors import HomeError
from device_agent.contract.errors import TrustError

FOLDER_MODE = 0o700
FILE_MODE = 0o600
_PEM_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


class KeyRole(StrEnum):
    """What a key signs; its value is the file name without ``.pem``."""

    ROOT = "root"
    PUBLISHER = "publisher"
    SNAPSHOT = "snapshot"
    TIMESTAMP = "timestamp"
    DIRECTOR = "director"


PROTECTED = frozenset({KeyRole.ROOT, KeyRole.PUBLISHER})
"""Roles whose keys a passphrase protects, when there is one."""


class PassphraseError(TrustError):
    """A key is under a passphrase, and that is missing or wrong."""

    code = "passphrase"
    default_hint = "Name the file that holds it with --passphrase-file."


def key_file(folder: Path, role: KeyRole) -> Path:
    """Return the path of the private key of ``role``."""
    return folder / f"{role.value}.pem"


def create_keys(folder: Path, passphrase: bytes | None) -> dict[KeyRole, CryptoSigner]:
    """Make ``folder`` with a new key per role, and return what signs with them.

    Args:
        folder: Must not exist.
        passphrase: Protects the keys of ``PROTECTED``; None leaves them to the file's mode.

    Raises:
        OSError: It cannot be written.
    """
    folder.mkdir(mode=FOLDER_MODE)
    return {role: _create_key(folder, role, passphrase) for role in KeyRole}


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that only its owner may read.

    Raises:
        OSError: It is there already, or cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def is_encrypted(folder: Path, role: KeyRole) -> bool:
    """Return whether the key of ``role`` is under a passphrase.

    Raises:
        HomeError: It cannot be read.
    """
    return _read_key(folder, role).lstrip().startswith(_PEM_ENCRYPTED)


def load_signer(folder: Path, role: KeyRole, passphrase: bytes | None = None) -> CryptoSigner:
    """Return what signs with the key of ``role``.

    Args:
        folder: Folder of keys.
        role: Which one.
        passphrase: Not used for a key that is not under one.

    Raises:
        HomeError: The key is missing, not a key, or open to other users.
        PassphraseError: It is under a passphrase that is missing or wrong.
    """
    pem = _read_key(folder, role)
    path = key_file(folder, role)
    encrypted = pem.lstrip().startswith(_PEM_ENCRYPTED)
    if encrypted and not passphrase:
        raise PassphraseError(f"{path} is under a passphrase, and none was given")
    try:
        key = serialization.load_pem_private_key(pem, passphrase if encrypted else None)
    except ValueError as e:
        if encrypted:
            raise PassphraseError(f"the passphrase of {path} is wrong") from e
        raise HomeError(f"{path} is not a private key: {e}") from e
    if not isinstance(key, Ed25519PrivateKey):
        raise HomeError(f"{path} is not an Ed25519 key")
    return CryptoSigner(key)


def _create_key(folder: Path, role: KeyRole, passphrase: bytes | None) -> CryptoSigner:
    key = Ed25519PrivateKey.generate()
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase and role in PROTECTED:
        encryption = serialization.BestAvailableEncryption(passphrase)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    write_private(key_file(folder, role), pem)
    return CryptoSigner(key)


def _read_key(folder: Path, role: KeyRole) -> bytes:
    path = key_file(folder, role)
    try:
        mode = path.stat().st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise HomeError(
                f"{path} is open to other users (mode {stat.S_IMODE(mode):o})",
                hint=f"chmod 600 {path}",
            )
        return path.read_bytes()
    except OSError as e:
        raise HomeError(
            f"{path}: cannot be read: {e.strerror}",
            hint="Put it back from your copy of the keys; devices trust no other.",
        ) from e
