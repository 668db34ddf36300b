"""A device on the wire, without an agent: paho and the contract's messages."""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import paho.mqtt.client as paho

from aid_edge.home import Home
from aid_edge.identity import Authority, hub_files
from device_agent.contract.chunk import Chunk, decode_chunk
from device_agent.contract.desired import Desired, decode_desired, decode_envelope
from device_agent.contract.messages import (
    Ack,
    AnyMessage,
    Birth,
    Death,
    Event,
    Reported,
    SlotReport,
    decode,
    encode,
)
from device_agent.contract.topics import DELIVERY, DOWN, Channel, topic

WAIT_S = 20.0
BOOT_ID = "0" * 31 + "1"
MACHINE_ID = "a" * 32


@dataclass(frozen=True)
class Identity:
    """What a device connects with; without certificate over a plain connection."""

    device: str
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


def issue(home: Home, device: str, folder: Path) -> Identity:
    """Return an identity of the fleet for ``device``, its files in ``folder``."""
    private, public = Authority.open(home.keys, home.hub).issue_device(device)
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = folder / f"{device}.pem", folder / f"{device}.key"
    certificate.write_bytes(public)
    key.write_bytes(private)
    return Identity(device, hub_files(home.hub).ca, certificate, key)


class SimulatedDevice:
    """One connection of a device; use as a context manager."""

    def __init__(self, url: str, fleet: str, identity: Identity) -> None:
        self.fleet, self.device = fleet, identity.device
        self.inbox: dict[Channel, queue.Queue[bytes]] = {c: queue.Queue() for c in DOWN}
        self.strays: list[str] = []
        self._url = urlsplit(url)
        self._up = threading.Event()
        self.refusal = ""
        client = self._client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=identity.device,
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
        )
        client.on_connect = self._connected
        client.on_subscribe = lambda *_: self._up.set()
        client.on_message = self._message
        client.on_disconnect = self._disconnected
        client.on_socket_open = lambda _c, _d, s: s.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )
        if self._url.scheme == "mqtts":
            context = ssl.create_default_context(cafile=str(identity.ca))
            if identity.certificate and identity.key:
                context.load_cert_chain(identity.certificate, identity.key)
            client.tls_set_context(context)

    def __enter__(self) -> Self:
        death = Death(boot_id=BOOT_ID, connection=1)
        self._client.will_set(topic(self.fleet, self.device, Channel.CONN), encode(death), 1, True)
        self._client.connect(str(self._url.hostname), self._url.port or 1883)
        self._client.loop_start()
        if not self._up.wait(WAIT_S) or self.refusal:
            self.__exit__()
            raise ConnectionError(self.refusal or "not connected")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def subscribe(self, name: str) -> None:
        """Subscribe any topic filter; returns when the broker answered."""
        self._up.clear()
        self._client.subscribe(name, 1)
        assert self._up.wait(WAIT_S)

    def send(self, message: AnyMessage, channel: Channel) -> None:
        """Publish a message as the contract says."""
        self.publish(topic(self.fleet, self.device, channel), encode(message), channel)

    def publish(self, name: str, payload: bytes, channel: Channel) -> None:
        """Publish bytes anywhere, with the delivery of ``channel``."""
        how = DELIVERY[channel]
        self._client.publish(name, payload, how.qos, how.retain).wait_for_publish(WAIT_S)

    def birth(self, **changes: Any) -> None:
        """Say that we connected."""
        facts: dict[str, Any] = {
            "boot_id": BOOT_ID,
            "connection": 1,
            "machine_id": MACHINE_ID,
            "agent_version": "0.1.0",
            "profile": "generic-x86_64",
        }
        self.send(Birth(**{**facts, **changes}), Channel.CONN)

    def run_desired(self, desired: Desired, *, state: str = "active", reason: str = "") -> None:
        """Report what an agent reports that carried out ``desired``, or failed to."""
        release = desired.slots[0].release if state == "active" else None
        slot = SlotReport(slot="active", state=state, release=release, reason=reason)  # type: ignore[arg-type]
        self.send(
            Reported(boot_id=BOOT_ID, revision=desired.revision, slots=(slot,)), Channel.REPORTED
        )

    def desired(self) -> Desired:
        """Wait for the next desired state."""
        return decode_desired(
            decode_envelope(self.inbox[Channel.DESIRED].get(timeout=WAIT_S)).payload
        )

    def ack(self) -> Ack:
        """Wait for the next acknowledgement."""
        message = decode(self.inbox[Channel.ACK].get(timeout=WAIT_S))
        assert isinstance(message, Ack)
        return message

    def chunk(self) -> Chunk:
        """Wait for the next chunk."""
        return decode_chunk(self.inbox[Channel.BLOB_CHUNK].get(timeout=WAIT_S))

    def reply(self) -> AnyMessage:
        """Wait for the next reply to a request."""
        return decode(self.inbox[Channel.BLOB_REPLY].get(timeout=WAIT_S))

    def _connected(self, client: paho.Client, _d: Any, _f: Any, code: Any, _p: Any) -> None:
        if code.is_failure:
            self.refusal = str(code)
            return
        client.subscribe([(topic(self.fleet, self.device, c), 1) for c in DOWN])

    def _disconnected(self, _c: paho.Client, _d: Any, _f: Any, code: Any, _p: Any) -> None:
        if code.is_failure:
            self.refusal = self.refusal or str(code)
            self._up.set()

    def _message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        for channel, inbox in self.inbox.items():
            if message.topic == topic(self.fleet, self.device, channel):
                inbox.put(bytes(message.payload))
                return
        self.strays.append(message.topic)


def event(seq: int, *, floor: int = 1, boot_id: str = BOOT_ID, detail: str = "") -> Event:
    """Return a record."""
    return Event(
        boot_id=boot_id, seq=seq, floor=floor, at_unix_s=time.time(), kind="agent", detail=detail
    )


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Return once ``condition`` holds, or fail."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.02)
