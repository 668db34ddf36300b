"""Desired state and the envelope the director signs it in (contract §4.2, §8).

The envelope is a DSSE envelope (secure-systems-lab/dsse, protocol.md): the signature is over the
pre-authentication encoding of type and payload, so only signed bytes reach the decoder.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from device_agent.contract.errors import (
    MalformedMessageError,
    MessageTooLargeError,
    UnsupportedVersionError,
)
from device_agent.contract.manifest import Identifier, Natural, Positive, Real
from device_agent.contract.messages import MAX_TRIAL_RUNS, VERSION, ReleaseRef, Slot

PAYLOAD_TYPE = "application/vnd.aid-edge.desired.v1+json"
MAX_DESIRED_BYTES = 8 * 1024
MAX_TRIALS = 8
"""Trials of one desired state; with two slots they stay well under its bound."""


class DesiredSlot(msgspec.Struct, frozen=True, kw_only=True):
    """The release that one slot should hold.

    Attributes:
        counter: Release counter; must match the signed manifest.
    """

    slot: Slot
    release: ReleaseRef
    counter: Positive


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """A release to be measured beside what is served (contract §4.10).

    Attributes:
        id: Of this trial; the result carries it. A trial is done once.
        counter: Release counter; must match the signed manifest.
        runs: Measured runs.
        warmup: Runs before them that are not measured.
    """

    id: Identifier
    release: ReleaseRef
    counter: Positive
    runs: Annotated[int, msgspec.Meta(ge=1, le=MAX_TRIAL_RUNS)] = 100
    warmup: Annotated[int, msgspec.Meta(ge=0, le=MAX_TRIAL_RUNS)] = 10


class Desired(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="desired"):
    """What one device should run (contract §4.2).

    Attributes:
        revision: Grows with every change; a device refuses one lower than it has accepted.
        not_after_unix_s: Not to be installed from after this; what runs goes on running.
        slots: Empty means "run nothing".
        trials: Releases to be measured; agents that do not know them ignore them.
    """

    v: int = VERSION
    fleet: Identifier
    device: Identifier
    revision: Positive
    not_after_unix_s: Real
    slots: tuple[DesiredSlot, ...] = ()
    trials: Annotated[tuple[Trial, ...], msgspec.Meta(max_length=MAX_TRIALS)] = ()


class Signature(msgspec.Struct, frozen=True):
    """One Ed25519 signature, base64 in JSON. ``keyid`` is the TUF key id of the public key."""

    keyid: Annotated[str, msgspec.Meta(max_length=128)]
    sig: bytes


class Envelope(msgspec.Struct, frozen=True, rename={"payload_type": "payloadType"}):
    """DSSE envelope: payload bytes with signatures over them."""

    payload: bytes
    payload_type: str
    signatures: tuple[Signature, ...]


class _Head(msgspec.Struct):
    type: str
    v: Natural


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return what is signed (DSSE protocol.md, "PAE")."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def encode_envelope(envelope: Envelope) -> bytes:
    """Return the wire bytes of a signed desired state."""
    return msgspec.json.encode(envelope)


def decode_envelope(data: bytes) -> Envelope:
    """Return the envelope in ``data``; nothing in it is verified yet.

    Raises:
        MessageTooLargeError: Over ``MAX_DESIRED_BYTES``.
        MalformedMessageError: Not an envelope of a desired state.
    """
    if len(data) > MAX_DESIRED_BYTES:
        raise MessageTooLargeError("desired state", len(data), MAX_DESIRED_BYTES)
    try:
        envelope = msgspec.json.decode(data, type=Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise MalformedMessageError(f"desired state envelope: {e}") from e
    if envelope.payload_type != PAYLOAD_TYPE:
        raise MalformedMessageError(f"envelope holds {envelope.payload_type[:80]!r}")
    return envelope


def decode_desired(payload: bytes) -> Desired:
    """Return the desired state in ``payload``, whose signature must already be verified.

    Raises:
        UnsupportedVersionError: Its version is not ours.
        MalformedMessageError: Not decodable, of another type, or a field is wrong.
    """
    try:
        head = msgspec.json.decode(payload, type=_Head)
        if head.v != VERSION:
            raise UnsupportedVersionError("desired state", head.v, VERSION)
        if head.type != "desired":
            raise MalformedMessageError(f"desired state is of type {head.type[:40]!r}")
        return msgspec.json.decode(payload, type=Desired)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise MalformedMessageError(f"desired state: {e}") from e
