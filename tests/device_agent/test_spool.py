from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_agent.contract.messages import (
    INITIAL_CREDIT_RECORDS,
    Ack,
    Event,
    Feedback,
    ReleaseRef,
    Telemetry,
    decode,
    encode,
)
from device_agent.contract.names import digest_of
from device_agent.contract.topics import Channel
from device_agent.errors import SpoolError, TransportError
from device_agent.spool import RECORD_OVERHEAD_BYTES, Record, Spool, Spooled
from device_agent.telemetry.sender import RESEND_AFTER_S, Pace, Sender
from tests.support.agent_doubles import wait_for

BOOT, OLD_BOOT = "b" * 32, "a" * 32
RELEASE = ReleaseRef("digits", "1.0.0", digest_of(b""))


def event(detail: str = "", boot_id: str = BOOT) -> Callable[[int, int], Record]:
    return lambda seq, floor: Event(
        boot_id=boot_id, seq=seq, floor=floor, at_unix_s=1.0, kind="agent", detail=detail
    )


def telemetry(seq: int, floor: int) -> Record:
    return Telemetry(boot_id=BOOT, seq=seq, floor=floor)


def feedback(seq: int, floor: int) -> Record:
    return Feedback(
        boot_id=BOOT,
        seq=seq,
        floor=floor,
        at_unix_s=1.0,
        inference_id="x",
        release=RELEASE,
        verdict="wrong",
    )


def open_spool(path: Path, boot_id: str = BOOT, max_bytes: int = 2**20) -> Spool:
    return Spool(path, boot_id, max_bytes=max_bytes, encode=encode)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = open_spool(tmp_path / "state" / "spool.sqlite")
    yield made
    made.close()


def seqs(spool: Spool) -> list[int]:
    return [r.seq for r in spool.pending(0, 1000)]


def test_records_have_one_sequence_from_one_and_come_oldest_first(spool: Spool) -> None:
    """M-4.9-1."""
    assert [spool.add(m) for m in (event(), telemetry, feedback)] == [1, 2, 3]
    assert seqs(spool) == [1, 2, 3]
    assert [r.kind for r in spool.pending(0, 9)] == ["event", "telemetry", "feedback"]


def test_only_an_ack_of_that_boot_prunes(spool: Spool) -> None:
    """M-4.9-2."""
    for _ in range(3):
        spool.add(event())
    assert spool.acknowledge(OLD_BOOT, 3) == 0
    assert spool.acknowledge(BOOT, 2) == 2
    assert seqs(spool) == [3]
    assert spool.acknowledge(BOOT, 2) == 0
    assert spool.state().records == 1


def test_records_survive_a_restart_under_their_old_boot(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    before = open_spool(path, OLD_BOOT)
    before.add(event("old", OLD_BOOT))
    before.close()
    after = open_spool(path, BOOT)
    assert after.add(event("new")) == 1
    assert [(r.boot_id, r.seq) for r in after.pending(0, 9)] == [(OLD_BOOT, 1), (BOOT, 1)]
    assert after.acknowledge(OLD_BOOT, 1) == 1
    after.close()


def test_acknowledged_sequence_numbers_are_not_used_again(spool: Spool) -> None:
    spool.add(event())
    spool.acknowledge(BOOT, 1)
    assert spool.add(event()) == 2


def test_when_full_telemetry_goes_first_then_events_and_feedback_last(tmp_path: Path) -> None:
    """M-4.9-3: and what was dropped is counted by class, over restarts too."""
    path = tmp_path / "spool.sqlite"
    size = len(encode(feedback(1, 1))) + RECORD_OVERHEAD_BYTES
    spool = open_spool(path, max_bytes=4 * size)
    for make in (feedback, telemetry, event(), telemetry):
        spool.add(make)
    for _ in range(4):
        assert spool.add(feedback) is not None
    held = [r.kind for r in spool.pending(0, 99)]
    assert set(held) == {"feedback"}
    dropped = spool.state().dropped
    assert dropped["telemetry"] == 2
    assert dropped["event"] == 1
    assert spool.state().bytes <= 4 * size
    spool.close()
    again = open_spool(path, BOOT)
    assert again.state().dropped == dropped
    again.close()


def test_less_valuable_record_drops_itself_rather_than_a_better_one(tmp_path: Path) -> None:
    size = len(encode(feedback(1, 1))) + RECORD_OVERHEAD_BYTES
    spool = open_spool(tmp_path / "s.sqlite", max_bytes=2 * size)
    spool.add(feedback)
    spool.add(feedback)
    assert spool.add(telemetry) is None
    assert [r.kind for r in spool.pending(0, 9)] == ["feedback", "feedback"]
    assert spool.state().dropped == {"telemetry": 1}
    spool.close()


def test_floor_rises_with_what_was_dropped_or_acknowledged(tmp_path: Path) -> None:
    """M-4.9-3: nobody need wait for what is below the floor."""
    size = len(encode(telemetry(1, 1))) + RECORD_OVERHEAD_BYTES
    spool = open_spool(tmp_path / "s.sqlite", max_bytes=3 * size + size // 2)
    for _ in range(5):
        spool.add(telemetry)
    held = spool.pending(0, 9)
    assert [r.seq for r in held] == [3, 4, 5]
    assert {r.floor for r in held} == {3}
    spool.acknowledge(BOOT, 4)
    assert [r.floor for r in spool.pending(0, 9)] == [5]
    spool.acknowledge(BOOT, 5)
    spool.add(telemetry)
    record = decode(spool.pending(0, 9)[0].payload)
    assert isinstance(record, Telemetry)
    assert (record.seq, record.floor) == (6, 6)
    spool.close()


def test_unreadable_database_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    path.write_bytes(b"this is no database" * 1000)
    spool = open_spool(path)
    assert spool.add(event()) == 1
    spool.close()
    assert path.with_name("spool.sqlite.unreadable").exists()


def test_place_that_cannot_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError):
        open_spool(tmp_path / "file" / "spool.sqlite")


def test_database_that_refuses_writes_costs_the_record_not_the_agent(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    spool = open_spool(path)
    spool.add(event())
    spool._db.execute("PRAGMA query_only = ON")
    assert spool.add(feedback) is None
    assert spool.state().dropped == {"feedback": 1}
    spool._db.execute("PRAGMA query_only = OFF")
    assert spool.add(event()) == 2
    spool.close()
    stored = sqlite3.connect(path)
    assert stored.execute("SELECT count FROM dropped WHERE kind = 'feedback'").fetchone() == (1,)
    stored.close()


# --- pace ---------------------------------------------------------------------------------------


def record(seq: int, boot_id: str = BOOT) -> Spooled:
    return Spooled(seq, boot_id, seq, "event", b"", 1)


def test_no_more_are_on_their_way_than_the_credit_allows() -> None:
    """M-4.9-4."""
    pace = Pace()
    pace.connected(0)
    assert pace.room == INITIAL_CREDIT_RECORDS == 16
    for seq in range(1, 17):
        pace.sent(record(seq), 0)
    assert pace.room == 0
    pace.acknowledged(Ack(boot_id=BOOT, seq=6, credit=12), 1)
    assert pace.room == 2
    pace.acknowledged(Ack(boot_id=BOOT, seq=6, credit=0), 1)
    assert pace.room == 0
    pace.acknowledged(Ack(boot_id=BOOT, seq=16, credit=0), 1)
    assert pace.room == 1


def test_reconnect_begins_with_the_oldest_and_the_first_credit() -> None:
    """M-4.9-1, M-4.9-4."""
    pace = Pace()
    pace.connected(0)
    pace.sent(record(5), 0)
    pace.acknowledged(Ack(boot_id=BOOT, seq=1, credit=500), 1)
    pace.connected(2)
    assert pace.sent_to_id == 0
    assert pace.room == INITIAL_CREDIT_RECORDS


def test_silence_means_sending_again_with_growing_patience() -> None:
    """M-4.9-1."""
    pace = Pace()
    pace.connected(0)
    pace.sent(record(1), 0)
    assert not pace.repair(RESEND_AFTER_S - 1)
    assert pace.repair(RESEND_AFTER_S)
    assert pace.sent_to_id == 0
    pace.sent(record(1), RESEND_AFTER_S)
    assert not pace.repair(RESEND_AFTER_S * 2)
    assert pace.repair(RESEND_AFTER_S * 3)


def test_nothing_is_repaired_while_nothing_is_on_its_way() -> None:
    pace = Pace()
    pace.connected(0)
    assert not pace.repair(10_000)


# --- sender -------------------------------------------------------------------------------------


class HubInMemory:
    """Stores records idempotently and acknowledges the unbroken run, when it wants to."""

    def __init__(self) -> None:
        self.sent: list[tuple[Channel, int, int]] = []
        self.stored: set[int] = set()
        self.is_up = True
        self.lock = threading.Lock()

    def publish(self, channel: Channel, payload: bytes) -> None:
        if not self.is_up:
            raise TransportError("gone")
        message = decode(payload)
        assert isinstance(message, Event | Telemetry | Feedback)
        with self.lock:
            self.sent.append((channel, message.seq, message.floor))
            self.stored.add(message.seq)

    def ack(self, sender: Sender, credit: int = 16) -> None:
        sender.on_ack(Ack(boot_id=BOOT, seq=max(self.stored, default=0), credit=credit))


@pytest.fixture
def hub() -> HubInMemory:
    return HubInMemory()


@pytest.fixture
def sender(spool: Spool, hub: HubInMemory) -> Iterator[Sender]:
    made = Sender(spool, hub.publish)
    made.start()
    yield made
    made.close()


def test_sender_empties_the_spool_at_the_hubs_pace(
    spool: Spool, hub: HubInMemory, sender: Sender
) -> None:
    """M-4.9-4: each record on its own channel, no more than credit, until nothing is left."""
    for index in range(40):
        spool.add((event(), telemetry, feedback)[index % 3])
    time.sleep(0.05)
    assert hub.sent == []
    sender.connected()
    wait_for("the first credit", lambda: len(hub.sent) == INITIAL_CREDIT_RECORDS)
    time.sleep(0.05)
    assert len(hub.sent) == INITIAL_CREDIT_RECORDS
    for _ in range(4):
        hub.ack(sender)
        time.sleep(0.05)
    wait_for("an empty spool", lambda: spool.state().records == 0)
    assert [s for _, s, _ in hub.sent] == list(range(1, 41))
    assert {c for c, _, _ in hub.sent} == {Channel.EVENT, Channel.TELEMETRY, Channel.FEEDBACK}


def test_what_was_not_acknowledged_is_sent_again_after_a_reconnect(
    spool: Spool, hub: HubInMemory, sender: Sender
) -> None:
    """M-4.9-1, M-4.9-2: a broker that took a record proves nothing."""
    for _ in range(3):
        spool.add(event())
    sender.connected()
    wait_for("three", lambda: len(hub.sent) == 3)
    sender.disconnected()
    sender.on_ack(Ack(boot_id=BOOT, seq=1, credit=16))
    sender.connected()
    wait_for("two again", lambda: len(hub.sent) == 5)
    assert [(s, f) for _, s, f in hub.sent] == [(1, 1), (2, 1), (3, 1), (2, 2), (3, 2)]


def test_lost_connection_in_the_middle_loses_nothing(
    spool: Spool, hub: HubInMemory, sender: Sender
) -> None:
    hub.is_up = False
    sender.connected()
    spool.add(event())
    sender.notify()
    time.sleep(0.05)
    hub.is_up = True
    sender.connected()
    wait_for("the record", lambda: hub.stored == {1})
