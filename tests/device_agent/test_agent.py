"""A whole agent: real trust, real disk, real workers; the broker is in memory."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from device_agent.agent.core import Agent, agent_version
from device_agent.agent.home import AgentHome, ApiAddress, HomeInUseError
from device_agent.contract.chunk import Chunk, encode_chunk
from device_agent.contract.errors import ProfileError
from device_agent.contract.messages import (
    INITIAL_CREDIT_RECORDS,
    Ack,
    Birth,
    BlobRefused,
    Death,
    Event,
    Feedback,
    Telemetry,
    decode,
    encode,
)
from device_agent.contract.names import digest_of
from device_agent.contract.topics import DELIVERY, DOWN, UP, Channel, parse, topic
from device_agent.errors import StoreError
from tests.support.agent_doubles import MemoryTransport, wait_for
from tests.support.agent_world import (
    DEVICE,
    FLEET,
    AgentWorld,
    RunningAgent,
    make_agent_world,
)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> AgentWorld:
    return make_agent_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(pristine: AgentWorld, tmp_path: Path) -> AgentWorld:
    """A fresh agent's home for the same publisher."""
    import shutil

    path = tmp_path / "agent"
    shutil.copytree(pristine.agent_path, path)
    made = AgentWorld(pristine.home, path, pristine.good, pristine.better, pristine.bad)
    made.load_hub()
    return made


@pytest.fixture
def agent(world: AgentWorld) -> Iterator[RunningAgent]:
    running = RunningAgent(world)
    yield running
    running.stop()


def of_kind(agent: RunningAgent, kind: str) -> list[Event]:
    return [e for e in agent.said(Channel.EVENT) if e.kind == kind]


def test_release_is_deployed_served_judged_and_told(agent: RunningAgent) -> None:
    agent.connect()
    agent.deploy(agent.world.good, 1)
    release = agent.reported.slots[0].release
    assert release is not None
    assert (release.name, release.version) == ("tiny", "1.0.0")

    status, answer = agent.infer(0, 5, 1, 0)
    assert status == 200
    assert answer["parameters"]["label"] == "bee"

    said = {"inference_id": answer["parameters"]["inference_id"], "verdict": "wrong"}
    assert agent.ask("/v1/feedback", said | {"label": "ant"})[0] == 202
    wait_for("the feedback", lambda: bool(agent.said(Channel.FEEDBACK)))
    feedback = agent.said(Channel.FEEDBACK)[0]
    assert isinstance(feedback, Feedback)
    assert (feedback.predicted, feedback.label, feedback.release) == ("bee", "ant", release)

    def counted() -> int:
        windows = [w for t in agent.said(Channel.TELEMETRY) for w in t.windows]
        return sum(w.outcomes.ok for w in windows)

    wait_for("the count", lambda: counted() == 1)
    telemetry = agent.said(Channel.TELEMETRY)[-1]
    assert isinstance(telemetry, Telemetry)
    assert telemetry.memory_available_bytes > 0
    states = [e.state for e in of_kind(agent, "deployment")]
    assert "proving" in states
    assert states[-1] == "active"


def test_birth_after_every_connect_and_the_will_of_that_very_connection(
    agent: RunningAgent,
) -> None:
    """M-4.1-1, M-4.1-2, M-4.3-1."""
    agent.connect()
    agent.transport.drop()
    reports = len(agent.said(Channel.REPORTED))
    agent.connect()
    wait_for("the second report", lambda: len(agent.said(Channel.REPORTED)) > reports)
    births = [b for b in agent.said(Channel.CONN) if isinstance(b, Birth)]
    by_connection = {b.connection: b for b in births}
    assert sorted(by_connection) == [1, 2]
    assert {b.boot_id for b in births} == {births[0].boot_id}
    assert (births[0].seed_applied, births[0].profile) == ("bundle-7", "generic-x86_64")
    assert births[0].agent_version == agent_version()
    assert "onnx_runtime" in births[0].runtimes
    for number, will in enumerate(agent.transport.wills, start=1):
        assert will.topic == topic(FLEET, DEVICE, Channel.CONN)
        assert (will.qos, will.retain) == (1, True)
        assert decode(will.payload) == Death(boot_id=births[0].boot_id, connection=number)


def test_protections_are_tried_and_told_in_a_later_birth(agent: RunningAgent) -> None:
    agent.connect()
    wait_for("protections", lambda: bool(agent.said(Channel.CONN)[-1].protections), 60)
    births = agent.said(Channel.CONN)
    assert {b.connection for b in births} == {1}
    assert "memory-watchdog" in births[-1].protections


def test_clean_stop_says_farewell(world: AgentWorld) -> None:
    """M-4.1-3."""
    running = RunningAgent(world)
    running.connect()
    running.stop()
    last = running.said(Channel.CONN)[-1]
    assert isinstance(last, Death)
    assert (last.clean, last.connection) == (True, 1)
    assert running.home.api_address() is None


def test_everything_goes_out_with_the_quality_of_its_channel(agent: RunningAgent) -> None:
    """M-2.3-2."""
    agent.connect()
    agent.deploy(agent.world.good, 1)
    wait_for("telemetry", lambda: bool(agent.said(Channel.TELEMETRY)))
    seen = set()
    for publication in agent.transport.published:
        fleet, device, channel = parse(publication.topic)
        assert (fleet, device) == (FLEET, DEVICE)
        assert channel in UP
        delivery = DELIVERY[channel]
        assert (publication.qos, publication.retain) == (delivery.qos, delivery.retain)
        seen.add(channel)
    assert seen >= {Channel.CONN, Channel.REPORTED, Channel.EVENT, Channel.BLOB_REQUEST}
    assert {s.topic for s in agent.transport.subscriptions} == {
        topic(FLEET, DEVICE, channel) for channel in DOWN
    }
    assert {s.qos for s in agent.transport.subscriptions} == {0, 1}


def test_messages_that_are_not_of_the_contract_are_counted_and_end_nothing(
    agent: RunningAgent,
) -> None:
    """M-3.3-4."""
    agent.connect()
    digest = digest_of(b"x")
    odd = [
        (Channel.ACK, b"{"),
        (Channel.ACK, b'{"type": "ack", "v": 99, "boot_id": "", "seq": 1, "credit": 1}'),
        (Channel.ACK, b'{"type": "party", "v": 1}'),
        (Channel.ACK, encode(Death(boot_id="0" * 32, connection=1))),
        (Channel.ACK, b"{" + b" " * 70_000),
        (Channel.BLOB_REPLY, b"\xc1"),
        (Channel.BLOB_REPLY, encode(Ack(boot_id="0" * 32, seq=1, credit=1))),
        (Channel.BLOB_CHUNK, b"short"),
        (Channel.BLOB_CHUNK, b"\x09" + encode_chunk(Chunk(digest, 0, b"x"))[1:]),
    ]
    for channel, payload in odd:
        agent.deliver(channel, payload)
    agent.transport.deliver("other/topic", b"x")
    agent.deliver(Channel.BLOB_REPLY, encode(BlobRefused(request_id=9, digest=digest, reason="")))
    agent.deliver(Channel.BLOB_CHUNK, encode_chunk(Chunk(digest, 0, b"nobody asked")))
    agent.deliver(Channel.DESIRED, b"")
    wait_for(
        "the count",
        lambda: sum(agent.agent.status()["refused_messages"].values()) == len(odd) + 1,  # type: ignore[attr-defined]
    )
    agent.deploy(agent.world.good, 1)


@pytest.mark.parametrize("spoil", ["signature", "not an envelope", "too large"])
def test_desired_state_that_cannot_be_trusted_is_refused_and_reported(
    agent: RunningAgent, spoil: str
) -> None:
    """M-4.3-2: and what runs goes on."""
    agent.connect()
    agent.deploy(agent.world.good, 1)
    envelope = agent.world.desired(agent.world.better, 2)
    if spoil == "signature":
        envelope = envelope.replace(b'"sig":"', b'"sig":"AAAA')
    else:
        envelope = b"{}" if spoil == "not an envelope" else b"{" + b" " * 9000
    agent.deliver(Channel.DESIRED, envelope)
    wait_for("the refusal", lambda: not agent.reported.accepted)
    assert agent.reported.reason
    assert agent.reported.slots[0].state == "active"
    assert agent.infer(1, 0, 0, 0)[0] == 200
    wait_for("the event", lambda: bool(of_kind(agent, "trust")))
    agent.deploy(agent.world.better, 3)
    assert agent.reported.accepted


def test_refused_revision_is_named_where_it_is_the_directors_word(agent: RunningAgent) -> None:
    agent.connect()
    agent.deploy(agent.world.good, 1)
    agent.deliver(Channel.DESIRED, agent.world.desired(agent.world.better, 7, days=-1))
    wait_for("the refusal", lambda: not agent.reported.accepted)
    assert agent.reported.revision == 7
    assert "expired" in agent.reported.reason
    # What was refused was not accepted: a lower revision may still come.
    agent.deploy(agent.world.better, 5)


def test_release_that_does_not_prove_itself_does_not_serve(agent: RunningAgent) -> None:
    """M-5.4-1, with a real worker: the golden vectors are another model's."""
    agent.connect()
    agent.deploy(agent.world.good, 1)
    agent.deliver(Channel.DESIRED, agent.world.desired(agent.world.bad, 2))
    agent.wait_state("failed", 2)
    assert "cosine" in agent.reported.slots[0].reason
    release = agent.reported.slots[0].release
    assert release is not None
    assert release.version == "1.0.0"
    assert agent.infer(1, 0, 0, 0)[1]["parameters"]["label"] == "ant"


def test_release_serves_after_a_restart_before_there_is_a_network(world: AgentWorld) -> None:
    envelope = world.desired(world.good, 1)
    first = RunningAgent(world)
    first.connect()
    first.deliver(Channel.DESIRED, envelope)
    first.wait_state("active", 1)
    first.stop()
    asked = len(world.hub.asked)
    again = RunningAgent(world)
    try:
        wait_for("the model", lambda: again.ask("/v2/models/tiny/ready")[0] == 200, 60)
        assert again.infer(0, 0, 3, 0)[1]["parameters"]["label"] == "cat"
        assert again.transport.published == []
        again.connect()
        # The retained desired state comes again: it is in force, and nothing is asked for.
        reports = len(again.said(Channel.REPORTED))
        again.deliver(Channel.DESIRED, envelope)
        wait_for("the report", lambda: len(again.said(Channel.REPORTED)) > reports)
        assert again.reported.slots[0].state == "active"
        assert len(world.hub.asked) == asked
    finally:
        again.stop()


def test_worker_that_dies_is_an_event_and_is_started_again(agent: RunningAgent) -> None:
    agent.connect()
    agent.deploy(agent.world.good, 1)
    served = agent.agent._table.get("tiny")
    assert served is not None
    os.kill(served.worker.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    wait_for("the event", lambda: bool(of_kind(agent, "worker")))
    wait_for("the model", lambda: agent.infer(1, 0, 0, 0)[0] == 200, 60)
    assert "SIGKILL" in of_kind(agent, "worker")[0].detail

    def restarts() -> int:
        return sum(w.restarts for t in agent.said(Channel.TELEMETRY) for w in t.windows)

    wait_for("the restart's count", lambda: restarts() == 1)


def test_only_acknowledged_records_leave_the_spool(world: AgentWorld) -> None:
    """M-4.9-1, M-4.9-2, M-4.9-4."""
    agent = RunningAgent(world, acks=False)
    try:
        agent.connect()

        def records() -> list[Event | Telemetry]:
            found = agent.said(Channel.EVENT) + agent.said(Channel.TELEMETRY)
            return sorted(found, key=lambda r: r.seq)

        wait_for("the first credit", lambda: len(records()) == INITIAL_CREDIT_RECORDS)
        time.sleep(0.5)
        assert [r.seq for r in records()] == list(range(1, INITIAL_CREDIT_RECORDS + 1))
        assert {r.floor for r in records()} == {1}
        ack = Ack(boot_id=records()[0].boot_id, seq=10, credit=100)
        agent.deliver(Channel.ACK, encode(ack))
        wait_for("the floor to rise", lambda: records()[-1].floor == 11)
    finally:
        agent.stop()


def test_second_agent_in_one_home_is_refused(agent: RunningAgent) -> None:
    with pytest.raises(HomeInUseError, match=str(os.getpid())) as refused, agent.home.held():
        pass
    assert refused.value.hint


def test_status_says_what_the_report_says(agent: RunningAgent) -> None:
    agent.connect()
    agent.deploy(agent.world.good, 1)
    code, status = agent.ask("/v1/status")
    assert code == 200
    assert status["reported"]["slots"][0]["release"]["version"] == "1.0.0"
    assert status["connected"] is True


def test_taken_over_identity_is_an_event_with_its_name(agent: RunningAgent) -> None:
    agent.connect()
    agent.transport.drop(taken_over=True)
    time.sleep(0.1)
    agent.connect()
    wait_for(
        "the event", lambda: any(e.state == "taken-over" for e in of_kind(agent, "connection"))
    )
    event = next(e for e in of_kind(agent, "connection") if e.state == "taken-over")
    assert "another machine uses this identity" in event.detail


def test_home_without_a_profile_is_a_clear_error(world: AgentWorld) -> None:
    (world.agent_path / "profile.toml").write_text("schema = 1\n")
    with pytest.raises(ProfileError, match=r"profile\.toml"):
        _ = world.agent_home


def test_agent_on_a_full_disk_serves_without_its_address_file(
    world: AgentWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_home: AgentHome, _address: ApiAddress) -> None:
        raise StoreError("run/api.json: cannot be written: No space left on device")

    monkeypatch.setattr(AgentHome, "announce", full)
    home = world.agent_home
    agent = Agent(home, MemoryTransport())
    running = threading.Thread(target=agent.run)
    running.start()
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(home.api_socket))) as client:
            wait_for("the socket", home.api_socket.exists)
            assert client.get("http://localhost/v2/health/live").json() == {"live": True}
    finally:
        agent.stop()
        running.join(30)
    assert not running.is_alive()
