"""Whole hubs: as the verb serves them, in a process of their own."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from aid_edge.errors import BrokerError, HubError
from aid_edge.home import Home
from aid_edge.hub import auth, serve
from aid_edge.hub.broker.address import free_port
from aid_edge.hub.broker.choice import BrokerOptions
from aid_edge.hub.broker.mosquitto import find_mosquitto
from aid_edge.hub.rows import DeviceFilter
from aid_edge.hub.serve import HubOptions, RunningHub, running_hub
from aid_edge.identity import hub_files, read_api_token
from device_agent.contract.messages import (
    BlobRequest,
    MetadataReply,
    MetadataRequest,
    missing_mask,
)
from device_agent.contract.names import digest_of
from device_agent.contract.topics import Channel
from tests.aid_edge.hub.conftest import FLEET
from tests.support.simulated_device import (
    WAIT_S,
    Identity,
    SimulatedDevice,
    event,
    issue,
    wait_for,
)

START_S = 60.0
Release = Callable[..., str]


def _options(kind: str) -> HubOptions:
    return HubOptions(BrokerOptions(kind, port=0), port=0)


@pytest.fixture(params=["mosquitto", "embedded"])
def hub(request: pytest.FixtureRequest, home: Home) -> Iterator[RunningHub]:
    if request.param == "mosquitto" and find_mosquitto() is None:
        pytest.skip("Mosquitto is not installed")
    if request.param == "embedded":
        pytest.importorskip("iotcore", reason="the embedded broker (iotcore) is not installed")
    with running_hub(home, _options(request.param)) as hub:
        yield hub


@contextmanager
def _process(home: Home, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "aid_edge.cli", "hub", "serve", "--home", str(home.path)]
    with subprocess.Popen(
        [*command, "--port", "0", "--broker-port", "0", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _wait_for_state(home: Home, process: subprocess.Popen[bytes]) -> dict[str, object]:
    path = home.hub / "hub.json"
    wait_for("hub.json", lambda: path.exists() or process.poll() is not None, START_S)
    found: dict[str, object] = json.loads(path.read_text())
    return found


def test_device_goes_the_whole_way_with_either_broker(
    hub: RunningHub, home: Home, tmp_path: Path, release: Release, registered: Callable[..., str]
) -> None:
    digest = release()
    registered("cam-1")
    is_tls = hub.broker.url.startswith("mqtts")
    identity = issue(home, "cam-1", tmp_path / "ids") if is_tls else Identity("cam-1")
    director = hub.services.director
    director.deploy(["cam-1"], "digits", "1.0.0", actor="test")
    with SimulatedDevice(hub.broker.url, FLEET, identity) as device:
        device.birth()
        desired = device.desired()
        assert desired.slots[0].release.digest == digest

        ask = MetadataRequest(request_id=1, path="timestamp.json", max_bytes=16384)
        device.send(ask, Channel.BLOB_REQUEST)
        reply = device.reply()
        assert isinstance(reply, MetadataReply)
        assert reply.data == (home.metadata / "timestamp.json").read_bytes()

        device.send(
            BlobRequest(request_id=2, digest=digest, first=0, missing=missing_mask(0, [0])),
            Channel.BLOB_REQUEST,
        )
        chunk = device.chunk()
        assert digest_of(bytes(chunk.data)) == digest

        device.send(event(1), Channel.EVENT)
        assert device.ack().seq == 1
        device.run_desired(desired)

        queries = hub.services.queries
        running = DeviceFilter(release="digits@1.0.0", status=("ok",))
        wait_for("the report", lambda: queries.device_ids(running) == ("cam-1",))
    assert hub.services.problems() == []


def test_second_hub_of_a_home_is_refused(home: Home) -> None:
    with (
        running_hub(home, _options("auto")),
        pytest.raises(HubError, match="runs already"),
        running_hub(home, _options("auto")),
    ):
        pass


def test_broker_that_is_not_there_ends_the_start_and_leaves_nothing(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "CONNECT_S", 1.0)
    before = set(threading.enumerate())
    url = f"mqtt://127.0.0.1:{free_port('127.0.0.1')}"
    with pytest.raises(BrokerError, match=url), running_hub(home, _options(url)):
        pass
    wait_for("all threads to end", lambda: set(threading.enumerate()) <= before)
    with running_hub(home, _options("auto")):
        pass


def test_port_that_is_taken_is_refused(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = HubOptions(BrokerOptions("auto", port=0), port=port)
        with pytest.raises(HubError, match=f"{port}.*in use"), running_hub(home, options):
            pass


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_hub_ends_cleanly_when_told(home: Home, how: signal.Signals) -> None:
    with _process(home) as process:
        state = _wait_for_state(home, process)
        assert state["pid"] == process.pid
        answer = httpx.get(f"{state['url']}/api/v1/health", trust_env=False, timeout=WAIT_S)
        assert answer.json()["status"] == "ok"
        assert httpx.get(f"{state['url']}/", trust_env=False).status_code == 200
        process.send_signal(how)
        assert process.wait(WAIT_S) == 0
    assert not (home.hub / "hub.json").exists()
    assert not (home.hub / "broker" / "process.json").exists()


def test_killed_hub_can_be_started_again(home: Home) -> None:
    with _process(home) as first:
        before = _wait_for_state(home, first)
        first.kill()
        first.wait()
    (home.hub / "hub.json").unlink()
    words = [sys.executable, "-m", "aid_edge.cli", "hub", "serve", "--home", str(home.path)]
    with subprocess.Popen(
        [*words, "--port", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as second:
        try:
            after = _wait_for_state(home, second)
            # Devices carry the broker's address: it must not move.
            assert after["broker_url"] == before["broker_url"]
        finally:
            second.send_signal(signal.SIGTERM)
            assert second.wait(WAIT_S) == 0


def test_api_on_a_network_speaks_tls(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests bind loopback only; the hub is made to take it for an address of a network.
    for module in (serve, auth):
        monkeypatch.setattr(module, "is_loopback", lambda _: False)
    with running_hub(home, _options("auto")) as hub:
        assert hub.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(hub_files(home.hub).ca))
        headers = {"Authorization": f"Bearer {read_api_token(home.hub)}"}
        with httpx.Client(base_url=hub.url, verify=context, trust_env=False) as client:
            assert client.get("/api/v1/devices").status_code == 401
            assert client.get("/api/v1/devices", headers=headers).status_code == 200


def test_records_survive_a_restart_of_the_hub_uncounted_twice(
    home: Home, tmp_path: Path, registered: Callable[..., str]
) -> None:
    if find_mosquitto() is None:
        pytest.skip("Mosquitto is not installed")
    registered("cam-1")
    identity = issue(home, "cam-1", tmp_path / "ids")
    for round_ in range(2):
        options = HubOptions(BrokerOptions("mosquitto", port=None if round_ else 0), port=0)
        with running_hub(home, options) as hub:
            with SimulatedDevice(hub.broker.url, FLEET, identity) as device:
                device.birth(connection=round_ + 1)
                device.send(event(1), Channel.EVENT)
                assert device.ack().seq == 1
            assert len(hub.services.queries.events("cam-1")) == 1
