"""The transport over MQTT 5; the only module that imports paho.

One thread of ours keeps the connection and calls the listener; paho's own thread only reads and
writes the socket. Every connection has a client object of its own: its will carries its own
connection number, and nothing of an older connection is sent again on a newer one.
"""

from __future__ import annotations

import ipaddress
import logging
import queue
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt import MQTTException
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from device_agent.errors import TransportError
from device_agent.transport import Backoff, Listener, Loss, Publication, Received, Subscription

SESSION_EXPIRY_S = 300
"""How long the broker keeps the session; longer than the will delay, or that has no effect."""

WILL_DELAY_S = 30
"""A flap shorter than this publishes no death."""

STABLE_S = 60.0
"""A connection that stood this long resets the backoff."""

CONNECT_TIMEOUT_S = 10.0
TAKEN_OVER = 0x8E
"""MQTT 5, 3.14.2.1: session taken over."""

TAKEN_OVER_BASE_S = 5.0
MAX_PACKET_BYTES = 8 * 2**20
MAX_INBOX_MESSAGES = 256
POLL_S = 0.2
"""How often a wait looks whether to stop."""

MAX_INFLIGHT_MESSAGES = 64
DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}
_FAILURE = 0x80

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MqttSettings:
    """Where the broker is, and who we are.

    Attributes:
        url: ``mqtts://host[:port]``, or ``mqtt://`` to a loopback address.
        client_id: The device's id; also the common name of its certificate.
        ca: Certificate of the broker's authority; needed for ``mqtts``.
        certificate: Our own certificate (mTLS).
        key: Its private key.
    """

    url: str
    client_id: str
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    keepalive_s: int = 30
    reconnect_max_s: float = 600.0


@dataclass(frozen=True)
class Endpoint:
    """A broker's address."""

    host: str
    port: int
    is_tls: bool

    def __str__(self) -> str:
        """Return it as a URL."""
        return f"{'mqtts' if self.is_tls else 'mqtt'}://{self.host}:{self.port}"


def endpoint_of(url: str) -> Endpoint:
    """Return the broker's address in ``url``.

    Raises:
        TransportError: It is not such a URL, or would speak in the clear over a network.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as e:
        raise TransportError(f"broker url {url!r}: {e}") from e
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise TransportError(
            f"broker url {url!r} is not one", hint="Use mqtts://host:port in config.toml."
        )
    if parts.username or parts.password:
        raise TransportError("the broker url must not hold a user name or password")
    is_tls = parts.scheme == "mqtts"
    if not is_tls and not _is_loopback(parts.hostname):
        raise TransportError(
            f"broker url {url!r} would speak in the clear over a network",
            hint="Use mqtts://; mqtt:// is only for a broker on this machine.",
        )
    return Endpoint(parts.hostname, port or DEFAULT_PORTS[parts.scheme], is_tls)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _ours(endpoint: Endpoint) -> Iterator[None]:
    """Turn everything that paho and the network raise into :class:`TransportError`."""
    try:
        yield
    except ssl.SSLError as e:
        raise TransportError(
            f"broker {endpoint}: TLS failed: {e}",
            hint="Check identity/ca.pem, identity/device.pem and identity/device.key.",
        ) from e
    except (MQTTException, OSError, ValueError, RuntimeError) as e:
        raise TransportError(f"broker {endpoint}: {e}") from e


@dataclass(frozen=True)
class _Connected:
    pass


@dataclass(frozen=True)
class _Lost:
    reason: str
    code: int


_Happening = Received | _Connected | _Lost


class _Session:
    """One connection: a paho client, and what it has to tell, in order."""

    def __init__(
        self, settings: MqttSettings, endpoint: Endpoint, subscriptions: Sequence[Subscription]
    ) -> None:
        self._endpoint = endpoint
        self._subscriptions = subscriptions
        self.inbox: queue.Queue[_Happening] = queue.Queue(MAX_INBOX_MESSAGES)
        self.is_up = False
        self._over = False
        client = self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(MAX_INFLIGHT_MESSAGES)
        client.max_queued_messages_set(MAX_INBOX_MESSAGES)
        client.on_socket_open = _no_delay
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect
        self._keepalive_s = settings.keepalive_s
        if endpoint.is_tls:
            client.tls_set_context(_tls_context(settings))

    def open(self, will: Publication) -> None:
        """Connect and start paho's thread; the inbox says when the connection stands."""
        will_properties = _properties(PacketTypes.WILLMESSAGE)
        will_properties.WillDelayInterval = WILL_DELAY_S
        self._client.will_set(
            will.topic, will.payload, will.qos, will.retain, properties=will_properties
        )
        properties = _properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        self._client.connect(
            self._endpoint.host,
            self._endpoint.port,
            keepalive=self._keepalive_s,
            # Not a clean start: Mosquitto 2.0 and rumqttd forget a session that began clean.
            clean_start=False,
            properties=properties,
        )
        self._client.loop_start()

    def publish(self, publication: Publication, wait_s: float) -> None:
        properties: Properties | None = None
        if publication.expiry_s is not None:
            properties = _properties(PacketTypes.PUBLISH)
            properties.MessageExpiryInterval = publication.expiry_s
        info = self._client.publish(
            publication.topic,
            publication.payload,
            publication.qos,
            publication.retain,
            properties=properties,
        )
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise TransportError(f"broker {self._endpoint}: {paho.error_string(info.rc)}")
        if wait_s:
            info.wait_for_publish(wait_s)

    def close(self) -> None:
        """Disconnect, and end paho's thread."""
        self.is_up = False
        self._over = True
        with suppress(queue.Empty):
            # paho's thread may wait for room.
            while True:
                self.inbox.get_nowait()
        self._client.disconnect()
        self._client.loop_stop()

    def _tell(self, happening: _Happening) -> None:
        while not self._over:
            with suppress(queue.Full):
                self.inbox.put(happening, timeout=1.0)
                return

    def _on_connect(
        self, client: paho.Client, _data: Any, _flags: Any, code: ReasonCode, _properties: Any
    ) -> None:
        if code.is_failure:
            self._tell(_Lost(f"the broker refused the connection: {code}", code.value))
            return
        client.subscribe([(s.topic, SubscribeOptions(qos=s.qos)) for s in self._subscriptions])

    def _on_subscribe(
        self, _client: paho.Client, _data: Any, _mid: int, codes: list[ReasonCode], _props: Any
    ) -> None:
        refused = [
            s.topic for s, c in zip(self._subscriptions, codes, strict=False) if c.value >= _FAILURE
        ]
        if refused:
            self._tell(_Lost(f"the broker refused to let us hear {', '.join(refused)}", 0))
            return
        self.is_up = True
        self._tell(_Connected())

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        self._tell(Received(topic, bytes(message.payload)))

    def _on_disconnect(
        self, _client: paho.Client, _data: Any, _flags: Any, code: ReasonCode, _properties: Any
    ) -> None:
        self.is_up = False
        self._tell(_Lost(str(code), code.value))


def _properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]


def _no_delay(_client: paho.Client, _data: Any, sock: Any) -> None:
    # Nagle with delayed acknowledgements costs a QoS 1 exchange some 90 ms.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _tls_context(settings: MqttSettings) -> ssl.SSLContext:
    if not (settings.ca and settings.certificate and settings.key):
        raise TransportError("mqtts:// needs an authority, a certificate and a key")
    missing = [p for p in (settings.ca, settings.certificate, settings.key) if not p.is_file()]
    if missing:
        raise TransportError(
            f"identity file {missing[0]} is missing", hint="Install the device's bundle again."
        )
    context = ssl.create_default_context(cafile=str(settings.ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.certificate, settings.key)
    return context


class MqttTransport:
    """A :class:`~device_agent.transport.Transport` over MQTT 5.

    ::

        transport = MqttTransport(settings)
        transport.listen(listener, [Subscription(topic)])
        with transport:
            ...
    """

    def __init__(self, settings: MqttSettings, *, rng: random.Random | None = None) -> None:
        """Check the address; nothing is connected before entering.

        Raises:
            TransportError: The broker's URL cannot be used.
        """
        self._settings = settings
        self._endpoint = endpoint_of(settings.url)
        jitter = rng or random.Random()  # noqa: S311 - jitter, not a secret
        cap_s = settings.reconnect_max_s
        self._backoff = Backoff(cap_s=cap_s, rng=jitter)
        self._taken_over = Backoff(cap_s=cap_s, base_s=TAKEN_OVER_BASE_S, floor=0.5, rng=jitter)
        self._listener: Listener | None = None
        self._subscriptions: tuple[Subscription, ...] = ()
        self._session: _Session | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection = 0

    def listen(self, listener: Listener, subscriptions: Sequence[Subscription]) -> None:
        """Say who listens, to what; before entering."""
        self._listener, self._subscriptions = listener, tuple(subscriptions)

    def __enter__(self) -> Self:
        if self._listener is None or not self._subscriptions:
            raise TransportError("nobody listens to this transport")
        self._stop.clear()
        self._thread = threading.Thread(
            target=self._run, args=(self._listener,), name="mqtt", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            # A connection attempt that is under way ends by its own timeout.
            self._thread.join(CONNECT_TIMEOUT_S + 1)

    @property
    def is_connected(self) -> bool:
        """Whether a message could be published now."""
        session = self._session
        return session is not None and session.is_up

    def publish(self, publication: Publication, *, wait_s: float = 0.0) -> None:
        """Hand a message to the broker; see :class:`~device_agent.transport.Transport`.

        Raises:
            TransportError: There is no connection, or it did not take the message.
        """
        session = self._session
        if session is None or not session.is_up:
            raise TransportError(f"broker {self._endpoint}: not connected")
        with _ours(self._endpoint):
            session.publish(publication, wait_s)

    def _run(self, listener: Listener) -> None:
        while not self._stop.is_set():
            began_s = time.monotonic()
            was_connected, lost = False, _Lost("", 0)
            try:
                was_connected, lost = self._hold(listener)
            except TransportError as e:
                lost = _Lost(f"{e}. {e.hint}" if e.hint else str(e), 0)
            if self._stop.is_set():
                return
            stood_s = time.monotonic() - began_s
            self._wait(listener, lost, was_connected=was_connected, stood_s=stood_s)

    def _wait(
        self, listener: Listener, lost: _Lost, *, was_connected: bool, stood_s: float
    ) -> None:
        if was_connected and stood_s >= STABLE_S:
            self._backoff.reset()
            self._taken_over.reset()
        is_taken_over = lost.code == TAKEN_OVER
        wait_s = (self._taken_over if is_taken_over else self._backoff).next_s()
        listener.disconnected(Loss(lost.reason, was_connected, is_taken_over, wait_s))
        self._stop.wait(wait_s)

    def _hold(self, listener: Listener) -> tuple[bool, _Lost]:
        """Make one connection, and serve the listener until it is lost or we stop."""
        number = self._connection + 1
        will = listener.will(number)
        with _ours(self._endpoint):
            session = _Session(self._settings, self._endpoint, self._subscriptions)
        try:
            with _ours(self._endpoint):
                session.open(will)
            # From here on the broker may have this number in a will, whatever it answers.
            self._connection = number
            self._session = session
            return self._serve(listener, session)
        finally:
            self._session = None
            with _ours(self._endpoint):
                session.close()

    def _serve(self, listener: Listener, session: _Session) -> tuple[bool, _Lost]:
        was_connected = False
        until_s = time.monotonic() + CONNECT_TIMEOUT_S
        while not self._stop.is_set():
            try:
                happening = session.inbox.get(timeout=POLL_S)
            except queue.Empty:
                if not was_connected and time.monotonic() > until_s:
                    return False, _Lost("the broker did not answer", 0)
                continue
            if isinstance(happening, _Lost):
                return was_connected, happening
            if isinstance(happening, Received):
                listener.received(happening)
            else:
                was_connected = True
                listener.connected(self._connection)
        return was_connected, _Lost("stopped", 0)
