"""The transport against a real broker."""

from __future__ import annotations

import random
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt as paho_package
import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from device_agent import mqtt
from device_agent.errors import TransportError
from device_agent.mqtt import MqttSettings, MqttTransport, endpoint_of
from device_agent.transport import Backoff, Loss, Publication, Received, Subscription
from tests.support.agent_doubles import wait_for
from tests.support.mosquitto import Mosquitto, free_port


class Heard:
    """A listener that writes down what it is told."""

    def __init__(self) -> None:
        self.connections: list[int] = []
        self.losses: list[Loss] = []
        self.messages: list[Received] = []
        self.threads: set[str] = set()

    def will(self, connection: int) -> Publication:
        return Publication("conn", f"death {connection}".encode(), qos=1, retain=True)

    def connected(self, connection: int) -> None:
        self.threads.add(threading.current_thread().name)
        self.connections.append(connection)

    def disconnected(self, loss: Loss) -> None:
        self.threads.add(threading.current_thread().name)
        self.losses.append(loss)

    def received(self, message: Received) -> None:
        self.threads.add(threading.current_thread().name)
        self.messages.append(message)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path / "broker") as running:
        yield running


def open_transport(url: str, heard: Heard, client_id: str = "camera-01") -> MqttTransport:
    made = MqttTransport(
        MqttSettings(url=url, client_id=client_id, keepalive_s=5, reconnect_max_s=0.2),
        rng=random.Random(1),
    )
    made.listen(heard, [Subscription("down", 1), Subscription("chunk", 0)])
    return made


def test_messages_travel_both_ways_on_one_thread(broker: Mosquitto) -> None:
    heard = Heard()
    with open_transport(broker.url, heard) as transport:
        wait_for("a connection", lambda: heard.connections == [1])
        assert transport.is_connected
        transport.publish(Publication("down", b"one", qos=1), wait_s=5)
        transport.publish(Publication("chunk", b"two" * 50_000, qos=0, expiry_s=30))
        wait_for("both", lambda: len(heard.messages) == 2)
    assert {(m.topic, m.payload) for m in heard.messages} == {
        ("down", b"one"),
        ("chunk", b"two" * 50_000),
    }
    assert heard.threads == {"mqtt"}
    assert not transport.is_connected
    with pytest.raises(TransportError, match="not connected"):
        transport.publish(Publication("down", b"late"))


def test_socket_sends_without_delay(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    with open_transport(broker.url, heard) as transport:
        wait_for("a connection", lambda: heard.connections == [1])
        session = transport._session
        assert session is not None
        sock = session._client.socket()
        assert isinstance(sock, socket.socket)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_broker_that_goes_away_is_found_again_under_the_next_number(broker: Mosquitto) -> None:
    """M-4.1-1: the number is one higher with every connect; attempts that fail do not count."""
    heard = Heard()
    with open_transport(broker.url, heard) as transport:
        wait_for("a connection", lambda: len(heard.connections) == 1)
        broker.stop()
        wait_for("the loss", lambda: bool(heard.losses) and heard.losses[0].was_connected)
        wait_for("failed attempts", lambda: len(heard.losses) >= 3)
        assert not any(loss.was_connected for loss in heard.losses[1:])
        with pytest.raises(TransportError):
            transport.publish(Publication("down", b"x"))
        broker.start()
        wait_for("another connection", lambda: len(heard.connections) == 2)
        assert heard.connections == [1, 2]


def test_absent_broker_is_told_and_tried_again() -> None:
    heard = Heard()
    port = free_port()
    with open_transport(f"mqtt://127.0.0.1:{port}", heard):
        wait_for("attempts", lambda: len(heard.losses) >= 3)
    assert "refused" in heard.losses[0].reason
    assert all(0 <= loss.retry_in_s <= 0.2 for loss in heard.losses)


def test_server_that_is_no_broker_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        heard = Heard()
        stop = threading.Event()

        def hang_up() -> None:
            server.settimeout(0.1)
            while not stop.is_set():
                try:
                    server.accept()[0].close()
                except TimeoutError:
                    continue

        thread = threading.Thread(target=hang_up)
        thread.start()
        with open_transport(f"mqtt://127.0.0.1:{server.getsockname()[1]}", heard):
            wait_for("attempts", lambda: len(heard.losses) >= 2)
        stop.set()
        thread.join()
    assert not heard.connections


def test_broker_that_refuses_says_why(tmp_path: Path) -> None:
    heard = Heard()
    with (
        Mosquitto(tmp_path / "b", extra=("allow_anonymous false",)) as strict,
        open_transport(strict.url, heard),
    ):
        wait_for("attempts", lambda: len(heard.losses) >= 2)
    assert "Not authorized" in heard.losses[0].reason
    assert not heard.losses[0].was_connected


def _watch(broker: Mosquitto, topic: str) -> tuple[paho.Client, list[tuple[bytes, bool]]]:
    seen: list[tuple[bytes, bool]] = []
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_message = lambda _c, _d, m: seen.append((bytes(m.payload), m.retain))
    ready = threading.Event()
    client.on_subscribe = lambda *_: ready.set()
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    client.subscribe(topic, 1)
    assert ready.wait(10)
    return client, seen


def _close(client: paho.Client) -> None:
    client.disconnect()
    client.loop_stop()


def test_will_is_the_death_of_this_very_connection(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M-4.1-2: retained, with the number of the connection that died, after its delay."""
    monkeypatch.setattr(mqtt, "WILL_DELAY_S", 1)
    heard = Heard()
    watcher, seen = _watch(broker, "conn")
    transport = open_transport(broker.url, heard)
    with transport:
        wait_for("a connection", lambda: heard.connections == [1])
        _cut(transport)
        wait_for("a second connection", lambda: len(heard.connections) == 2)
        number = heard.connections[1]
        # The session went on within the delay: nobody died.
        assert seen == []
        transport._backoff.next_s = lambda: 60.0  # type: ignore[method-assign]
        _cut(transport)
        wait_for("the death", lambda: bool(seen))
    assert seen == [(f"death {number}".encode(), False)]
    late, retained = _watch(broker, "conn")
    wait_for("the retained death", lambda: retained == [(f"death {number}".encode(), True)])
    for client in (watcher, late):
        _close(client)


def _cut(transport: MqttTransport) -> None:
    """Cut the connection below MQTT."""
    session = transport._session
    assert session is not None
    sock: Any = session._client.socket()
    sock.shutdown(socket.SHUT_RDWR)


def test_clean_end_publishes_no_will(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "WILL_DELAY_S", 0)
    heard = Heard()
    watcher, seen = _watch(broker, "#")
    with open_transport(broker.url, heard) as transport:
        wait_for("a connection", lambda: heard.connections == [1])
        transport.publish(Publication("last", b"farewell"), wait_s=5)
    probe = Heard()
    with open_transport(broker.url, probe, "other") as transport:
        wait_for("a connection", lambda: probe.connections == [1])
        transport.publish(Publication("probe", b"x"), wait_s=5)
        wait_for("the probe", lambda: (b"x", False) in seen)
    assert [payload for payload, _ in seen] == [b"farewell", b"x"]
    _close(watcher)


def test_session_goes_on_over_a_flap(broker: Mosquitto) -> None:
    """M-3.5-2: what comes at QoS 1 while the connection is away is delivered after it."""
    heard = Heard()
    transport = open_transport(broker.url, heard)
    with transport:
        wait_for("a connection", lambda: heard.connections == [1])
        transport._backoff.next_s = lambda: 1.0  # type: ignore[method-assign]
        _cut(transport)
        wait_for("the loss", lambda: bool(heard.losses))
        sender, _ = _watch(broker, "nothing")
        sender.publish("down", b"meanwhile", qos=1).wait_for_publish(5)
        wait_for("the message", lambda: [m.payload for m in heard.messages] == [b"meanwhile"])
        _close(sender)


def test_session_expires_in_300_seconds(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    """M-3.5-2, M-4.1-2: what is asked of the broker, as it goes over the wire."""
    asked: list[tuple[Properties, bool]] = []
    wills: list[tuple[int, bool, Properties]] = []

    class Spying(paho.Client):
        def connect(self, *args: Any, **options: Any) -> Any:
            asked.append((options["properties"], options["clean_start"]))
            return super().connect(*args, **options)

        def will_set(
            self, topic: str, payload: Any, qos: int, retain: bool, *, properties: Any
        ) -> None:
            wills.append((qos, retain, properties))
            super().will_set(topic, payload, qos, retain, properties=properties)

    monkeypatch.setattr(mqtt.paho, "Client", Spying)
    heard = Heard()
    with open_transport(broker.url, heard):
        wait_for("a connection", lambda: heard.connections == [1])
    properties, clean_start = asked[0]
    assert (properties.SessionExpiryInterval, clean_start) == (300, False)
    qos, retain, will = wills[0]
    assert (qos, retain, will.WillDelayInterval) == (1, True, 30)
    assert will.packetType == PacketTypes.WILLMESSAGE


def _take_over(server: socket.socket) -> None:
    """Be a broker that accepts a client, and then says that another took its session over."""
    with server.accept()[0] as connection:
        connection.settimeout(10)
        assert connection.recv(4096)[0] == 0x10  # CONNECT
        connection.sendall(bytes([0x20, 3, 0, 0, 0]))  # CONNACK: success, no properties
        subscribe = connection.recv(4096)
        assert subscribe[0] == 0x82
        connection.sendall(bytes([0x90, 5, *subscribe[2:4], 0, 1, 0]))  # SUBACK: QoS 1 and 0
        connection.sendall(bytes([0xE0, 2, 0x8E, 0]))  # DISCONNECT: session taken over
        connection.recv(4096)


def test_identity_that_is_used_twice_is_told_and_waited_for_longer() -> None:
    heard = Heard()
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"mqtt://127.0.0.1:{server.getsockname()[1]}"
        transport = open_transport(url, heard)
        transport._taken_over = Backoff(cap_s=600, base_s=5, floor=0.5, rng=random.Random(1))
        with transport:
            _take_over(server)
            wait_for("the loss", lambda: bool(heard.losses))
    assert heard.connections == [1]
    assert heard.losses[0].is_taken_over
    assert "taken over" in heard.losses[0].reason
    assert 2.5 <= heard.losses[0].retry_in_s <= 5.0


def test_two_with_one_identity_take_turns_and_are_told(broker: Mosquitto) -> None:
    first, second = Heard(), Heard()
    with open_transport(broker.url, first):
        wait_for("the first", lambda: first.connections == [1])
        with open_transport(broker.url, second):
            wait_for("the second", lambda: len(second.connections) >= 1)
            wait_for("the first's loss", lambda: bool(first.losses))
            assert first.losses[0].was_connected


def test_stable_connection_resets_the_backoff(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M-3.5-1: begins anew after 60 s of a stable connection."""
    assert mqtt.STABLE_S == 60.0
    monkeypatch.setattr(mqtt, "STABLE_S", 0.0)
    heard = Heard()
    transport = open_transport(broker.url, heard)
    for _ in range(8):
        transport._backoff.next_s()
    with transport:
        wait_for("a connection", lambda: heard.connections == [1])
        _cut(transport)
        wait_for("the loss", lambda: bool(heard.losses))
    assert transport._backoff._attempts == 1


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mqtt://example.org:1883", "in the clear"),
        ("mqtt://10.0.0.1:1883", "in the clear"),
        ("http://127.0.0.1:1883", "is not one"),
        ("mqtts://", "is not one"),
        ("mqtts://host:port", "broker url"),
        ("mqtts://user:secret@host:8883", "must not hold"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused(url: str, says: str) -> None:
    with pytest.raises(TransportError, match=says) as refused:
        endpoint_of(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.8.9.10"])
def test_loopback_needs_no_tls(host: str) -> None:
    assert not endpoint_of(f"mqtt://{host}:1883").is_tls


def test_missing_identity_is_told_and_waited_for(tmp_path: Path) -> None:
    heard = Heard()
    settings = MqttSettings(
        url="mqtts://127.0.0.1:1",
        client_id="c",
        ca=tmp_path / "ca.pem",
        certificate=tmp_path / "device.pem",
        key=tmp_path / "device.key",
        reconnect_max_s=0.1,
    )
    transport = MqttTransport(settings)
    transport.listen(heard, [Subscription("down")])
    with transport:
        wait_for("attempts", lambda: len(heard.losses) >= 2)
    assert "ca.pem is missing" in heard.losses[0].reason


def test_every_error_of_paho_is_ours() -> None:
    """A new public error of the library must be mapped in one place."""
    found = {
        value
        for module in (paho_package, paho)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert found
    for error in (*found, OSError, ssl.SSLError, TimeoutError, ValueError):
        with pytest.raises(TransportError), mqtt._ours(endpoint_of("mqtt://localhost:1")):
            raise error("made by the test")


def test_transport_without_a_listener_is_not_entered() -> None:
    transport = MqttTransport(MqttSettings(url="mqtt://localhost:1883", client_id="c"))
    with pytest.raises(TransportError, match="nobody listens"), transport:
        pass
