"""Sends what the spool holds, as fast as the hub's acks allow (contract §4.9)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import msgspec

from device_agent.contract.errors import ContractError
from device_agent.contract.messages import (
    INITIAL_CREDIT_RECORDS,
    Ack,
    decode,
    encode,
)
from device_agent.contract.topics import Channel
from device_agent.errors import SpoolError, TransportError
from device_agent.spool import Record, Spool, Spooled

RESEND_AFTER_S = 15.0
"""Without an ack for this long, what is on its way counts as lost."""

RESEND_MAX_S = 300.0
IDLE_LOOK_S = 5.0
CHANNELS: dict[str, Channel] = {
    "event": Channel.EVENT,
    "telemetry": Channel.TELEMETRY,
    "feedback": Channel.FEEDBACK,
}

_log = logging.getLogger(__name__)


class Pace:
    """Which records may be sent now. Pure: it takes times in seconds of any one clock."""

    def __init__(self) -> None:
        self.sent_to_id = 0
        """Place of the newest record that was sent on this connection."""
        self._credit = INITIAL_CREDIT_RECORDS
        self._on_their_way: dict[int, tuple[str, int]] = {}
        self._patience_s = RESEND_AFTER_S
        self._heard_s = 0.0

    @property
    def room(self) -> int:
        """How many more records may be sent before an ack."""
        return max(0, self._credit - len(self._on_their_way))

    def connected(self, now_s: float) -> None:
        """Begin again with the oldest record: what was on its way may be lost."""
        self.sent_to_id = 0
        self._credit = INITIAL_CREDIT_RECORDS
        self._on_their_way.clear()
        self._patience_s = RESEND_AFTER_S
        self._heard_s = now_s

    def sent(self, record: Spooled, now_s: float) -> None:
        """Take note that a record is on its way."""
        if not self._on_their_way:
            self._heard_s = now_s
        self.sent_to_id = max(self.sent_to_id, record.id)
        self._on_their_way[record.id] = (record.boot_id, record.seq)

    def acknowledged(self, ack: Ack, now_s: float) -> None:
        """Take an ack's word for what arrived and how many may be on their way."""
        done = [
            i
            for i, (boot, seq) in self._on_their_way.items()
            if boot == ack.boot_id and seq <= ack.seq
        ]
        for record in done:
            del self._on_their_way[record]
        # A hub that gives no credit at all could never give any again.
        self._credit = max(1, ack.credit)
        if done:
            self._heard_s = now_s
            self._patience_s = RESEND_AFTER_S

    def repair(self, now_s: float) -> bool:
        """Send again from the oldest if no ack came for too long; whether that is so."""
        if not self._on_their_way or now_s - self._heard_s < self._patience_s:
            return False
        self._on_their_way.clear()
        self.sent_to_id = 0
        self._heard_s = now_s
        self._patience_s = min(self._patience_s * 2, RESEND_MAX_S)
        return True


class Sender:
    """A thread that empties the spool while there is a connection; lifetime by start and close.

    Args:
        spool: What to send.
        publish: Publishes bytes on a channel; raises TransportError without a connection.
    """

    def __init__(self, spool: Spool, publish: Callable[[Channel, bytes], None]) -> None:
        self._spool, self._publish = spool, publish
        self._pace = Pace()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._is_connected = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End; what was not acknowledged stays in the spool."""
        self._stopped = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(IDLE_LOOK_S)

    def notify(self) -> None:
        """Say that a record was added."""
        self._wake.set()

    def connected(self) -> None:
        """Say that there is a new connection."""
        with self._lock:
            self._is_connected = True
            self._pace.connected(time.monotonic())
        self._wake.set()

    def disconnected(self) -> None:
        """Say that there is none."""
        with self._lock:
            self._is_connected = False

    def on_ack(self, ack: Ack) -> None:
        """Take the hub's ack.

        Raises:
            SpoolError: The spool cannot be written.
        """
        self._spool.acknowledge(ack.boot_id, ack.seq)
        with self._lock:
            self._pace.acknowledged(ack, time.monotonic())
        self._wake.set()

    def _run(self) -> None:
        while not self._stopped:
            self._wake.wait(IDLE_LOOK_S)
            self._wake.clear()
            try:
                while not self._stopped and self._send_some():
                    pass
            except TransportError as e:
                # What was not taken counts as on its way, and so is repaired.
                _log.info("records wait: %s", e)
            except SpoolError as e:
                _log.error("records cannot be sent: %s", e)

    def _send_some(self) -> bool:
        with self._lock:
            if not self._is_connected:
                return False
            self._pace.repair(time.monotonic())
            after_id, room = self._pace.sent_to_id, self._pace.room
        if not room:
            return False
        records = self._spool.pending(after_id, room)
        for record in records:
            with self._lock:
                if not self._is_connected or self._pace.sent_to_id > record.id:
                    return True
                self._pace.sent(record, time.monotonic())
            self._publish(CHANNELS[record.kind], with_floor(record))
        return bool(records)


def with_floor(record: Spooled) -> bytes:
    """Return a record's wire bytes with its boot's floor of now (contract §4.9)."""
    try:
        message = decode(record.payload)
    except ContractError:
        # An older version of the agent may have made it; the hub judges it as it is.
        return record.payload
    if not isinstance(message, Record) or message.floor == record.floor:
        return record.payload
    return encode(msgspec.structs.replace(message, floor=min(record.floor, message.seq)))
