"""The MQTT topics of a fleet: how they are written and read (contract §2)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from device_agent.contract.errors import MalformedMessageError
from device_agent.contract.names import check_identifier

ROOT = "aid/v1"
_LEVELS_BEFORE_CHANNEL = 4


class Channel(StrEnum):
    """The last levels of a device's topics, and so what travels on them."""

    CONN = "conn"
    DESIRED = "desired"
    REPORTED = "reported"
    EVENT = "event"
    TELEMETRY = "telemetry"
    FEEDBACK = "feedback"
    ACK = "ack"
    BLOB_REQUEST = "blob/request"
    BLOB_REPLY = "blob/reply"
    BLOB_CHUNK = "blob/chunk"


UP = (
    Channel.CONN,
    Channel.REPORTED,
    Channel.EVENT,
    Channel.TELEMETRY,
    Channel.FEEDBACK,
    Channel.BLOB_REQUEST,
)
DOWN = (Channel.DESIRED, Channel.ACK, Channel.BLOB_REPLY, Channel.BLOB_CHUNK)

RESERVED_DEVICES = frozenset({"cast"})
"""Identifiers that no device may have, because the level is used otherwise (contract §1.1)."""


@dataclass(frozen=True)
class Delivery:
    """How a channel is published."""

    qos: int
    retain: bool


_RETAINED = Delivery(qos=1, retain=True)
_STORED = Delivery(qos=1, retain=False)
DELIVERY: dict[Channel, Delivery] = {
    Channel.CONN: _RETAINED,
    Channel.DESIRED: _RETAINED,
    Channel.REPORTED: _RETAINED,
    Channel.EVENT: _STORED,
    Channel.TELEMETRY: _STORED,
    Channel.FEEDBACK: _STORED,
    Channel.ACK: _STORED,
    Channel.BLOB_REQUEST: _STORED,
    Channel.BLOB_REPLY: _STORED,
    Channel.BLOB_CHUNK: Delivery(qos=0, retain=False),
}
"""Quality of service and retain flag of each channel (contract §2.3)."""


def check_device(value: str) -> str:
    """Return ``value`` if it can name a device (contract §1.1).

    Raises:
        MalformedMessageError: It cannot, or the name is reserved.
    """
    if check_identifier("device", value) in RESERVED_DEVICES:
        raise MalformedMessageError(f"{value!r} is reserved and cannot name a device")
    return value


def topic(fleet: str, device: str, channel: Channel) -> str:
    """Return the topic of ``channel`` for one device (contract §2.1).

    Raises:
        MalformedMessageError: ``fleet`` or ``device`` is not a valid identifier.
    """
    check_identifier("fleet", fleet)
    check_device(device)
    return f"{ROOT}/{fleet}/{device}/{channel.value}"


def subscription(fleet: str, channel: Channel) -> str:
    """Return the filter that matches ``channel`` of every device of ``fleet`` (contract §2.2)."""
    check_identifier("fleet", fleet)
    return f"{ROOT}/{fleet}/+/{channel.value}"


def parse(name: str) -> tuple[str, str, Channel]:
    """Return fleet, device and channel of a topic (contract §2.1).

    Raises:
        MalformedMessageError: It is not a topic of this contract.
    """
    parts = name.split("/", _LEVELS_BEFORE_CHANNEL)
    if len(parts) <= _LEVELS_BEFORE_CHANNEL or "/".join(parts[:2]) != ROOT:
        raise MalformedMessageError(f"{name!r} is not a topic of {ROOT}")
    _, _, fleet, device, rest = parts
    try:
        channel = Channel(rest)
    except ValueError:
        raise MalformedMessageError(f"{name!r} names no known channel") from None
    return check_identifier("fleet", fleet), check_device(device), channel
