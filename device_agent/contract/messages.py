"""Every MQTT message: one tagged union, encode and decode (contract §3, §4).

Control messages are JSON so that a plain MQTT client shows them; telemetry and blob replies are
MessagePack; chunks have a binary header (:mod:`device_agent.contract.chunk`). The signed desired
state travels in an :class:`Envelope` (:mod:`device_agent.contract.desired`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from device_agent.contract.errors import (
    MalformedMessageError,
    MessageTooLargeError,
    UnsupportedVersionError,
)
from device_agent.contract.manifest import Digest, Identifier, Natural, Positive, Version
from device_agent.contract.sketch import Sketch

VERSION = 1

MAX_CONTROL_BYTES = 64 * 1024
MAX_TELEMETRY_BYTES = 256 * 1024
MAX_METADATA_BYTES = 5 * 1024 * 1024
MAX_REPLY_BYTES = MAX_METADATA_BYTES + 1024
MAX_TEXT_CHARACTERS = 2000
MAX_WINDOW_CHUNKS = 64
"""Chunks that one request may ask for."""

Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARACTERS)]
Slot = Literal["active", "candidate"]
DeploymentState = Literal[
    "idle", "fetching", "verifying", "proving", "activating", "active", "rolling-back", "failed"
]
Verdict = Literal["right", "wrong", "unclear"]
BootId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$")]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What all messages have: a ``type`` tag and a contract version ``v``."""

    v: int = VERSION


# --- up: device to host ---------------------------------------------------------------------


class Birth(Message, frozen=True, kw_only=True, tag="birth"):
    """Retained on ``conn`` after every connect (contract §4.1).

    Attributes:
        boot_id: Random at each start of the agent.
        connection: Grows with each connect of this boot; a death of an older one is ignored.
        machine_id: Differs between two machines with one cloned identity.
        runtimes: Runtime name to installed version.
        seed_applied: The flashed bundle's id, once its configuration is in force.
    """

    boot_id: BootId
    connection: Positive
    machine_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$")]
    agent_version: Text
    profile: Identifier
    runtimes: dict[str, str] = {}
    protections: tuple[str, ...] = ()
    seed_applied: Text = ""
    reporting_interval_s: float = 10.0


class Death(Message, frozen=True, kw_only=True, tag="death"):
    """The will on ``conn``, and what a clean stop publishes (contract §4.1)."""

    boot_id: BootId
    connection: Positive
    clean: bool = False


class ReleaseRef(msgspec.Struct, frozen=True):
    """A release as people and digests name it."""

    name: Identifier
    version: Version
    digest: Digest


class SlotReport(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in one slot, and how far a change of it is."""

    slot: Slot
    state: DeploymentState
    release: ReleaseRef | None = None
    reason: Text = ""
    progress: float | None = None


class Reported(Message, frozen=True, kw_only=True, tag="reported"):
    """The whole of what the device says it runs; retained (contract §4.3).

    Attributes:
        revision: Newest desired revision that was accepted or refused; 0 before the first.
        accepted: False when that revision was refused; ``reason`` says why.
    """

    boot_id: BootId
    revision: Natural
    accepted: bool = True
    reason: Text = ""
    slots: tuple[SlotReport, ...] = ()


class Event(Message, frozen=True, kw_only=True, tag="event"):
    """A state transition, for the audit trail (contract §4.4). Spooled."""

    boot_id: BootId
    seq: Positive
    at_unix_s: float
    kind: Literal["deployment", "worker", "trust", "connection", "agent"]
    state: Text = ""
    release: ReleaseRef | None = None
    detail: Text = ""


class Outcomes(msgspec.Struct, frozen=True):
    """How many requests of a window ended which way."""

    ok: Natural = 0
    error: Natural = 0
    deadline: Natural = 0
    rejected: Natural = 0


class ModelWindow(msgspec.Struct, frozen=True, kw_only=True):
    """Mergeable statistics of one release over one reporting window.

    Attributes:
        latency: Phase (``queue``, ``compute``, ``total``) to sketch in seconds.
        classes: Class index, as text, to count of top-1 answers.
        confidence: Counts of top-1 probability in ten equal bins of 0..1.
        rss_bytes: Largest resident set of the worker process seen in the window.
    """

    release: ReleaseRef
    start_unix_s: float
    duration_s: float
    outcomes: Outcomes
    latency: dict[str, Sketch] = {}
    classes: dict[str, int] = {}
    confidence: tuple[int, ...] = ()
    rss_bytes: Natural = 0
    restarts: Natural = 0


class SpoolState(msgspec.Struct, frozen=True):
    """What the device's spool holds and what it had to drop, by class of record."""

    records: Natural = 0
    bytes: Natural = 0
    dropped: dict[str, int] = {}


class Telemetry(Message, frozen=True, kw_only=True, tag="telemetry"):
    """A batch of windows; MessagePack (contract §4.5). Spooled."""

    boot_id: BootId
    seq: Positive
    windows: tuple[ModelWindow, ...] = ()
    spool: SpoolState = SpoolState()
    temperature_c: float | None = None
    memory_available_bytes: Natural = 0


class Feedback(Message, frozen=True, kw_only=True, tag="feedback"):
    """A person's verdict on one prediction (contract §4.6). Spooled.

    Attributes:
        inference_id: The id that the inference response carried.
        predicted: Label or class index of the top-1 answer, and its probability.
        label: What the person says it is, for ``wrong``.
    """

    boot_id: BootId
    seq: Positive
    at_unix_s: float
    inference_id: Annotated[str, msgspec.Meta(max_length=64)]
    release: ReleaseRef
    verdict: Verdict
    predicted: Text = ""
    confidence: float | None = None
    latency_s: float | None = None
    label: Text = ""
    comment: Text = ""


class BlobRequest(Message, frozen=True, kw_only=True, tag="blob-request"):
    """Asks for chunks of a blob (contract §4.7).

    Attributes:
        first: Index of the chunk that bit 0 of ``missing`` stands for.
        missing: Hex of a little-endian bit mask; bit i asks for chunk ``first + i``. At most
            ``MAX_WINDOW_CHUNKS`` bits.
    """

    request_id: Natural
    digest: Digest
    first: Natural
    missing: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2}){1,8}$")]


class MetadataRequest(Message, frozen=True, kw_only=True, tag="metadata-request"):
    """Asks for a TUF metadata file by its name, such as ``timestamp.json`` (contract §4.8)."""

    request_id: Natural
    path: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.json$")]
    max_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_METADATA_BYTES)]


# --- down: host to device -------------------------------------------------------------------


class Ack(Message, frozen=True, kw_only=True, tag="ack"):
    """Records of ``boot_id`` up to and with ``seq`` are stored for good (contract §4.9).

    Only this prunes the device's spool. ``credit`` is how many more records the device may send
    before the next acknowledgement.
    """

    boot_id: BootId
    seq: Natural
    credit: Natural


class BlobRefused(Message, frozen=True, kw_only=True, tag="blob-refused"):
    """The blob is not to be had (contract §4.7); MessagePack."""

    request_id: Natural
    digest: Digest
    reason: Text


class MetadataReply(Message, frozen=True, kw_only=True, tag="metadata-reply"):
    """A TUF metadata file, or an explicit "not found" (contract §4.8); MessagePack.

    Attributes:
        data: The file's bytes; None when there is no such file or it is over ``max_bytes``.
    """

    request_id: Natural
    path: str
    data: bytes | None


Up = (
    Birth | Death | Reported | Event | Telemetry | Feedback | BlobRequest | MetadataRequest
)
Down = Ack | BlobRefused | MetadataReply
AnyMessage = Up | Down

_MESSAGEPACK = (Telemetry, BlobRefused, MetadataReply)
_KNOWN_TYPES = frozenset(
    str(t.__struct_config__.tag)
    for t in (
        Birth, Death, Reported, Event, Telemetry, Feedback, BlobRequest, MetadataRequest,
        Ack, BlobRefused, MetadataReply,
    )
)  # fmt: skip


class _Head(msgspec.Struct):
    type: str
    v: int


_json = msgspec.json.Decoder(AnyMessage)
_msgpack = msgspec.msgpack.Decoder(AnyMessage)
_json_head = msgspec.json.Decoder(_Head)
_msgpack_head = msgspec.msgpack.Decoder(_Head)


def encode(message: AnyMessage) -> bytes:
    """Return the wire bytes of ``message`` (contract §3.1)."""
    if isinstance(message, _MESSAGEPACK):
        return msgspec.msgpack.encode(message)
    return msgspec.json.encode(message)


def max_bytes_of(payload: bytes) -> int:
    """Return the bound on a payload by its encoding: JSON starts with ``{`` (contract §3.4)."""
    return MAX_CONTROL_BYTES if payload[:1] == b"{" else MAX_REPLY_BYTES


def decode(payload: bytes) -> AnyMessage:
    """Return the message in ``payload``. Unknown fields are ignored (contract §3.2).

    Raises:
        MessageTooLargeError: It is over its bound.
        UnsupportedVersionError: Its version ``v`` is not ours.
        MalformedMessageError: It is not decodable, of an unknown type, or a field is wrong.
    """
    limit = max_bytes_of(payload)
    if len(payload) > limit:
        raise MessageTooLargeError("message", len(payload), limit)
    is_json = payload[:1] == b"{"
    try:
        head = (_json_head if is_json else _msgpack_head).decode(payload)
        if head.v != VERSION:
            raise UnsupportedVersionError(f"message {head.type[:40]!r}", head.v, VERSION)
        if head.type not in _KNOWN_TYPES:
            raise MalformedMessageError(f"unknown message type {head.type[:40]!r}")
        message = (_json if is_json else _msgpack).decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise MalformedMessageError(f"message: {e}") from e
    if isinstance(message, Telemetry) and len(payload) > MAX_TELEMETRY_BYTES:
        raise MessageTooLargeError("telemetry", len(payload), MAX_TELEMETRY_BYTES)
    return message
