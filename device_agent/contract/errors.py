"""The errors that host and device can both name.

::

    AidError
    ├─ ContractError              bytes are not what the contract says
    │  ├─ MalformedMessageError
    │  ├─ MessageTooLargeError
    │  └─ UnsupportedVersionError
    ├─ ProfileError               a hardware profile is not valid
    └─ TrustError                 bytes are not to be used
       ├─ SignatureError          checked, and wrong
       ├─ UnverifiableError       could not be checked
       ├─ ExpiredError
       ├─ RollbackError
       ├─ DigestMismatchError
       └─ WrongDeviceError
"""

from __future__ import annotations

from typing import ClassVar

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_GATE_MISSED = 3
EXIT_TRUST = 4
EXIT_SOME_DEVICES_FAILED = 5
EXIT_TOOLCHAIN_MISSING = 6
EXIT_INTERRUPTED = 130


class AidError(Exception):
    """Anything that this program refuses or fails to do, said so that a person can act.

    Attributes:
        code: Stable machine-readable name of the kind of error.
        exit_code: What a command line that ends with this error exits with.
        cause: Why it happened, where that is known and not in the message.
        hint: What to do about it.
    """

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = EXIT_FAILED
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, cause: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.cause = cause
        self.hint = hint or self.default_hint


class ContractError(AidError):
    """Bytes from the other side are not what the contract says."""

    code = "contract"


class MalformedMessageError(ContractError):
    """Not decodable, of an unknown type, or with a wrong field (contract §3)."""

    code = "malformed-message"


class MessageTooLargeError(ContractError):
    """A message is larger than its bound (contract §3.4)."""

    code = "message-too-large"

    def __init__(self, what: str, size_bytes: int, max_bytes: int) -> None:
        super().__init__(f"{what} has {size_bytes} bytes; at most {max_bytes} are allowed")
        self.what, self.size_bytes, self.max_bytes = what, size_bytes, max_bytes


class UnsupportedVersionError(ContractError):
    """The message or document is of a version this program does not know (contract §3.3)."""

    code = "unsupported-version"
    default_hint = (
        "Update the older of the two sides: host and agent must share a contract version."
    )

    def __init__(self, what: str, found: object, known: int) -> None:
        super().__init__(f"{what} has version {found!r}; this program knows version {known}")
        self.what, self.found, self.known = what, found, known


class ProfileError(AidError):
    """A hardware profile is missing or not valid; names file, key and what is allowed."""

    code = "profile"
    exit_code = EXIT_USAGE

    def __init__(self, source: str, key: str, problem: str, *, hint: str = "") -> None:
        super().__init__(
            f"{source}: {key}: {problem}" if key else f"{source}: {problem}", hint=hint
        )
        self.source, self.key, self.problem = source, key, problem


class TrustError(AidError):
    """Bytes that must not be used."""

    code = "trust"
    exit_code = EXIT_TRUST


class SignatureError(TrustError):
    """A signature was checked, and it is wrong."""

    code = "signature"


class UnverifiableError(TrustError):
    """Bytes could not be checked: an unknown key, or metadata that is missing."""

    code = "unverifiable"


class ExpiredError(TrustError):
    """Metadata or desired state is past its expiry and must not be installed from."""

    code = "expired"


class RollbackError(TrustError):
    """Something older than what is already trusted was offered."""

    code = "rollback"
    default_hint = "Issue the older release again under a higher revision (aid-edge rollback does)."

    def __init__(self, what: str, offered: int, trusted: int) -> None:
        super().__init__(f"{what}: {offered} offered, {trusted} already trusted")
        self.what, self.offered, self.trusted = what, offered, trusted


class DigestMismatchError(TrustError):
    """Bytes do not have the digest that signed metadata names."""

    code = "digest-mismatch"

    def __init__(self, what: str, expected: str, found: str) -> None:
        super().__init__(f"{what}: expected {expected}, found {found}")
        self.what, self.expected, self.found = what, expected, found


class WrongDeviceError(TrustError):
    """A signed document is for another device, or a release for another profile."""

    code = "wrong-device"
