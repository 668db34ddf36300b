"""What supervisor and trust step say to each other over a pair of pipes.

A frame is a 4-byte big-endian length and one MessagePack message. The step is handed a task, asks
for metadata files by name, and ends with a result or a refusal.
"""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec

from device_agent.contract import errors as words
from device_agent.contract.desired import Desired, Trial
from device_agent.contract.errors import AidError, MalformedMessageError, MessageTooLargeError
from device_agent.contract.manifest import Digest, Identifier, Natural, Positive
from device_agent.contract.messages import MAX_METADATA_BYTES, ReleaseRef, Slot
from device_agent.errors import StoreError

MAX_FRAME_BYTES = MAX_METADATA_BYTES + 64 * 1024
_LENGTH = struct.Struct("!I")
_READ_BYTES = 256 * 1024


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What this device holds a desired state against.

    Attributes:
        fleet: Its own fleet.
        device: Its own id.
        profile: The id of its hardware profile.
        last_revision: Highest revision that it has accepted; 0 before the first.
    """

    fleet: Identifier
    device: Identifier
    profile: Identifier
    last_revision: Natural


class VerifiedRelease(msgspec.Struct, frozen=True, kw_only=True):
    """A release that the director wants in a slot and that the publisher has signed.

    Attributes:
        size: Bytes of the OCI image manifest whose digest is the release's.
        counter: Release counter; the release's own manifest must have the same.
    """

    slot: Slot
    release: ReleaseRef
    counter: Positive
    size: Positive

    @property
    def digest(self) -> Digest:
        """Digest of the OCI image manifest."""
        return self.release.digest


class VerifiedTrial(msgspec.Struct, frozen=True, kw_only=True):
    """A trial that the director wants, with what the publisher has signed about its release.

    Attributes:
        size: Bytes of the OCI image manifest; 0 when the release is refused.
        refusal: Why the release is refused; empty when it is not.
    """

    trial: Trial
    size: Natural = 0
    refusal: str = ""


class VerifiedDesired(msgspec.Struct, frozen=True, kw_only=True, tag_field="frame", tag="done"):
    """A desired state that may be carried out.

    Attributes:
        releases: One for each of its slots, in order.
        trials: One for each of its trials, in order; one that is refused says why.
        clock_floor_unix_s: No time before this is true: the newest signed time that was verified.
    """

    desired: Desired
    releases: tuple[VerifiedRelease, ...]
    clock_floor_unix_s: float
    trials: tuple[VerifiedTrial, ...] = ()


class Task(msgspec.Struct, frozen=True, kw_only=True, tag_field="frame", tag="task"):
    """What the step is to verify.

    Attributes:
        root: Bytes of the TUF root metadata that the device was flashed with.
        director_key: Bytes of the director's public key document.
        metadata_folder: Where TUF keeps what it has verified.
        now_unix_s: The wall clock, which may be wrong.
    """

    envelope: bytes
    expected: Expected
    root: bytes
    director_key: bytes
    metadata_folder: str
    now_unix_s: float


class NeedMetadata(msgspec.Struct, frozen=True, kw_only=True, tag_field="frame", tag="need"):
    """The step asks for a TUF metadata file."""

    name: str
    max_bytes: Positive


class MetadataAnswer(msgspec.Struct, frozen=True, kw_only=True, tag_field="frame", tag="answer"):
    """The file's bytes, or None when there is no such file."""

    data: bytes | None


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag_field="frame", tag="refused"):
    """Why the step refuses: an error of ours as code, text and fields."""

    code: str
    message: str
    cause: str
    hint: str
    fields: dict[str, str | int]


FromStep = NeedMetadata | VerifiedDesired | Refused
ToStep = Task | MetadataAnswer
M = TypeVar("M")

_PLAIN: dict[str, type[AidError]] = {
    kind.code: kind
    for kind in (
        MalformedMessageError,
        words.TrustError,
        words.SignatureError,
        words.UnverifiableError,
        words.ExpiredError,
        words.WrongDeviceError,
        StoreError,
    )
}
_WITH_FIELDS: dict[str, Callable[..., AidError]] = {
    kind.code: kind
    for kind in (
        MessageTooLargeError,
        words.UnsupportedVersionError,
        words.RollbackError,
        words.DigestMismatchError,
    )
}


def refusal(error: AidError) -> Refused:
    """Return ``error`` as a message."""
    fields = {}
    if error.code in _WITH_FIELDS:
        names = [n for n in vars(error) if n not in {"cause", "hint"}]
        fields = {n: v if isinstance(v := vars(error)[n], int) else str(v) for n in names}
    return Refused(
        code=error.code, message=str(error), cause=error.cause, hint=error.hint, fields=fields
    )


def error_of(refused: Refused) -> AidError:
    """Return the error that ``refused`` was made from, with its class and fields."""
    if refused.code in _WITH_FIELDS:
        error = _WITH_FIELDS[refused.code](**refused.fields)
        error.cause, error.hint = refused.cause, refused.hint
        return error
    kind = _PLAIN.get(refused.code, words.TrustError)
    return kind(refused.message, cause=refused.cause, hint=refused.hint)


class PipeClosedError(Exception):
    """The other side went away; never leaves this package."""


class PipeTimeoutError(Exception):
    """The other side did not answer by the deadline; never leaves this package."""


class Pipes:
    """Frames over two file descriptors, which are made non-blocking.

    Args:
        read: Descriptor to read from.
        write: Descriptor to write to.
        deadline_s: On the monotonic clock; None waits for ever.
    """

    def __init__(self, read: int, write: int, *, deadline_s: float | None) -> None:
        self._read, self._write, self._deadline_s = read, write, deadline_s
        os.set_blocking(read, False)
        os.set_blocking(write, False)

    def send(self, message: FromStep | ToStep) -> None:
        """Send one message.

        Raises:
            PipeClosedError: The other side is gone.
            PipeTimeoutError: It does not read.
        """
        body = msgspec.msgpack.encode(message)
        view = memoryview(_LENGTH.pack(len(body)) + body)
        while view:
            self._wait(self._write, select.POLLOUT)
            try:
                view = view[os.write(self._write, view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as e:
                raise PipeClosedError from e

    def receive(self, kind: type[M]) -> M:
        """Return the next message, which must be of ``kind``.

        Raises:
            PipeClosedError: The other side is gone.
            PipeTimeoutError: It does not write.
            MalformedMessageError: It sent something else.
        """
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > MAX_FRAME_BYTES:
            raise MessageTooLargeError("trust step frame", length, MAX_FRAME_BYTES)
        try:
            return msgspec.msgpack.decode(self._exactly(length), type=kind)
        except msgspec.DecodeError as e:
            raise MalformedMessageError(f"trust step frame: {e}") from e

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            self._wait(self._read, select.POLLIN)
            try:
                got = os.read(self._read, min(count - len(data), _READ_BYTES))
            except BlockingIOError:
                continue
            if not got:
                raise PipeClosedError
            data += got
        return bytes(data)

    def _wait(self, descriptor: int, events: int) -> None:
        poll = select.poll()  # unlike select, takes descriptors over 1023
        poll.register(descriptor, events)
        left_ms = None
        if self._deadline_s is not None:
            left_ms = (self._deadline_s - time.monotonic()) * 1000
            if left_ms <= 0:
                raise PipeTimeoutError
        if not poll.poll(left_ms):
            raise PipeTimeoutError
