"""Fetching an artifact over MQTT, through the hub, against plain HTTP on loopback."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from device_agent.contract import topics
from device_agent.contract.chunk import decode_chunk
from device_agent.contract.manifest import Blob
from device_agent.contract.messages import (
    BlobRefused,
    BlobRequest,
    Death,
    MetadataReply,
    MetadataRequest,
    decode,
    encode,
)
from device_agent.contract.topics import Channel
from device_agent.mqtt import MqttSettings, MqttTransport
from device_agent.transfer.fetch import FetchLimits, Watch, fetch_blob, file_digest
from device_agent.transfer.link import TransferLink
from device_agent.transfer.store import BlobSpec
from device_agent.transport import Loss, Publication, Received, Subscription, Transport
from examples.local_fleet import Device, LocalFleet
from tests.bench.figures import Bench, Figure, alternate, median

ROUNDS = 9
CONNECT_S = 30.0
READ_BYTES = 2**20
WINDOW_CHUNKS = 16


class _Ear:
    """Passes what comes on the device's topics to the link."""

    def __init__(self, fleet: str, device: str, link: TransferLink) -> None:
        self._fleet, self._device, self._link = fleet, device, link
        self.up = threading.Event()

    def will(self, connection: int) -> Publication:
        death = Death(boot_id="0" * 32, connection=connection)
        return Publication(topics.topic(self._fleet, self._device, Channel.CONN), encode(death))

    def connected(self, _connection: int) -> None:
        self.up.set()

    def disconnected(self, loss: Loss) -> None:
        self.up.clear()

    def received(self, message: Received) -> None:
        if message.topic.endswith(Channel.BLOB_CHUNK):
            self._link.on_chunk(decode_chunk(message.payload))
            return
        reply = decode(message.payload)
        if isinstance(reply, BlobRefused | MetadataReply):
            self._link.on_reply(reply)


def transfer(bench: Bench, fleet: LocalFleet, device: Device, blob: Blob) -> None:
    """Fetch ``blob`` of the catalogue both ways, in turn, into a file, digest checked.

    The device's own agent must not run: its identity is used.
    """
    spec = BlobSpec(blob.digest, blob.size, blob.chunks)
    source = fleet.home / "catalogue" / "blobs" / "sha256" / blob.digest.removeprefix("sha256:")
    to = fleet.folder / "fetched"
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(_Quiet, directory=str(source.parent))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    link, transport, ear = _connect(device)
    try:
        with transport:
            if not ear.up.wait(CONNECT_S):
                raise TimeoutError("no connection to the broker")
            ours, theirs = alternate(
                lambda: _over_mqtt(link, spec, to),
                lambda: _over_http(server.server_address[1], source.name, to, blob.digest),
                ROUNDS,
            )
    finally:
        server.shutdown()
        server.server_close()
        link.close()
        to.unlink(missing_ok=True)
    megabytes = blob.size / 1e6
    bench.add(
        Figure(
            f"fetch of {megabytes:.1f} MB: throughput over MQTT",
            megabytes / median(ours),
            megabytes / median(theirs),
            "MB/s",
            "http.server on loopback",
            "at least 0.5x",
            ROUNDS,
        )
    )


class _Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return


def _connect(device: Device) -> tuple[TransferLink, Transport, _Ear]:
    import tomllib

    config = tomllib.loads((device.home / "config.toml").read_text())
    fleet, name = config["fleet"], config["device"]

    def send(request: BlobRequest | MetadataRequest) -> None:
        transport.publish(
            Publication(topics.topic(fleet, name, Channel.BLOB_REQUEST), encode(request))
        )

    link = TransferLink(send)
    ear = _Ear(fleet, name, link)
    identity = device.home / "identity"
    transport = MqttTransport(
        MqttSettings(
            url=config["broker"]["url"],
            client_id=name,
            ca=identity / "ca.pem",
            certificate=identity / "device.pem",
            key=identity / "device.key",
        )
    )
    channels: Sequence[tuple[Channel, int]] = ((Channel.BLOB_REPLY, 1), (Channel.BLOB_CHUNK, 0))
    transport.listen(
        ear, [Subscription(topics.topic(fleet, name, c), qos=qos) for c, qos in channels]
    )
    return link, transport, ear


def _over_mqtt(link: TransferLink, spec: BlobSpec, to: Path) -> float:
    to.unlink(missing_ok=True)
    began_s = time.perf_counter()
    fetch_blob(link, spec, to, FetchLimits(WINDOW_CHUNKS, CONNECT_S), Watch())
    found = file_digest(to)
    seconds = time.perf_counter() - began_s
    if found != spec.digest:
        raise ValueError(f"fetched {found} instead of {spec.digest}")
    return seconds


def _over_http(port: int, name: str, to: Path, digest: str) -> float:
    began_s = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", f"/{name}")
    reply = connection.getresponse()
    found = hashlib.sha256()
    with to.open("wb") as file:
        while data := reply.read(READ_BYTES):
            file.write(data)
            found.update(data)
    connection.close()
    seconds = time.perf_counter() - began_s
    if f"sha256:{found.hexdigest()}" != digest:
        raise ValueError("HTTP brought other bytes")
    return seconds
