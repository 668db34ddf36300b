"""From messages to the database, in batches; acknowledged only when they are stored."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from aid_edge.errors import HubError
from aid_edge.hub.mqtt import Received
from aid_edge.hub.outbox import Outbox
from aid_edge.hub.sequence import Stream
from aid_edge.hub.store import RESERVED, Store, Transaction, UnstorableError
from device_agent.contract.errors import ContractError, MalformedMessageError
from device_agent.contract.messages import (
    Ack,
    Birth,
    Death,
    Event,
    Feedback,
    Reported,
    Telemetry,
    TrialResult,
    decode,
    encode,
)
from device_agent.contract.topics import Channel, parse

MAX_QUEUE_MESSAGES = 20_000
"""Messages that wait to be stored; further ones are dropped, and records are sent again."""
MAX_BATCH_MESSAGES = 500
BATCH_WAIT_S = 0.02
"""How long a batch may gather, so that one commit serves many messages."""
IDLE_FLUSH_S = 1.0
"""How often last-seen times are stored when nothing else is."""
PRUNE_S = 600.0
CREDIT_RECORDS = 256
BUSY_CREDIT_RECORDS = 16
"""What a device may send ahead of the acknowledgement, at ease and when the queue is half full."""
MAX_COUNTED_DEVICES = 10_000
"""Devices whose malformed messages are counted between two commits."""
RETRY_S = 1.0

Record = Event | Telemetry | Feedback | TrialResult
Content = Birth | Death | Reported | Record
_TYPES: dict[Channel, tuple[type[Content], ...]] = {
    Channel.CONN: (Birth, Death),
    Channel.REPORTED: (Reported,),
    Channel.EVENT: (Event, TrialResult),
    Channel.TELEMETRY: (Telemetry,),
    Channel.FEEDBACK: (Feedback,),
}
CHANNELS = tuple(_TYPES)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One message of the contract, from the device that its topic names."""

    device: str
    content: Content
    is_copy: bool
    at_unix_s: float


@dataclass
class IngestCounts:
    """What ingest did since it started."""

    messages: int = 0
    malformed: int = 0
    duplicates: int = 0
    dropped: int = 0
    commits: int = 0


@dataclass
class _Pending:
    """What the next commit takes along beside the messages."""

    seen: dict[str, float] = field(default_factory=dict)
    malformed: Counter[str] = field(default_factory=Counter)


class Ingest:
    """Takes messages from the connection's thread and stores them in its own.

    Args:
        store: Where to.
        outbox: Where acknowledgements go.
        fleet: Messages of other fleets are refused.
        on_change: Called with a device's id after something of it was committed.
    """

    def __init__(
        self,
        store: Store,
        outbox: Outbox,
        fleet: str,
        *,
        on_change: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._outbox = outbox
        self._fleet = fleet
        self._on_change = on_change
        self.counts = IngestCounts()
        self._queue: queue.Queue[Item | None] = queue.Queue(MAX_QUEUE_MESSAGES)
        self._pending = _Pending()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._pruned_s = 0.0
        self._thread = threading.Thread(target=self._run, name="ingest")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join()

    @property
    def backlog(self) -> int:
        """How many messages wait to be stored."""
        return self._queue.qsize()

    @property
    def is_alive(self) -> bool:
        """Whether messages are being stored; False after a bug ended the thread."""
        return self._thread.is_alive()

    def saw(self, device: str) -> None:
        """Note a sign of life that is not stored otherwise."""
        with self._lock:
            self._pending.seen[device] = self._store.clock()

    def receive(self, received: Received) -> None:
        """Take one message; never blocks and never raises."""
        now = self._store.clock()
        try:
            device, content = read(received, self._fleet)
        except ContractError as e:
            self._refuse(received.topic, e)
            return
        try:
            self._queue.put_nowait(Item(device, content, received.is_copy, now))
        except queue.Full:
            # Not acknowledged, so records come again; presence and reported are retained.
            self.counts.dropped += 1

    def _refuse(self, topic: str, error: ContractError) -> None:
        self.counts.malformed += 1
        try:
            _, device, _ = parse(topic)
        except ContractError:
            device = ""
        _log.warning("refused a message on %.200s: %s", topic, error)
        if device:
            self.count_malformed(device)

    def count_malformed(self, device: str) -> None:
        """Count one message of ``device`` that was not of the contract."""
        with self._lock:
            counts = self._pending.malformed
            if device in counts or len(counts) < MAX_COUNTED_DEVICES:
                counts[device] += 1

    def _run(self) -> None:
        while not self._stop.is_set():
            batch = self._gather()
            while not self._commit(batch) and not self._stop.is_set():
                # A full disk, say: nothing is lost, because nothing was acknowledged.
                self._stop.wait(RETRY_S)

    def _gather(self) -> list[Item]:
        batch: list[Item] = []
        deadline = time.monotonic() + IDLE_FLUSH_S
        while len(batch) < MAX_BATCH_MESSAGES and (left := deadline - time.monotonic()) > 0:
            try:
                item = self._queue.get(timeout=left)
            except queue.Empty:
                break
            if item is None:
                break
            if not batch:
                deadline = time.monotonic() + BATCH_WAIT_S
            batch.append(item)
        return batch

    def _commit(self, batch: list[Item]) -> bool:
        with self._lock:
            pending, self._pending = self._pending, _Pending()
        for item in batch:
            if not item.is_copy:
                pending.seen[item.device] = item.at_unix_s
        now = self._store.clock()
        if not (batch or pending.seen or pending.malformed or now - self._pruned_s > PRUNE_S):
            return True
        try:
            with self._store.transaction() as transaction:
                streams = _Streams(transaction)
                for device in {item.device for item in batch}:
                    transaction.ensure(device)
                duplicates = sum(not self._apply(transaction, streams, item) for item in batch)
                streams.save(now)
                transaction.seen(pending.seen)
                transaction.malformed(pending.malformed)
                if now - self._pruned_s > PRUNE_S:
                    transaction.prune(now)
        except UnstorableError as e:
            self._restore(pending)
            return self._set_apart(batch, e)
        except HubError as e:
            _log.error("not stored, trying again: %s", e)
            self._restore(pending)
            return False
        self._pruned_s = now if now - self._pruned_s > PRUNE_S else self._pruned_s
        self.counts.messages += len(batch)
        self.counts.duplicates += duplicates
        self.counts.commits += 1
        self._acknowledge(streams)
        for device in {item.device for item in batch}:
            self._on_change(device)
        return True

    def _set_apart(self, batch: list[Item], error: UnstorableError) -> bool:
        """Store what of a batch can be stored; one bad message must not stop the others."""
        if len(batch) > 1:
            stored = [self._commit([item]) for item in batch]
            return all(stored)
        for item in batch:
            self.counts.malformed += 1
            self.count_malformed(item.device)
            _log.warning("refused a message of %s: %s", item.device, error)
        return True

    def _restore(self, pending: _Pending) -> None:
        with self._lock:
            self._pending.malformed.update(pending.malformed)
            self._pending.seen = {**pending.seen, **self._pending.seen}

    def _apply(self, transaction: Transaction, streams: _Streams, item: Item) -> bool:
        """Store one message; return False for a record that is stored already."""
        match item.content:
            case Birth() as birth:
                transaction.birth(item.device, birth, item.at_unix_s)
            case Death() as death:
                transaction.death(item.device, death)
            case Reported() as reported:
                transaction.reported(item.device, reported)
            case record:
                if not streams.take(item.device, record):
                    return False
                _store_record(transaction, item.device, record, item.at_unix_s)
        return True

    def _acknowledge(self, streams: _Streams) -> None:
        busy = self._queue.qsize() > MAX_QUEUE_MESSAGES // 2
        credit = BUSY_CREDIT_RECORDS if busy else CREDIT_RECORDS
        for (device, boot_id), stream in streams.items():
            ack = Ack(boot_id=boot_id, seq=stream.through, credit=credit)
            self._outbox.publish(device, Channel.ACK, encode(ack))


class _Streams:
    """The streams that one batch touches, read once and written once."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._streams: dict[tuple[str, str], Stream] = {}

    def take(self, device: str, record: Record) -> bool:
        """Return whether ``record`` is new and to be stored now."""
        key = device, record.boot_id
        if key not in self._streams:
            self._streams[key] = self._transaction.stream(*key)
        stream = self._streams[key]
        is_known = stream.holds(record.seq)
        if not is_known and stream.is_full(record.seq):
            return False  # too many gaps; it comes again when the first ones are closed
        self._streams[key] = stream.store(record.seq, record.floor)
        return not is_known

    def save(self, now_unix_s: float) -> None:
        """Write them into the transaction that stores their records."""
        for (device, boot_id), stream in self._streams.items():
            self._transaction.set_stream(device, boot_id, stream, now_unix_s)

    def items(self) -> list[tuple[tuple[str, str], Stream]]:
        """Return device and boot id with their stream."""
        return list(self._streams.items())


def _store_record(
    transaction: Transaction, device: str, record: Record, received_unix_s: float
) -> None:
    match record:
        case Event():
            transaction.event(device, record, received_unix_s)
        case Telemetry():
            transaction.telemetry(device, record, received_unix_s)
        case TrialResult():
            transaction.trial_result(device, record)
        case Feedback():
            transaction.feedback(device, record, received_unix_s)


def read(received: Received, fleet: str) -> tuple[str, Content]:
    """Return the device and the content of a message (contract §2.3, §3).

    Raises:
        ContractError: It is not of the contract, of another fleet, or on another type's channel.
    """
    found, device, channel = parse(received.topic)
    if found != fleet or device in RESERVED or channel not in _TYPES:
        raise MalformedMessageError(f"{received.topic!r} is no topic of a device of {fleet}")
    content = decode(received.payload)
    # Which device it is from, the topic says and the broker proved; no type travels elsewhere.
    if not isinstance(content, _TYPES[channel]):
        raise MalformedMessageError(f"a {type(content).__name__} on channel {channel.value!r}")
    return device, content
