"""Every MQTT message: one tagged union, encode and decode (contract §3, §4).

Control messages are JSON so that a plain MQTT client shows them; telemetry and blob replies are
MessagePack; chunks have a binary header (:mod:`device_agent.contract.chunk`). The signed desired
state travels in an :class:`Envelope` (:mod:`device_agent.contract.desired`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

from device_agent.contract.errors import (
    MalformedMessageError,
    MessageTooLargeError,
    UnsupportedVersionError,
)
from device_agent.contract.manifest import (
    Digest,
    Identifier,
    Natural,
    NonNegative,
    Positive,
    Real,
    Version,
)
from device_agent.contract.sketch import Sketch

VERSION = 1

MAX_CONTROL_BYTES = 64 * 1024
MAX_TELEMETRY_BYTES = 256 * 1024
MAX_METADATA_BYTES = 5 * 1024 * 1024
MAX_REPLY_BYTES = MAX_METADATA_BYTES + 1024
MAX_TEXT_CHARACTERS = 2000
MAX_WINDOW_CHUNKS = 64
"""Chunks that one request may ask for."""

MAX_TRIAL_RUNS = 1000
"""Measured runs of one trial; as many latencies fit into one control message."""

INITIAL_CREDIT_RECORDS = 16
"""Records that may be on their way before the first acknowledgement of a connection."""

Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARACTERS)]
Slot = Literal["active", "candidate"]
DeploymentState = Literal[
    "idle", "fetching", "verifying", "proving", "activating", "active", "rolling-back", "failed"
]
Verdict = Literal["right", "wrong", "unclear"]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
BootId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]


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
    machine_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    agent_version: Text
    profile: Identifier
    runtimes: dict[str, str] = {}
    protections: tuple[str, ...] = ()
    seed_applied: Text = ""
    reporting_interval_s: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 10.0


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
    """What stands in one slot, and how far a change of it is.

    Attributes:
        retrying: It failed for a passing reason, and the device tries again by itself.
    """

    slot: Slot
    state: DeploymentState
    release: ReleaseRef | None = None
    reason: Text = ""
    progress: Share | None = None
    retrying: bool = False


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
    """A state transition, for the audit trail (contract §4.4). Spooled.

    Attributes:
        floor: Lowest sequence number of this boot that the device still holds or has yet to make.
    """

    boot_id: BootId
    seq: Positive
    floor: Positive = 1
    at_unix_s: Real
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
    start_unix_s: Real
    duration_s: NonNegative
    outcomes: Outcomes
    latency: dict[str, Sketch] = {}
    classes: dict[str, Natural] = {}
    confidence: Annotated[tuple[Natural, ...], msgspec.Meta(max_length=10)] = ()
    rss_bytes: Natural = 0
    restarts: Natural = 0


class SpoolState(msgspec.Struct, frozen=True):
    """What the device's spool holds and what it had to drop, by class of record."""

    records: Natural = 0
    bytes: Natural = 0
    dropped: dict[str, Natural] = {}


class Telemetry(Message, frozen=True, kw_only=True, tag="telemetry"):
    """A batch of windows; MessagePack (contract §4.5). Spooled.

    Attributes:
        floor: Lowest sequence number of this boot that the device still holds or has yet to make.
    """

    boot_id: BootId
    seq: Positive
    floor: Positive = 1
    windows: tuple[ModelWindow, ...] = ()
    spool: SpoolState = SpoolState()
    temperature_c: Real | None = None
    memory_available_bytes: Natural = 0


class Feedback(Message, frozen=True, kw_only=True, tag="feedback"):
    """A person's verdict on one prediction (contract §4.6). Spooled.

    Attributes:
        floor: Lowest sequence number of this boot that the device still holds or has yet to make.
        inference_id: The id that the inference response carried.
        predicted: Label or class index of the top-1 answer, and its probability.
        label: What the person says it is, for ``wrong``.
    """

    boot_id: BootId
    seq: Positive
    floor: Positive = 1
    at_unix_s: Real
    inference_id: Annotated[str, msgspec.Meta(max_length=64)]
    release: ReleaseRef
    verdict: Verdict
    predicted: Text = ""
    confidence: Share | None = None
    latency_s: NonNegative | None = None
    label: Text = ""
    comment: Text = ""


class TrialResult(Message, frozen=True, kw_only=True, tag="trial-result"):
    """What a trial found: how a release that is not served runs on this device (contract §4.10).

    Published on ``event``; a record. Latencies are those of the runtime's call alone, batch 1, one
    after another, after the warm-up.

    Attributes:
        floor: Lowest sequence number of this boot that the device still holds or has yet to make.
        trial: The id that the desired state gave it.
        outcome: ``failed`` carries no figures, and ``reason`` says why.
        latencies_s: One per run, in order.
        load_s: From the start of the worker to a loaded model.
        peak_rss_bytes: Peak of the worker process.
        served: Requests that the served release answered meanwhile.
    """

    boot_id: BootId
    seq: Positive
    floor: Positive = 1
    at_unix_s: Real
    trial: Identifier
    release: ReleaseRef
    outcome: Literal["ok", "failed"]
    reason: Text = ""
    runtime: Text = ""
    runtime_version: Text = ""
    threads: Natural = 0
    latencies_s: Annotated[tuple[NonNegative, ...], msgspec.Meta(max_length=MAX_TRIAL_RUNS)] = ()
    load_s: NonNegative = 0.0
    peak_rss_bytes: Natural = 0
    served: Natural = 0


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
    missing: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2}){1,8}\Z")]


class MetadataRequest(Message, frozen=True, kw_only=True, tag="metadata-request"):
    """Asks for a TUF metadata file by its name, such as ``timestamp.json`` (contract §4.8)."""

    request_id: Natural
    path: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.json\Z")]
    max_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_METADATA_BYTES)]


# --- down: host to device -------------------------------------------------------------------


class Ack(Message, frozen=True, kw_only=True, tag="ack"):
    """Records of ``boot_id`` up to and with ``seq`` are stored for good (contract §4.9).

    Only this prunes the device's spool. ``credit`` is how many records beyond ``seq`` may be on
    their way.
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
    Birth
    | Death
    | Reported
    | Event
    | Telemetry
    | Feedback
    | TrialResult
    | BlobRequest
    | MetadataRequest
)
Down = Ack | BlobRefused | MetadataReply
AnyMessage = Up | Down

_MESSAGEPACK = (Telemetry, BlobRefused, MetadataReply)
_KNOWN_TYPES = frozenset(
    str(t.__struct_config__.tag)
    for t in (
        Birth, Death, Reported, Event, Telemetry, Feedback, TrialResult, BlobRequest,
        MetadataRequest, Ack, BlobRefused, MetadataReply,
    )
)  # fmt: skip


class _Head(msgspec.Struct):
    type: str
    v: int


_json: msgspec.json.Decoder[AnyMessage] = msgspec.json.Decoder(AnyMessage)
_msgpack: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)
_json_head = msgspec.json.Decoder(_Head)
_msgpack_head = msgspec.msgpack.Decoder(_Head)


def missing_mask(first: int, indices: Iterable[int]) -> str:
    """Return the ``missing`` field that asks for the chunks ``indices`` (contract §4.7).

    Raises:
        ValueError: No index, or one outside ``first`` to ``first + MAX_WINDOW_CHUNKS - 1``.
    """
    mask = 0
    for index in indices:
        if not 0 <= index - first < MAX_WINDOW_CHUNKS:
            raise ValueError(f"chunk {index} does not fit into a request from {first}")
        mask |= 1 << (index - first)
    if not mask:
        raise ValueError("a request asks for at least one chunk")
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little").hex()


def missing_indices(request: BlobRequest) -> list[int]:
    """Return the chunks that ``request`` asks for, in order (contract §4.7)."""
    mask = int.from_bytes(bytes.fromhex(request.missing), "little")
    return [request.first + i for i in range(MAX_WINDOW_CHUNKS) if mask >> i & 1]


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
    if isinstance(message, _MESSAGEPACK) is is_json:
        raise MalformedMessageError(f"message {head.type!r} is not in the encoding of its type")
    if isinstance(message, Telemetry) and len(payload) > MAX_TELEMETRY_BYTES:
        raise MessageTooLargeError("telemetry", len(payload), MAX_TELEMETRY_BYTES)
    return message
