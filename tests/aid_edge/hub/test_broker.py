"""The brokers as they run in the field: real processes, real certificates."""

from __future__ import annotations

import datetime as dt
import os
import queue
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import msgspec
import pytest

from aid_edge.catalogue.create import create_home
from aid_edge.errors import BrokerError, UsageError
from aid_edge.home import Home
from aid_edge.hub.broker.address import choose_port, free_port, remember_port
from aid_edge.hub.broker.choice import BrokerOptions, ReadyBroker, kind_of, ready_broker
from aid_edge.hub.broker.mosquitto import find_mosquitto
from aid_edge.hub.mqtt import HubConnection, Received, endpoint_of
from device_agent.contract.messages import encode
from device_agent.contract.topics import DELIVERY, UP, Channel, subscription, topic
from tests.aid_edge.hub.conftest import FLEET
from tests.support.contract_examples import MESSAGES
from tests.support.simulated_device import (
    WAIT_S,
    Identity,
    SimulatedDevice,
    issue,
    wait_for,
)

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")
LOOPBACK = "127.0.0.1"


@pytest.fixture
def mosquitto(home: Home) -> Iterator[ReadyBroker]:
    if find_mosquitto() is None:
        pytest.skip("Mosquitto is not installed")
    with ready_broker(home, BrokerOptions("mosquitto", port=0)) as broker:
        yield broker


@pytest.fixture
def embedded(home: Home) -> Iterator[ReadyBroker]:
    pytest.importorskip("iotcore", reason="the embedded broker (iotcore) is not installed")
    with ready_broker(home, BrokerOptions("embedded", port=0)) as broker:
        yield broker


class Hub:
    """The hub's end of a broker."""

    def __init__(self, broker: ReadyBroker) -> None:
        self.received: queue.Queue[Received] = queue.Queue()
        self.connections = 0
        self.connection = HubConnection(
            broker.address,
            FLEET,
            [(subscription(FLEET, channel), DELIVERY[channel].qos) for channel in UP],
            on_message=self.received.put,
            on_connected=self._connected,
        )

    def _connected(self) -> None:
        self.connections += 1

    def __enter__(self) -> Self:
        self.connection.start()
        self.connection.wait_until_up(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def next(self) -> Received:
        return self.received.get(timeout=WAIT_S)

    def tell(self, device: str, channel: Channel, payload: bytes) -> None:
        sent = self.connection.publish(device, channel, payload)
        assert sent is not None
        assert sent.wait(WAIT_S)


def _round_trip(hub: Hub, device: SimulatedDevice) -> None:
    device.send(MESSAGES["telemetry"], Channel.TELEMETRY)
    received = hub.next()
    assert received.topic == topic(FLEET, device.device, Channel.TELEMETRY)
    assert received.payload == encode(MESSAGES["telemetry"])
    assert not received.is_copy
    hub.tell(device.device, Channel.ACK, encode(MESSAGES["ack"]))
    assert device.ack() == MESSAGES["ack"]


def test_mosquitto_carries_both_ways_and_keeps_what_is_retained(
    mosquitto: ReadyBroker, home: Home, tmp_path: Path
) -> None:
    """M-2.3-3: desired state is retained, an acknowledgement is not."""
    identity = issue(home, "cam-1", tmp_path / "ids")
    with Hub(mosquitto) as hub:
        hub.tell("cam-1", Channel.DESIRED, b'{"retained": true}')
        hub.tell("cam-1", Channel.ACK, b'{"gone": true}')
        with SimulatedDevice(mosquitto.url, FLEET, identity) as device:
            assert device.inbox[Channel.DESIRED].get(timeout=WAIT_S) == b'{"retained": true}'
            _round_trip(hub, device)


def test_device_reaches_only_its_own_topics(
    mosquitto: ReadyBroker, home: Home, tmp_path: Path
) -> None:
    """M-1.1-3: writing, and reading, in the name of another device does nothing."""
    one = issue(home, "one", tmp_path / "ids")
    two = issue(home, "two", tmp_path / "ids")
    with (
        Hub(mosquitto) as hub,
        SimulatedDevice(mosquitto.url, FLEET, one) as thief,
        SimulatedDevice(mosquitto.url, FLEET, two) as victim,
    ):
        thief.subscribe(topic(FLEET, "two", Channel.ACK))
        thief.subscribe("aid/v1/#")
        for forged in (
            topic(FLEET, "two", Channel.TELEMETRY),
            topic(FLEET, "one", Channel.DESIRED),
            topic("other-fleet", "one", Channel.TELEMETRY),
        ):
            thief.publish(forged, b"forged", Channel.TELEMETRY)
        hub.tell("two", Channel.ACK, encode(MESSAGES["ack"]))
        assert victim.ack() == MESSAGES["ack"]
        # Messages of one connection keep their order: what was forged would have come before.
        _round_trip(hub, thief)
        assert hub.received.empty()
        assert thief.strays == []


def test_name_that_a_client_claims_does_not_count(
    mosquitto: ReadyBroker, home: Home, tmp_path: Path
) -> None:
    """M-1.1-3: the certificate says who it is, whatever client id it asks for."""
    own = issue(home, "one", tmp_path / "ids")
    claimed = Identity("two", own.ca, own.certificate, own.key)
    with (
        Hub(mosquitto) as hub,
        SimulatedDevice(mosquitto.url, FLEET, claimed) as liar,
        SimulatedDevice(mosquitto.url, FLEET, issue(home, "two", tmp_path / "ids")) as two,
    ):
        liar.publish(topic(FLEET, "two", Channel.TELEMETRY), b"forged", Channel.TELEMETRY)
        _round_trip(hub, two)
        assert hub.received.empty()


def test_client_without_certificate_is_refused(
    mosquitto: ReadyBroker, home: Home, tmp_path: Path
) -> None:
    """M-1.1-3."""
    ca = issue(home, "one", tmp_path / "ids").ca
    nobody = SimulatedDevice(mosquitto.url, FLEET, Identity("one", ca))
    with pytest.raises((OSError, ConnectionError)), nobody:
        pass


def test_client_of_another_fleet_is_refused(
    mosquitto: ReadyBroker, home: Home, tmp_path: Path
) -> None:
    """M-1.1-3: a certificate of another authority is none."""
    other = create_home(tmp_path / "other", FLEET, now=dt.datetime.now(dt.UTC))
    foreign = issue(other, "one", tmp_path / "foreign")
    ours = issue(home, "one", tmp_path / "ids")
    mixed = SimulatedDevice(
        mosquitto.url, FLEET, Identity("one", ours.ca, foreign.certificate, foreign.key)
    )
    with pytest.raises((OSError, ConnectionError)), mixed:
        pass


def test_mosquitto_that_dies_is_started_again(
    mosquitto: ReadyBroker, home: Home, tmp_path: Path
) -> None:
    process = msgspec.json.decode((home.hub / "broker" / "process.json").read_bytes())
    identity = issue(home, "cam-1", tmp_path / "ids")
    with Hub(mosquitto) as hub:
        os.kill(process["pid"], signal.SIGKILL)
        wait_for("the hub to be back", lambda: hub.connections == 2)
        with SimulatedDevice(mosquitto.url, FLEET, identity) as device:
            _round_trip(hub, device)
    assert mosquitto.process is not None
    assert mosquitto.process.restarts == 1


@needs_mosquitto
def test_mosquitto_ends_with_the_hub_and_keeps_its_port(home: Home) -> None:
    with ready_broker(home, BrokerOptions("mosquitto", port=0)) as broker:
        _, port, _ = endpoint_of(broker.url)
    assert free_port(LOOPBACK, port) == port
    with ready_broker(home, BrokerOptions("mosquitto")) as again:
        assert endpoint_of(again.url)[1] == port


@needs_mosquitto
def test_mosquitto_left_by_a_killed_hub_is_ended(home: Home) -> None:
    code = (
        "import sys; from pathlib import Path; from aid_edge.home import open_home;"
        "from aid_edge.hub.broker.choice import BrokerOptions, ready_broker;"
        "home = open_home(Path(sys.argv[1]))\n"
        "with ready_broker(home, BrokerOptions('mosquitto', port=0)) as b:\n"
        "    print(b.url, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(home.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as hub:
        assert hub.stdout is not None
        _, port, _ = endpoint_of(hub.stdout.readline().decode().strip())
        hub.kill()
    with pytest.raises(OSError, match="in use"):
        free_port(LOOPBACK, port)
    with ready_broker(home, BrokerOptions("mosquitto")) as again:
        assert endpoint_of(again.url)[1] == port


def test_files_of_mosquitto_are_private(mosquitto: ReadyBroker, home: Home) -> None:
    process = msgspec.json.decode((home.hub / "broker" / "process.json").read_bytes())
    config = Path(process["config"])
    assert stat.S_IMODE(config.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((config.parent / "server.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((home.hub / "client.key").stat().st_mode) == 0o600
    if os.geteuid() == 0:
        uid = next(
            line.split()[1]
            for line in Path(f"/proc/{process['pid']}/status").read_text().splitlines()
            if line.startswith("Uid:")
        )
        assert uid != "0"


def test_embedded_broker_carries_both_ways_and_says_what_it_lacks(embedded: ReadyBroker) -> None:
    assert embedded.url.startswith("mqtt://127.0.0.1:")
    assert any("no TLS" in lack for lack in embedded.lacks)
    with Hub(embedded) as hub:
        hub.tell("cam-1", Channel.DESIRED, b'{"retained": true}')
        with SimulatedDevice(embedded.url, FLEET, Identity("cam-1")) as device:
            assert device.inbox[Channel.DESIRED].get(timeout=WAIT_S) == b'{"retained": true}'
            _round_trip(hub, device)


def test_external_broker_is_used_as_it_is(mosquitto: ReadyBroker, home: Home) -> None:
    with ready_broker(home, BrokerOptions(mosquitto.url)) as external:
        assert (external.kind, external.process) == ("external", None)
        # As the hub of the same name: the broker lets the newest connection have it.
        with Hub(external) as hub:
            assert hub.connection.is_up


def test_broker_that_is_not_there_is_a_clear_error(home: Home) -> None:
    port = free_port(LOOPBACK)
    with ready_broker(home, BrokerOptions(f"mqtt://{LOOPBACK}:{port}")) as broker:
        hub = Hub(broker)
        hub.connection.start()
        try:
            with pytest.raises(BrokerError, match=f"{port}: no connection") as missing:
                hub.connection.wait_until_up(1.5)
            assert "refused" in missing.value.cause
        finally:
            hub.connection.close()


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://broker.example:1883",
        "http://127.0.0.1",
        "mqtts://",
        "mqtts://a:b@c",
        "mqtt://127.0.0.1:x",
    ],
)
def test_unusable_address_is_refused(url: str) -> None:
    with pytest.raises(BrokerError):
        kind_of(url)


def test_unknown_broker_is_refused() -> None:
    with pytest.raises(UsageError, match="rabbit"):
        kind_of("rabbit")


def test_port_that_is_taken_is_refused(home: Home) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(BrokerError, match=str(port)),
            ready_broker(home, BrokerOptions("auto", port=port)),
        ):
            pass


def test_port_of_the_last_time_is_kept(tmp_path: Path) -> None:
    remember_port(tmp_path, 12345)
    assert choose_port(tmp_path, LOOPBACK, None) == 12345
    assert choose_port(tmp_path, LOOPBACK, 0) != 12345
