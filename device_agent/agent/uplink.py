"""What the agent says to the hub, and where what the hub says goes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from device_agent.contract.chunk import Chunk, decode_chunk
from device_agent.contract.errors import AidError, MalformedMessageError
from device_agent.contract.messages import (
    Ack,
    AnyMessage,
    BlobRefused,
    Death,
    MetadataReply,
    decode,
    encode,
)
from device_agent.contract.topics import DELIVERY, DOWN, Channel, topic
from device_agent.errors import TransportError
from device_agent.transport import Loss, Publication, Received, Subscription, Transport

RECORD_EXPIRY_S = 7 * 24 * 3600
REQUEST_EXPIRY_S = 30
_EXPIRY_S = {
    Channel.EVENT: RECORD_EXPIRY_S,
    Channel.TELEMETRY: RECORD_EXPIRY_S,
    Channel.FEEDBACK: RECORD_EXPIRY_S,
    Channel.BLOB_REQUEST: REQUEST_EXPIRY_S,
}
LOGGED_MALFORMED = 20
"""So many refused messages are logged one by one; later ones are only counted."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address:
    """Who this agent is on the wire."""

    fleet: str
    device: str
    boot_id: str


@dataclass(frozen=True)
class Handlers:
    """Who takes what comes. All are called from the transport's thread, and do not block.

    Attributes:
        connected: A connection stands; gets its number.
        disconnected: There is none any more, or an attempt failed.
        desired: A signed desired state.
        ack: The hub stored records.
        chunk: A chunk of a blob; nothing in it is verified.
        reply: A blob was refused, or a metadata file came.
    """

    connected: Callable[[int], None]
    disconnected: Callable[[Loss], None]
    desired: Callable[[bytes], None]
    ack: Callable[[Ack], None]
    chunk: Callable[[Chunk], object]
    reply: Callable[[BlobRefused | MetadataReply], object]


class Uplink:
    """Speaks the contract over a transport; a :class:`~device_agent.transport.Listener`.

    Args:
        transport: The connection.
        address: Who we are.
    """

    def __init__(self, transport: Transport, address: Address) -> None:
        self._transport, self._address = transport, address
        self._topics = {c: topic(address.fleet, address.device, c) for c in Channel}
        self._channels = {self._topics[c]: c for c in DOWN}
        self._handlers: Handlers | None = None
        self.refused: Counter[str] = Counter()
        """Messages that were not of the contract, by error code."""

    def attach(self, handlers: Handlers) -> None:
        """Say who takes what comes; before the transport is entered."""
        self._handlers = handlers
        subscriptions = [Subscription(self._topics[c], DELIVERY[c].qos) for c in DOWN]
        self._transport.listen(self, subscriptions)

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection."""
        return self._transport.is_connected

    def publish(self, channel: Channel, payload: bytes, *, wait_s: float = 0.0) -> None:
        """Publish bytes with the quality and retention of their channel (M-2.3-2).

        Raises:
            TransportError: There is no connection, or it took nothing.
        """
        self._transport.publish(self._publication(channel, payload), wait_s=wait_s)

    def say(self, channel: Channel, message: AnyMessage) -> bool:
        """Publish a message that the next connect would publish again; False without one."""
        try:
            self.publish(channel, encode(message))
        except TransportError as e:
            _log.debug("%s waits for a connection: %s", channel, e)
            return False
        return True

    def _publication(self, channel: Channel, payload: bytes) -> Publication:
        delivery = DELIVERY[channel]
        return Publication(
            self._topics[channel],
            payload,
            qos=delivery.qos,
            retain=delivery.retain,
            expiry_s=_EXPIRY_S.get(channel),
        )

    # --- Listener ---

    def will(self, connection: int) -> Publication:
        """Return the death of this very connection (M-4.1-2)."""
        death = Death(boot_id=self._address.boot_id, connection=connection)
        return self._publication(Channel.CONN, encode(death))

    def connected(self, connection: int) -> None:
        """Pass it on."""
        if self._handlers:
            self._handlers.connected(connection)

    def disconnected(self, loss: Loss) -> None:
        """Pass it on."""
        if self._handlers:
            self._handlers.disconnected(loss)

    def received(self, message: Received) -> None:
        """Pass a message on; one that is not of the contract is counted (M-3.3-4)."""
        channel = self._channels.get(message.topic)
        try:
            if channel is None:
                raise MalformedMessageError(f"topic {message.topic[:200]!r} is not ours")
            self._route(channel, message.payload)
        except AidError as e:
            self.refused[e.code] += 1
            if self.refused.total() <= LOGGED_MALFORMED:
                _log.warning("a message on %s is refused: %s", channel or "no channel", e)

    def _route(self, channel: Channel, payload: bytes) -> None:
        handlers = self._handlers
        if handlers is None:
            return
        if channel is Channel.BLOB_CHUNK:
            handlers.chunk(decode_chunk(payload))
        elif channel is Channel.DESIRED:
            if payload:
                handlers.desired(payload)
        else:
            message = decode(payload)
            if channel is Channel.ACK and isinstance(message, Ack):
                handlers.ack(message)
            elif channel is Channel.BLOB_REPLY and isinstance(message, BlobRefused | MetadataReply):
                handlers.reply(message)
            else:
                kind = type(message).__name__
                raise MalformedMessageError(f"{kind} does not belong on {channel.value}")
