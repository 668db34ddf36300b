"""The hub's connection to its broker; the only module of the host that imports paho."""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt import MQTTException
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from aid_edge.errors import BrokerError
from device_agent.contract.topics import DELIVERY, Channel, topic

DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}
KEEPALIVE_S = 30
CONNECT_TIMEOUT_S = 10.0
RECONNECT_MIN_S = 1
RECONNECT_MAX_S = 15
"""The hub is one client beside a broker on its own machine or site: no storm to fear."""
MAX_INFLIGHT_MESSAGES = 20
"""paho gets slower, not faster, with more QoS 1 messages in flight."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BrokerAddress:
    """Where the broker is, and who the hub is there.

    Attributes:
        url: ``mqtts://host[:port]``, or ``mqtt://`` to a loopback address.
        ca: Certificate of the broker's authority; needed for ``mqtts``.
        certificate: The hub's own certificate.
        key: Its private key.
    """

    url: str
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True)
class Received:
    """A message; ``is_copy`` marks one that the broker had stored, however old it is."""

    topic: str
    payload: bytes
    is_copy: bool


@dataclass(frozen=True)
class Sent:
    """A message on its way."""

    info: paho.MQTTMessageInfo

    def wait(self, timeout_s: float) -> bool:
        """Return whether it went out (QoS 0) or was acknowledged (QoS 1) within the time."""
        try:
            self.info.wait_for_publish(timeout_s)
        except (RuntimeError, ValueError):
            return False  # the connection went away under it
        return self.info.is_published()


def endpoint_of(url: str) -> tuple[str, int, bool]:
    """Return host, port and whether TLS is spoken, of the broker address ``url``.

    Raises:
        BrokerError: It is not such an address, or would speak in the clear over a network.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as e:
        raise BrokerError(f"broker address {url!r}: {e}") from e
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname or parts.username:
        raise BrokerError(
            f"{url!r} is not a broker address", hint="Use mqtts://host:port, without a user name."
        )
    is_tls = parts.scheme == "mqtts"
    if not is_tls and not is_loopback(parts.hostname):
        raise BrokerError(
            f"broker {url}: would speak in the clear over a network",
            hint="Use mqtts://; mqtt:// is only for a broker on this machine.",
        )
    return parts.hostname, port or DEFAULT_PORTS[parts.scheme], is_tls


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is an address of this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class HubConnection:
    """The hub's one connection. It comes back by itself when it is lost.

    Callbacks run in paho's thread and must not block.
    """

    def __init__(
        self,
        address: BrokerAddress,
        fleet: str,
        subscriptions: Sequence[tuple[str, int]],
        *,
        on_message: Callable[[Received], None],
        on_connected: Callable[[], None] = lambda: None,
    ) -> None:
        self._address = address
        self._fleet = fleet
        self._subscriptions = subscriptions
        self._on_message = on_message
        self._on_connected = on_connected
        self._up = threading.Event()
        self._refusal = ""
        self._host, self._port, is_tls = endpoint_of(address.url)
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id="hub", protocol=MQTTProtocolVersion.MQTTv5
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.reconnect_delay_set(RECONNECT_MIN_S, RECONNECT_MAX_S)
        client.max_inflight_messages_set(MAX_INFLIGHT_MESSAGES)
        client.on_socket_open = _no_delay
        client.on_connect = self._connected
        client.on_connect_fail = self._failed
        client.on_subscribe = self._subscribed
        client.on_disconnect = self._disconnected
        client.on_message = self._message
        if is_tls:
            client.tls_set_context(_tls_context(address))

    @property
    def is_up(self) -> bool:
        """Whether connected and subscribed."""
        return self._up.is_set()

    def start(self) -> None:
        """Connect, now or as soon as the broker is there.

        Raises:
            BrokerError: The address cannot be used at all.
        """
        try:
            # Nothing is kept for us while we are away: devices send again what was not stored,
            # and everything else is retained.
            self._client.connect_async(
                self._host, self._port, keepalive=KEEPALIVE_S, clean_start=True
            )
            self._client.loop_start()
        except (MQTTException, OSError, ValueError) as e:
            raise BrokerError(f"broker {self._address.url}: {e}") from e

    def wait_until_up(self, timeout_s: float) -> None:
        """Return once connected and subscribed.

        Raises:
            BrokerError: Not within the time; says why, where the broker gave a reason.
        """
        if not self._up.wait(timeout_s):
            raise BrokerError(
                f"broker {self._address.url}: no connection within {timeout_s:g} s",
                cause=self._refusal,
                hint="Is it running, and does it accept the fleet's certificates?",
            )

    def publish(self, device: str, channel: Channel, payload: bytes) -> Sent | None:
        """Send ``payload`` to ``device`` as the contract delivers ``channel`` (contract §2.3).

        Returns None, and sends nothing, while there is no connection.
        """
        if not self.is_up:
            return None
        how = DELIVERY[channel]
        try:
            info = self._client.publish(
                topic(self._fleet, device, channel), payload, how.qos, how.retain
            )
        except (MQTTException, OSError, ValueError) as e:
            _log.warning("publishing to %s: %s", device, e)
            return None
        return Sent(info) if info.rc == paho.MQTT_ERR_SUCCESS else None

    def close(self) -> None:
        """Disconnect and end paho's thread."""
        self._up.clear()
        self._client.disconnect()
        self._client.loop_stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _failed(self, _client: paho.Client, _data: Any) -> None:
        # paho calls this from within its `except`.
        reason = str(sys.exception() or "no connection")
        if reason != self._refusal:
            _log.warning("broker %s: %s; trying again", self._address.url, reason)
        self._refusal = reason

    def _connected(
        self, client: paho.Client, _data: Any, _flags: Any, code: ReasonCode, _properties: Any
    ) -> None:
        if code.is_failure:
            self._refusal = f"the broker refused the connection: {code}"
            _log.warning("broker %s: %s", self._address.url, self._refusal)
            return
        client.subscribe([(name, SubscribeOptions(qos=qos)) for name, qos in self._subscriptions])

    def _subscribed(
        self, _client: paho.Client, _data: Any, _mid: int, codes: list[ReasonCode], _props: Any
    ) -> None:
        refused = [str(code) for code in codes if code.is_failure]
        if refused:
            self._refusal = f"the broker refused a subscription: {refused[0]}"
            _log.error("broker %s: %s", self._address.url, self._refusal)
            return
        self._up.set()
        _log.info("connected to broker %s", self._address.url)
        self._on_connected()

    def _disconnected(
        self, _client: paho.Client, _data: Any, _flags: Any, code: ReasonCode, _properties: Any
    ) -> None:
        self._up.clear()
        if code.is_failure:
            _log.warning("lost broker %s: %s; connecting again", self._address.url, code)

    def _message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        self._on_message(Received(message.topic, bytes(message.payload), bool(message.retain)))


def _no_delay(_client: paho.Client, _data: Any, connection: Any) -> None:
    # Nagle and delayed acknowledgement together make a QoS 1 round trip 90 ms instead of 0.5.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _tls_context(address: BrokerAddress) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(
            ssl.Purpose.SERVER_AUTH, cafile=str(address.ca) if address.ca else None
        )
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if address.certificate and address.key:
            context.load_cert_chain(address.certificate, address.key)
    except (ssl.SSLError, OSError) as e:
        raise BrokerError(f"broker {address.url}: certificates cannot be used: {e}") from e
    return context
