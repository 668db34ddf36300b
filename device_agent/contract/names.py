"""Identifiers that travel: devices, fleets, releases, digests (contract §1)."""

from __future__ import annotations

import hashlib
import re

from device_agent.contract.errors import MalformedMessageError

# \Z and not $, which would let a trailing line break pass.
IDENTIFIER_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}\Z"
VERSION_PATTERN = r"^[0-9A-Za-z][0-9A-Za-z.+_-]{0,62}\Z"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}\Z"

_IDENTIFIER = re.compile(IDENTIFIER_PATTERN)
_VERSION = re.compile(VERSION_PATTERN)
_DIGEST = re.compile(DIGEST_PATTERN)


def check_identifier(kind: str, value: str) -> str:
    """Return ``value`` if it can name a device, fleet, profile or release (contract §1.1).

    It ends up in MQTT topics, certificate subjects and file names, so ``+``, ``#``, ``/``
    and upper case are refused.

    Raises:
        MalformedMessageError: It cannot.
    """
    if not _IDENTIFIER.fullmatch(value):
        raise MalformedMessageError(
            f"{kind} {value!r} is not a valid identifier",
            hint="Use 1 to 63 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit.",
        )
    return value


def check_version(value: str) -> str:
    """Return ``value`` if it can be the version of a release (contract §1.1).

    Raises:
        MalformedMessageError: It cannot.
    """
    if not _VERSION.fullmatch(value):
        raise MalformedMessageError(
            f"version {value!r} is not valid",
            hint="Use 1 to 63 of a-z, A-Z, 0-9, '.', '+', '_' and '-', such as 1.4.0.",
        )
    return value


def check_digest(value: str) -> str:
    """Return ``value`` if it is a digest ``sha256:<64 hex digits>`` (contract §1.2).

    Raises:
        MalformedMessageError: It is not.
    """
    if not _DIGEST.fullmatch(value):
        raise MalformedMessageError(f"{value!r} is not a sha256 digest")
    return value


def digest_of(data: bytes | memoryview) -> str:
    """Return the digest of ``data`` as ``sha256:<hex>`` (contract §1.2)."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
