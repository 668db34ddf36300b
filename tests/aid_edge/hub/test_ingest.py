from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aid_edge.errors import HubError
from aid_edge.hub.ingest import BUSY_CREDIT_RECORDS, Ingest
from aid_edge.hub.mqtt import Received
from aid_edge.hub.queries import Queries
from aid_edge.hub.schema import connect
from aid_edge.hub.store import Store
from device_agent.contract.messages import (
    Ack,
    AnyMessage,
    Birth,
    Death,
    Feedback,
    ModelWindow,
    Outcomes,
    ReleaseRef,
    Reported,
    Telemetry,
    decode,
    encode,
)
from device_agent.contract.sketch import Sketch, bucket_of
from device_agent.contract.topics import Channel, topic
from tests.aid_edge.hub.conftest import FLEET, Clock, ListOutbox
from tests.support.contract_examples import MESSAGES
from tests.support.simulated_device import BOOT_ID, MACHINE_ID, event, wait_for

RELEASE = ReleaseRef("digits", "1.0.0", "sha256:" + "5" * 64)


@pytest.fixture
def changed() -> list[str]:
    return []


@pytest.fixture
def ingest(store: Store, outbox: ListOutbox, changed: list[str]) -> Iterator[Ingest]:
    with Ingest(store, outbox, FLEET, on_change=changed.append) as ingest:
        yield ingest


def _send(
    ingest: Ingest,
    message: AnyMessage | bytes,
    channel: Channel,
    *,
    device: str = "cam-1",
    is_copy: bool = False,
) -> None:
    payload = message if isinstance(message, bytes) else encode(message)
    ingest.receive(Received(topic(FLEET, device, channel), payload, is_copy))


def _settle(ingest: Ingest, messages: int) -> None:
    wait_for("messages to be stored", lambda: ingest.counts.messages >= messages)


def _birth(**changes: Any) -> Birth:
    facts: dict[str, Any] = {
        "boot_id": BOOT_ID,
        "connection": 1,
        "machine_id": MACHINE_ID,
        "agent_version": "0.1.0",
        "profile": "generic-x86_64",
        "runtimes": {"onnx_runtime": "1.32"},
        "protections": ("landlock",),
        "seed_applied": "seed-cam-1",
    }
    return Birth(**{**facts, **changes})


def _telemetry(seq: int, clock: Clock, *, n: int = 4, late: int = 1) -> Telemetry:
    return Telemetry(
        boot_id=BOOT_ID,
        seq=seq,
        windows=(
            ModelWindow(
                release=RELEASE,
                start_unix_s=clock.now - 5,
                duration_s=10.0,
                outcomes=Outcomes(ok=n, deadline=late),
                latency={"total": Sketch({bucket_of(0.02): n}, 0.02 * n)},
                classes={"1": n},
                confidence=(0, 0, 0, 0, 0, 0, 0, 0, 0, n),
                rss_bytes=1000,
            ),
        ),
        temperature_c=50.0,
    )


def _acks(outbox: ListOutbox) -> list[Ack]:
    acks = [decode(payload) for payload in outbox.on(Channel.ACK)]
    return [a for a in acks if isinstance(a, Ack)]


def test_birth_and_telemetry_reach_the_fleet_list(
    ingest: Ingest, queries: Queries, clock: Clock, changed: list[str]
) -> None:
    _send(ingest, _birth(), Channel.CONN)
    _send(ingest, _telemetry(1, clock), Channel.TELEMETRY)
    _settle(ingest, 2)
    summary = queries.summary("cam-1")
    assert summary is not None
    assert (summary.requests, summary.deadline_misses, summary.errors) == (5, 1, 0)
    assert summary.p50_s == pytest.approx(0.02, rel=0.03)
    assert summary.status == "late"
    assert summary.profile == "generic-x86_64"
    assert summary.last_seen_unix_s == clock.now
    assert "cam-1" in changed


def test_record_is_stored_once_however_often_it_comes(
    ingest: Ingest, queries: Queries, clock: Clock, outbox: ListOutbox
) -> None:
    """M-4.9-7: and every arrival is answered."""
    for _ in range(3):
        _send(ingest, _telemetry(1, clock), Channel.TELEMETRY)
        before = len(_acks(outbox))
        wait_for("the answer", lambda before=before: len(_acks(outbox)) > before)
    summary = queries.summary("cam-1")
    assert summary is not None
    assert summary.requests == 5
    assert {(a.boot_id, a.seq) for a in _acks(outbox)} == {(BOOT_ID, 1)}
    assert all(a.credit >= BUSY_CREDIT_RECORDS >= 1 for a in _acks(outbox))


def test_acknowledgement_survives_a_restart_of_the_hub(
    store: Store, outbox: ListOutbox, queries: Queries, clock: Clock
) -> None:
    """M-4.9-7: idempotence lies in the database, not in memory."""
    for _ in range(2):
        with Ingest(store, outbox, FLEET) as ingest:
            _send(ingest, _telemetry(1, clock), Channel.TELEMETRY)
            _settle(ingest, 1)
    summary = queries.summary("cam-1")
    assert summary is not None
    assert summary.requests == 5
    assert [a.seq for a in _acks(outbox)] == [1, 1]


def test_record_beyond_a_gap_is_stored_but_not_acknowledged(
    ingest: Ingest, outbox: ListOutbox, queries: Queries
) -> None:
    """M-4.9-6."""
    _send(ingest, event(1), Channel.EVENT)
    _send(ingest, event(3), Channel.EVENT)
    _settle(ingest, 2)
    assert _acks(outbox)[-1].seq == 1
    assert len(queries.events("cam-1")) == 2
    _send(ingest, event(2), Channel.EVENT)
    _settle(ingest, 3)
    wait_for("the acknowledgement", lambda: _acks(outbox)[-1].seq == 3)


def test_floor_closes_a_gap_that_nobody_fills(ingest: Ingest, outbox: ListOutbox) -> None:
    """M-4.9-6: records below the floor were dropped by the device."""
    _send(ingest, event(7, floor=7), Channel.EVENT)
    _settle(ingest, 1)
    wait_for("the acknowledgement", lambda: [a.seq for a in _acks(outbox)] == [7])


def test_nothing_is_acknowledged_before_it_is_committed(
    store: Store, outbox: ListOutbox, queries: Queries
) -> None:
    """M-4.9-5: while the database refuses, no acknowledgement; afterwards all of it is there."""
    blocker = connect(store.path)
    store._connection.execute("PRAGMA busy_timeout = 50")
    blocker.execute("BEGIN IMMEDIATE")
    with Ingest(store, outbox, FLEET) as ingest:
        _send(ingest, event(1), Channel.EVENT)
        wait_for("the attempt", lambda: ingest.backlog == 0)
        with pytest.raises(HubError, match="locked"), store.transaction():
            pass
        assert outbox.sent == []
        blocker.execute("ROLLBACK")
        blocker.close()
        _settle(ingest, 1)
        wait_for("the acknowledgement", lambda: [a.seq for a in _acks(outbox)] == [1])
    assert len(queries.events("cam-1")) == 1


@pytest.mark.parametrize(
    ("payload", "channel"),
    [
        (b"", Channel.TELEMETRY),
        (b"{", Channel.CONN),
        (b"\x00" * 300_000, Channel.TELEMETRY),
        (b'{"type":"birth","v":2}', Channel.CONN),
        (b'{"type":"nonsense","v":1}', Channel.EVENT),
        (encode(MESSAGES["birth"]), Channel.TELEMETRY),
        (encode(MESSAGES["ack"]), Channel.EVENT),
        (encode(MESSAGES["telemetry"]), Channel.FEEDBACK),
    ],
)
def test_refused_message_is_counted_and_the_hub_goes_on(
    ingest: Ingest, queries: Queries, payload: bytes, channel: Channel
) -> None:
    """M-3.3-5, and M-2.3-4: a type on a channel that it does not belong to is refused."""
    _send(ingest, _birth(), Channel.CONN)
    _send(ingest, payload, channel)
    _send(ingest, event(1), Channel.EVENT)
    _settle(ingest, 2)

    def counted() -> bool:
        detail = queries.device("cam-1")
        return detail is not None and detail.malformed_messages == 1

    wait_for("the count", counted)
    assert ingest.counts.malformed == 1


@pytest.mark.parametrize(
    "name",
    [
        "aid/v1/other-fleet/cam-1/conn",
        "aid/v1/fleet-a/hub/conn",
        "aid/v1/fleet-a/cast/conn",
        "aid/v2/fleet-a/cam-1/conn",
        "aid/v1/fleet-a/cam-1/desired",
        "",
    ],
)
def test_message_of_no_device_is_refused(ingest: Ingest, queries: Queries, name: str) -> None:
    """M-2.3-4: which device it is from, the topic alone says."""
    ingest.receive(Received(name, encode(_birth()), is_copy=False))
    assert ingest.counts.malformed == 1
    assert queries.counts().devices == 0


def test_number_that_no_database_holds_stops_nobody_else(
    ingest: Ingest, queries: Queries, clock: Clock
) -> None:
    huge = 2**63 - 1
    for seq in (1, 2):
        telemetry = _telemetry(seq, clock, n=huge, late=huge)
        _send(ingest, telemetry, Channel.TELEMETRY)
    _send(ingest, event(3), Channel.EVENT)
    _settle(ingest, 3)
    wait_for("the event", lambda: len(queries.events("cam-1")) == 1)
    summary = queries.summary("cam-1")
    assert summary is not None
    assert summary.requests > 2**53


def test_stale_death_leaves_the_device_online(ingest: Ingest, queries: Queries) -> None:
    """M-4.1-4."""
    _send(ingest, _birth(connection=2), Channel.CONN)
    _send(ingest, Death(boot_id=BOOT_ID, connection=1), Channel.CONN)
    _settle(ingest, 2)
    assert _status(queries) == "ok"
    _send(ingest, Death(boot_id=BOOT_ID, connection=2), Channel.CONN)
    _settle(ingest, 3)
    assert _status(queries) == "offline"


def test_two_machines_with_one_identity_are_shown(
    ingest: Ingest, queries: Queries, registered: Callable[..., str]
) -> None:
    """M-4.1-5; and flashing the device anew ends it."""
    _send(ingest, _birth(), Channel.CONN)
    _send(ingest, _birth(boot_id="f" * 32, machine_id="b" * 32), Channel.CONN)
    _settle(ingest, 2)
    summary = queries.summary("cam-1")
    assert summary is not None
    assert "two machines" in summary.conflict
    assert summary.status == "degraded"
    registered("cam-1")
    again = queries.summary("cam-1")
    assert again is not None
    assert again.conflict == ""


def test_stored_copy_of_the_broker_is_no_sign_of_life(
    ingest: Ingest, queries: Queries, clock: Clock
) -> None:
    _send(ingest, _birth(), Channel.CONN, is_copy=True)
    _settle(ingest, 1)
    assert _status(queries) == "never-seen"
    _send(ingest, event(1), Channel.EVENT)
    _settle(ingest, 2)
    assert _status(queries) == "ok"
    clock.now += 31
    assert _status(queries) == "offline"


def test_feedback_is_listed_and_counted(ingest: Ingest, queries: Queries, clock: Clock) -> None:
    _send(ingest, _birth(), Channel.CONN)
    for seq, verdict in enumerate(("wrong", "right"), start=1):
        feedback = Feedback(
            boot_id=BOOT_ID,
            seq=seq,
            at_unix_s=clock.now,
            inference_id=f"i-{seq}",
            release=RELEASE,
            verdict=verdict,  # type: ignore[arg-type]
            predicted="cat",
            confidence=0.75,
            label="dog",
        )
        _send(ingest, feedback, Channel.FEEDBACK)
    _settle(ingest, 3)
    assert [f.verdict for f in queries.feedback().feedback] == ["right", "wrong"]
    (wrong,) = queries.feedback(verdict="wrong").feedback
    assert (wrong.inference_id, wrong.release, wrong.label) == ("i-1", "digits@1.0.0", "dog")
    summary = queries.summary("cam-1")
    assert summary is not None
    assert summary.wrong_reports == 1


def _status(queries: Queries) -> str:
    summary = queries.summary("cam-1")
    assert summary is not None
    return summary.status


def test_database_of_another_version_is_refused(store: Store) -> None:
    connection = sqlite3.connect(store.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(HubError, match="schema version 99"):
        Store(store.path)


def test_database_of_the_version_before_is_brought_up_to_date(store: Store) -> None:
    connection = sqlite3.connect(store.path)
    connection.execute("INSERT INTO device (id, profile) VALUES ('old', 'generic-x86_64')")
    connection.execute("ALTER TABLE device DROP COLUMN retrying")
    connection.execute("DROP TABLE trial")
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    again = Store(store.path)
    try:
        with again.transaction() as transaction:
            facts = transaction.facts("old")
            transaction.reported("old", Reported(boot_id="0" * 32, revision=4))
        assert facts is not None
    finally:
        again.close()
    Store(store.path).close()
